"""`snakemake --cores 8 --resources gpu=4` on one machine, with pretend devices: who trains where.

Trainings are halted (SIGSTOP) as soon as they have a device, so that they meet whatever the machine
is busy with.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import Workflow, miniature

RUNS = ["first", "second", "third", "fourth", "fifth"]
WITHIN_S = 300


class Trainings:
    """The trainings of one Snakemake, and the devices that they hold.

    Attributes:
        halted: device by pid of those that this test has halted.
    """

    def __init__(self, folder: Path, locks: Path) -> None:
        self.folder, self.locks = folder, locks
        self.halted: dict[int, str] = {}

    def held(self) -> dict[int, str]:
        """Return device by pid, as the kernel has it: who has locked which file."""
        files = {path.stat().st_ino: path.stem for path in self.locks.rglob("gpu*.lock")}
        held: dict[int, str] = {}
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            inode = int(words[-3].rpartition(":")[2])
            if words[1] == "FLOCK" and inode in files:
                pid, device = int(words[-4]), files[inode].removeprefix("gpu")
                # A long list may have a line twice, or miss one, where others lock meanwhile.
                assert held.get(pid, device) == device, "one training on two devices"
                held[pid] = device
        return held

    def halt(self) -> bool:
        """Halt whoever has taken a device since; return whether somebody has."""
        new = {pid: gpu for pid, gpu in self.held().items() if pid not in self.halted}
        for pid, gpu in new.items():
            if self.said(pid) != gpu:
                return False
            os.kill(pid, signal.SIGSTOP)
            self.halted[pid] = gpu
        return bool(new)

    def said(self, pid: int) -> str | None:
        """Return the device that a training's log names."""
        log = self.folder / "logs" / "results" / f"train-{self.name(pid)}.log"
        if not log.exists():
            return None
        found = re.findall(r"on GPU (\S+) of this machine", log.read_text())
        return found[-1] if found else None

    def name(self, pid: int) -> str:
        words = psutil.Process(pid).cmdline()
        return words[words.index("train") + 1]


def until(call, what):
    limit = time.monotonic() + WITHIN_S
    while not call():
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite of five trainings whose frames are there."""
    workflow = Workflow(tmp_path_factory.mktemp("devices"), forked=False)
    config = miniature()
    config["blur"] = {"what": "off"}
    config["runs"] = dict.fromkeys(RUNS, config["runs"]["dora"])
    workflow.configure(config)
    outcome = workflow.run("data")
    assert outcome.code == 0, outcome.text
    return workflow


@contextlib.contextmanager
def running(suite, locks):
    """Have Snakemake train all; on the way out it and its trainings are gone."""
    encoders = [f"results/{name}/encoder.safetensors" for name in RUNS]
    command = suite.command(*encoders, "--resources", "gpu=4", "--set-threads", "train=1", cores=8)
    environment = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "TMPDIR": str(locks)}
    with (suite.folder / "snakemake.out").open("w") as out:
        job = subprocess.Popen(
            command,
            cwd=suite.folder,
            env=suite.environment() | environment,
            stdout=out,
            stderr=out,
        )
        try:
            yield job
        finally:
            if job.poll() is None:
                # Halted, it starts nothing while the others are counted.
                job.send_signal(signal.SIGSTOP)
                for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                job.wait()


def test_four_at_once_a_crashed_ones_device_is_the_next_ones_and_all_end(suite, tmp_path):
    trainings = Trainings(suite.folder, tmp_path)
    with running(suite, tmp_path) as job:

        def four() -> bool:
            assert job.poll() is None, (suite.folder / "snakemake.out").read_text()
            trainings.halt()
            return len(trainings.halted) == 4

        until(four, "four trainings at once")
        assert sorted(trainings.halted.values()) == ["0", "1", "2", "3"]
        crashed, device = list(trainings.halted.items())[1]
        os.kill(crashed, signal.SIGKILL)
        until(trainings.halt, "the next training")
        next_one = list(trainings.halted)[-1]
        assert trainings.halted[next_one] == device
        until(lambda: len(trainings.held()) == 4, "the fourth device's lock")
        for pid in set(trainings.halted) - {crashed}:
            os.kill(pid, signal.SIGCONT)
        status = job.wait(timeout=WITHIN_S)
        said = (suite.folder / "snakemake.out").read_text()
    assert status == 0, said
    assert said.count("Trying to restart job") == 1
    for name in RUNS:
        assert (suite.folder / "results" / name / "encoder.safetensors").is_file()
    until(lambda: not trainings.held(), "the end of all leases")
