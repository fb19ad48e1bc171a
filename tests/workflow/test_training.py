"""Training as the workflow runs it: several processes, and a signal that it goes on from."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.workflow.conftest import Workflow, miniature
from timewalk.training.checkpoint import checkpoints

ENCODER = "results/dora/encoder.safetensors"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite whose frames are there, with DoRA of some hundred steps."""
    workflow = Workflow(tmp_path_factory.mktemp("training"))
    config = miniature()
    training = {**config["runs"]["dora"]["training"], "max_steps": 80, "checkpoint_minutes": 0.001}
    config["runs"]["dora"]["training"] = training
    workflow.configure(config)
    outcome = workflow.run("data")
    assert outcome.code == 0, outcome.text
    return workflow


@pytest.mark.slow
def test_a_signalled_job_is_retried_and_goes_on(suite):
    command = suite.command("--nolock", ENCODER)
    job = subprocess.Popen(
        command,
        cwd=suite.folder,
        env=suite.environment() | {"CUDA_VISIBLE_DEVICES": "0,1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = suite.folder / "results" / "dora" / "checkpoints"
    limit = time.monotonic() + 120
    while not checkpoints(folder):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(trainer_of(job.pid), signal.SIGTERM)
    text, _ = job.communicate(timeout=240)
    assert job.returncode == 0, text
    assert "Trying to restart job" in text, text
    assert "going on from step" in suite.log("results/train-dora")
    about = json.loads((suite.folder / "results" / "dora" / "encoder.json").read_text())
    assert about["provenance"]["steps"] == 80


def trainer_of(parent):
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    family = {parent}
    while True:
        found = {int(pid) for pid, ppid, _ in rows if int(ppid) in family} | family
        if found == family:
            break
        family = found
    trainers = [
        int(pid)
        for pid, _, words in rows
        if int(pid) in family
        and "timewalk --log" in words
        and not words.startswith("/bin/")
        and "bash" not in words.split()[0]
    ]
    return trainers[0]


@pytest.mark.slow
def test_as_many_processes_as_the_rule_has_gpus(suite):
    (suite.folder / ENCODER).unlink(missing_ok=True)
    subprocess.run(["rm", "-rf", "results/dora"], cwd=suite.folder, check=True)
    words = ["--resources", "gpu=2", "--set-resources", "train:gpu=2"]
    outcome = suite.run(ENCODER, *words, environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert outcome.code == 0, outcome.text
    about = json.loads((suite.folder / "results" / "dora" / "encoder.json").read_text())
    assert about["provenance"]["processes"] == 2
