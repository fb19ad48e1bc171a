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
from timewalk.training import distributed, launch
from timewalk.training.checkpoint import checkpoints
from timewalk.training.distributed import Processes, processes
from timewalk.training.launch import torchrun, without_step


@pytest.fixture
def manifest(make_frames, tmp_path):  # noqa: F811
    shards = tmp_path / "shards" / "walk.json"
    write_shards(make_frames(count=24), shards, "tfrecord")
    return shards


@pytest.fixture(autouse=True)
def devices_of_their_own(monkeypatch, short_folder):
    """Lease devices in a folder that no other test waits for."""
    monkeypatch.setenv("TMPDIR", short_folder)


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
    text, _ = process.communicate(timeout=600)
    assert process.returncode == code, text
    return text


def test_shards_that_a_list_names(manifest, tmp_path):
    other, listed = manifest.with_name("other.json"), tmp_path / "shards.txt"
    about = json.loads(manifest.read_text())
    other.write_text(json.dumps(about))
    listed.write_text(f"{manifest}\n\n{other}\n")
    output = tmp_path / "walk"
    finish(start(listed, output, settings(max_steps=1), devices=""))
    inputs = json.loads((output / "encoder.json").read_text())["provenance"]["inputs"]
    assert set(inputs) == {str(manifest), str(other)}


def wait_for_checkpoint(folder, process):
    limit = time.monotonic() + 300
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
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)
    for name, size in (("one", 1), ("two", 2)):
        about = json.loads((tmp_path / name / "encoder.json").read_text())
        assert about["provenance"]["processes"] == size


@pytest.mark.slow
def test_a_signal_ends_all_with_a_checkpoint_and_a_kill_leaves_nobody(manifest, tmp_path):
    keys = settings(epochs=40)
    often = settings(epochs=40, checkpoint_minutes=0.001)
    finish(start(manifest, tmp_path / "whole", keys))

    stopped = start(manifest, tmp_path / "parts", often)
    wait_for_checkpoint(tmp_path / "parts", stopped)
    stopped.send_signal(signal.SIGUSR1)
    assert "stopped by a signal after step" in finish(stopped, 75)

    killed = start(manifest, tmp_path / "parts", often)
    before = checkpoints(tmp_path / "parts" / "checkpoints")[-1]
    while checkpoints(tmp_path / "parts" / "checkpoints")[-1] == before:
        assert killed.poll() is None
        time.sleep(0.05)
    family = children(killed.pid)
    assert len(family) >= 3
    killed.kill()
    killed.communicate()
    limit = time.monotonic() + 300
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
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(600)"
    )
    agent = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    with agent.stdout:
        assert agent.stdout.readline() == b"deaf\n"
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
    """The step that Snakemake's job runs in names one machine alone: scontrol is asked."""
    shown = {
        ("job", "77"): (
            "JobId=77 JobName=x NumNodes=2 NodeList=node[1-2] BatchHost=node1\n"
            "JobId=78 ArrayJobId=77 NumNodes=1 NodeList=node3 BatchHost=node3"
        ),
        ("hostnames", "node[1-2]"): "node1\nnode2",
        ("hostnames", "node1"): "node1",
        ("node", "node1"): "NodeName=node1 NodeAddr=10.0.0.1",
    }
    monkeypatch.setattr(distributed, "scontrol", lambda *words: shown[words])
    step = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node1", "SLURM_CPUS_PER_TASK": "8"}
    for key, value in step.items():
        monkeypatch.setenv(key, value)
    text = " ".join(torchrun(4, 2))
    assert text.startswith("srun --jobid 77 --nodes 2 --ntasks 2 --cpus-per-task 8 ")
    assert "--ntasks-per-node 1" in text
    assert "--nproc-per-node 4" in text
    assert "--rdzv-endpoint 10.0.0.1:20077" in text
    assert f"--rdzv-id 77-{os.getpid()}" in text
    with pytest.raises(UserError, match=r"nodes is 3 but this job holds 2 machine"):
        torchrun(4, 3)


@pytest.mark.parametrize("answer", ["exit 1", None])
def test_several_machines_need_an_answer_of_scontrol(tmp_path, monkeypatch, answer):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(UserError, match=r"`scontrol .* job 77` has no answer on .* nodes to 1\.$"):
        torchrun(4, 2)


@pytest.mark.parametrize(("name", "serves"), [("node1", "is_host=1"), ("node2", "is_host=0")])
def test_the_first_machine_is_where_they_meet(name, serves):
    words = ["sh", "-c", launch.SERVE, "node1", "printenv", "PET_RDZV_CONF"]
    environment = {"PATH": os.environ["PATH"], "SLURMD_NODENAME": name}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == serves


def test_signals_are_passed_on_once_and_never_to_srun():
    class Agent:
        heard = 0

        def send_signal(self, number):
            self.heard += 1

    for agent, heard in ((Agent(), 1), (None, 0)):
        with launch._forwarded(agent) as received:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM] * 3
        assert (agent.heard if agent else 0) == heard


@pytest.mark.parametrize(("stopped", "code"), [(True, 75), (False, None)])
def test_processes_that_slurm_signals_say_so_themselves(tmp_path, monkeypatch, stopped, code):
    """On several machines the one that started them hears nothing."""
    monkeypatch.chdir(tmp_path)
    note = f'"${launch.ERROR_FILE}"'
    script = f"touch $(dirname {note})/{launch.INTERRUPTED_FILE}; exit 1" if stopped else "exit 1"
    monkeypatch.setattr(launch, "torchrun", lambda *_: ["sh", "-c", script])
    if stopped:
        assert launch.launch(["train"], 1, 2) == code
        return
    with pytest.raises(UserError, match="ended with status 1: see the log"):
        launch.launch(["train"], 1, 2)


def test_several_machines_without_slurm_are_a_mistake(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"nodes is 2 but this job holds 1 machine.*profile slurm"):
        torchrun(1, 2)


def test_srun_does_not_see_the_step_around_it():
    step = {
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "1",
        "SLURM_GPUS": "4",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    kept = {"SLURM_CONF": "/etc/slurm/slurm.conf", "PATH": "/bin", "CUDA_HOME": "/cuda"}
    assert without_step({**step, **kept}) == kept


def test_one_machine_needs_no_meeting_point():
    assert torchrun(2, 1)[-1] == "--standalone"
