"""Training as the workflow runs it: several processes, and a signal that it goes on from."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import Workflow, miniature
from timewalk.training.checkpoint import checkpoints

ENCODER = "results/dora/encoder.safetensors"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite whose frames are there, faces not blurred."""
    workflow = Workflow(tmp_path_factory.mktemp("training"), forked=False)
    configure(workflow, 4)
    outcome = workflow.run("data")
    assert outcome.code == 0, outcome.text
    return workflow


@pytest.fixture
def devices(short_folder):
    """Two pretend devices, leased in a folder of this test's own."""
    return {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": short_folder}


def configure(workflow, steps):
    config = miniature()
    config["blur"] = "off"
    config["runs"]["dora"]["training"] |= {"max_steps": steps, "checkpoint_minutes": 0.001}
    workflow.configure(config)


@pytest.mark.slow
def test_a_signalled_job_is_retried_and_goes_on(suite, devices):
    # A step takes a tenth of a second or more: the signal comes before the last one.
    configure(suite, 100)
    command = suite.command("--nolock", ENCODER)
    job = subprocess.Popen(
        command,
        cwd=suite.folder,
        env=suite.environment() | devices,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = suite.folder / "results" / "dora" / "checkpoints"
    limit = time.monotonic() + 300
    try:
        while not checkpoints(folder):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        os.kill(trainer_of(job.pid), signal.SIGTERM)
        text, _ = job.communicate(timeout=600)
    finally:
        if job.poll() is None:
            for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    assert job.returncode == 0, text
    assert "Trying to restart job" in text, text
    assert "going on from step" in suite.log("results/train-dora")
    about = json.loads((suite.folder / "results" / "dora" / "encoder.json").read_text())
    assert about["provenance"]["steps"] == 100


def trainer_of(parent):
    """Return the pid of `timewalk train` below `parent`: its workers, forks of it, come later."""
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = child.cmdline()
            if len(words) > 1 and Path(words[1]).name == "timewalk":
                return child.pid
    raise AssertionError("the training has ended before it was signalled")


@pytest.mark.slow
def test_as_many_processes_as_the_rule_has_gpus(suite, devices):
    configure(suite, 4)
    subprocess.run(["rm", "-rf", "results/dora"], cwd=suite.folder, check=True)
    words = ["--resources", "gpu=2", "--set-resources", "train:gpu=2"]
    outcome = suite.run(ENCODER, *words, environment=devices)
    assert outcome.code == 0, outcome.text
    about = json.loads((suite.folder / "results" / "dora" / "encoder.json").read_text())
    assert about["provenance"]["processes"] == 2
