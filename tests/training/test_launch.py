"""`timewalk train` with several devices: torchrun on pretend GPUs, signals, kills and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.data.conftest import make_frames  # noqa: F401 - a fixture
from timewalk.data.shards import write_shards
from timewalk.errors import UserError
from timewalk.methods import get_method
from timewalk.training import launch
from timewalk.training.checkpoint import checkpoints
from timewalk.training.distributed import Processes, processes
from timewalk.training.launch import torchrun


@pytest.fixture
def manifest(make_frames, tmp_path):  # noqa: F811
    shards = tmp_path / "shards" / "walk.json"
    write_shards(make_frames(count=24), shards, "tfrecord")
    return shards


def settings(**training):
    keys = get_method("dino").Config.miniature()
    steps = {"batch_size": 4, "epochs": 3, "warmup_epochs": 0, "precision": "fp32"}
    keys["training"] = {**keys["training"], **steps, **training}
    keys["encoder"] = {**keys["encoder"], "drop_path": 0.0}
    return keys


def start(manifest, output, keys, devices="0,1", **popen):
    words = ["train", "walk", str(output), "--settings", json.dumps(keys), "--gpus", "2"]
    command = [sys.executable, "-m", "timewalk.cli", *words, "--threads", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--shards", str(manifest)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def finish(process, code=0):
    text, _ = process.communicate(timeout=240)
    assert process.returncode == code, text
    return text


def wait_for_checkpoint(folder, process):
    limit = time.monotonic() + 120
    while not checkpoints(folder / "checkpoints"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


def children(pid):
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@pytest.mark.slow
def test_two_devices_give_the_encoder_of_one(manifest, tmp_path):
    keys = settings(optimizer="sgd", learning_rate=3.2, clip_grad=0.3)
    finish(start(manifest, tmp_path / "one", keys, devices="0"))
    finish(start(manifest, tmp_path / "two", keys, devices="0,1"))
    one, two = (load_file(tmp_path / n / "encoder.safetensors") for n in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-6)
    for name, size in (("one", 1), ("two", 2)):
        about = json.loads((tmp_path / name / "encoder.json").read_text())
        assert about["provenance"]["processes"] == size


@pytest.mark.slow
def test_a_signal_ends_all_with_a_checkpoint_and_a_kill_leaves_nobody(manifest, tmp_path):
    keys = settings(epochs=40, checkpoint_minutes=0.001)
    finish(start(manifest, tmp_path / "whole", keys))

    stopped = start(manifest, tmp_path / "parts", keys)
    wait_for_checkpoint(tmp_path / "parts", stopped)
    stopped.send_signal(signal.SIGUSR1)
    assert "stopped by a signal after step" in finish(stopped, 75)

    killed = start(manifest, tmp_path / "parts", keys)
    before = checkpoints(tmp_path / "parts" / "checkpoints")[-1]
    while checkpoints(tmp_path / "parts" / "checkpoints")[-1] == before:
        assert killed.poll() is None
        time.sleep(0.05)
    family = children(killed.pid)
    assert len(family) >= 3
    killed.kill()
    killed.communicate()
    limit = time.monotonic() + 30
    while any(alive(pid) for pid in family):
        assert time.monotonic() < limit
        time.sleep(0.1)

    finish(start(manifest, tmp_path / "parts", keys))
    files = [(tmp_path / n / "encoder.safetensors").read_bytes() for n in ("whole", "parts")]
    assert files[0] == files[1]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_mistake_seen_by_the_processes_is_one_sentence(manifest, tmp_path):
    text = finish(start(manifest, tmp_path / "run", settings(batch_size=3)), 1)
    sentence = text.strip().splitlines()[-1]
    assert sentence.startswith("timewalk train: training.batch_size 3 does not divide among 2")
    assert "use 1 GPU(s)" in sentence


def test_processes_that_hear_no_signal_do_not_outlive_a_failed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "POLL_S", 0.05)
    monkeypatch.setattr(launch, "GRACE_S", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    agent = subprocess.Popen([sys.executable, "-c", deaf])
    (tmp_path / "error").write_text("one has failed")
    assert launch._wait(agent, tmp_path / "error") == -signal.SIGKILL


def test_who_am_i():
    assert processes({}) is None
    torchrun_made = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert processes(torchrun_made) == Processes(3, 4, 1)
    # A batch script knows of its allocation's tasks, but it is none of them.
    script = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert processes(script) is None
    step = {**script, "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}
    assert processes(step) == Processes(2, 4, 0)


def test_several_machines_go_through_srun(monkeypatch):
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "77"}
    for key, value in slurm.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(launch, "first_host", lambda nodes: "node1")
    command = torchrun(4, 2)
    assert command[0] == "srun"
    text = " ".join(command)
    assert "--nodes 2 --ntasks 2 --ntasks-per-node 1" in text
    assert "--nproc-per-node 4" in text
    assert "--rdzv-endpoint node1:20077" in text
    with pytest.raises(UserError, match=r"nodes is 3 but this job holds 2 machine"):
        torchrun(4, 3)


def test_one_machine_needs_no_meeting_point():
    assert torchrun(2, 1)[-1] == "--standalone"
