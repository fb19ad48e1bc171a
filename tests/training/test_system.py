"""How busy the machine is: what is written, when, and what a GPU's library is asked."""

import ctypes
import json
import time

import pytest
import torch

from timewalk.training import system
from timewalk.training.system import Gpus, SystemLog, export, memory, processor_times

CPU = torch.device("cpu")


def lines(folder):
    return [json.loads(line) for line in (folder / "system.jsonl").read_text().splitlines()]


def wait_for_a_tick():
    """Wait until the processors' clock goes on: it does a hundred times a second."""
    before = processor_times()
    for _ in range(1000):
        if processor_times() != before:
            return
        time.sleep(0.001)
    raise AssertionError(f"the clock stands still at {before}")


def test_the_first_and_the_last_step_and_none_between_have_a_line(tmp_path):
    log = SystemLog(tmp_path, 0, 5, CPU)
    for step in range(5):
        wait_for_a_tick()
        log.sample(step)
    log.close()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [0, 4]
    last = found[-1]
    assert 0 <= last["cpu_utilization_percentage"] <= 100
    assert 0 < last["system_memory_usage_percentage"] < 100
    assert last["system_memory_usage_megabytes"] > 10


def test_each_so_many_seconds(tmp_path):
    log = SystemLog(tmp_path, 0, 5, CPU, every_s=0)
    for step in range(4):
        log.sample(step)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3]


def test_a_resumed_training_goes_on_in_it(tmp_path):
    first = SystemLog(tmp_path, 0, 9, CPU, every_s=0)
    for step in range(5):
        first.sample(step)
    first.close()
    second = SystemLog(tmp_path, 3, 9, CPU, every_s=0)
    second.sample(3)
    second.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3]


def test_only_one_process_of_a_training_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = SystemLog(None, 0, 1, CPU)
    log.sample(0)
    log.close()
    assert not list(tmp_path.iterdir())


def test_nothing_random_is_drawn(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    log = SystemLog(tmp_path, 0, 1, CPU)
    log.sample(0)
    log.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_proc_says(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "PROC", tmp_path)
    assert processor_times() is None
    assert memory() == {}
    (tmp_path / "stat").write_text("cpu  10 1 5 80 4 0 0 0 99 99\ncpu0 1 1\n")
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\n")
    assert processor_times() == (16, 100)
    used = {"system_memory_usage_megabytes": 3.072, "system_memory_usage_percentage": 75.0}
    assert memory() == used


class Library:
    """NVIDIA's library with one GPU that does not tell its power."""

    def nvmlInit_v2(self) -> int:  # noqa: N802 - its name
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle) -> int:  # noqa: N802
        assert uuid == b"GPU-12-34"
        handle._obj.value = 77
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle, rates) -> int:  # noqa: N802
        assert handle.value == 77
        rates._obj.gpu = 87
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, room) -> int:  # noqa: N802
        room._obj.total, room._obj.used = 4_000_000, 1_000_000
        return 0

    def nvmlDeviceGetPowerUsage(self, handle, power) -> int:  # noqa: N802
        return 3


def test_gpus_are_asked_by_their_unique_number(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = type("About", (), {"uuid": "12-34"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    assert Gpus().sample() == {
        "gpu_0_utilization_percentage": 87.0,
        "gpu_0_memory_usage_megabytes": 1.0,
        "gpu_0_memory_usage_percentage": 25.0,
    }


def test_without_the_driver_there_are_none(monkeypatch):
    monkeypatch.setattr(system, "DRIVER", "libno-such-library.so.1")
    assert Gpus().sample() == {}


@pytest.mark.parametrize("there", [True, False])
def test_it_is_copied_beside_the_results_or_an_older_one_removed(tmp_path, there):
    folder, output = tmp_path / "checkpoints", tmp_path
    (output / "system.jsonl").write_text("older\n")
    folder.mkdir()
    if there:
        (folder / "system.jsonl").write_text("newer\n")
    export(folder, output)
    found = output / "system.jsonl"
    assert (found.read_text() if found.exists() else None) == ("newer\n" if there else None)
