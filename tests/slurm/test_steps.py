"""What befalls other steps than a training on one machine (test_faults.py), and other profiles.

Each step is halted in its middle (SIGSTOP), then its fault happens. All must end, by themselves, as
they do undisturbed.
"""

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.conftest import Cluster, SlurmWorkflow
from tests.slurm.test_faults import (
    STEPS,
    WITHIN_S,
    Run,
    cancel,
    preempt,
    running,
    until,
)
from tests.workflow.conftest import Workflow, miniature

ENCODER = Path("results/dora/encoder.safetensors")
FEATURES = Path("results/dora/embeddings/digits-test.safetensors")
VIDEO = Path("data/shards/talk/carphone.json")
WORDS = ("--set-threads", "train=1", "embed=1")


def suite() -> dict:
    config = miniature()
    dora = config["runs"]["dora"]
    training = {**dora["training"], "max_steps": STEPS, "checkpoint_minutes": 0.0001}
    config["runs"] = {"dora": dora | {"training": training}}
    return config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Workflow:
    """The same beside Slurm."""
    workflow = Workflow(tmp_path_factory.mktemp("undisturbed"))
    workflow.configure(suite())
    outcome = workflow.run(str(FEATURES), *WORDS)
    assert outcome.code == 0, outcome.text
    return workflow


@dataclass
class Step(Run):
    """The only step of a rule, or of a group.

    Attributes:
        verb: of `timewalk`, where the rule's name is another one.
    """

    verb: str = ""

    def submitted(self) -> list[dict[str, str]]:
        out = (self.folder / "snakemake.out").read_text()
        jobs = self.cluster.jobs(re.findall(r"SLURM run ID: (\S+)", out)[0])
        # A group's comment has no names.
        ours = re.compile(rf"rule_{self.name}(_wildcards_.*)?")
        return [job for job in jobs if ours.fullmatch(job["comment"])]

    def halt_where(self, reached: Callable[[], bool]) -> bool:
        """Halt it where it has come so far; return whether it has."""
        if not reached():
            return False
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                program = [Path(word).name for word in words[1:2]] == ["timewalk"]
                ours = process.cwd() == str(self.folder) and (self.verb or self.name) in words
                if program and ours:
                    os.kill(process.pid, signal.SIGSTOP)
                    return True
        return False

    def restarts(self) -> int:
        about = self.cluster.call("scontrol", "show", "job", self.job)
        return int(about.split("Restarts=")[1].split()[0])


def copy_without(undisturbed: Workflow, folder: Path, *paths: str) -> None:
    """Copy what was done undisturbed, less some folders."""
    shutil.copytree(undisturbed.folder, folder, dirs_exist_ok=True, symlinks=True)
    for path in paths:
        shutil.rmtree(folder / path)


def preempted(slurm: Cluster, folder: Path, verb: str, target: Path, begun: Callable) -> None:
    """Have a step preempted through `--profile slurm/preemptible` as it is shipped.

    It ends in the job that it began in, so without using up a retry.
    """
    workflow = SlurmWorkflow(folder, slurm, "slurm/preemptible")
    step = Step(verb, slurm, folder)
    with running(workflow.command(str(target), *WORDS), workflow) as job:
        until(lambda: step.halt_where(begun), f"the middle of {verb}")
        preempt(step)
        status = job.wait(timeout=WITHIN_S)
    assert status == 0, (folder / "snakemake.out").read_text()
    (only,) = step.submitted()
    assert (only["state"], only["partition"]) == ("COMPLETED", "preempt")
    assert step.restarts() == 1


def test_a_training_is_preempted(slurm, tmp_path, undisturbed):
    copy_without(undisturbed, tmp_path, "results", "logs")
    checkpoints = tmp_path / "results" / "dora" / "checkpoints"
    preempted(slurm, tmp_path, "train", ENCODER, lambda: any(checkpoints.glob("step-*")))
    log = (tmp_path / "logs" / "results" / "train-dora.log").read_text()
    assert "going on from step" in log
    assert (tmp_path / ENCODER).read_bytes() == (undisturbed.folder / ENCODER).read_bytes()


@pytest.mark.soak
def test_an_embedding_is_preempted(slurm, tmp_path, undisturbed):
    copy_without(undisturbed, tmp_path, "results/dora/embeddings", "logs")
    log = tmp_path / "logs" / "results" / "embed-dora-digits-test.log"

    def begun() -> bool:
        """Return whether it runs; it has not imported torch then."""
        return log.is_file() and "on GPU" in log.read_text()

    preempted(slurm, tmp_path, "embed", FEATURES, begun)
    features, theirs = (load_file(root / FEATURES) for root in (tmp_path, undisturbed.folder))
    assert features.keys() == theirs.keys()
    assert all(torch.equal(features[key], theirs[key]) for key in theirs)


@pytest.mark.soak
def test_a_group_is_cancelled(slurm, tmp_path, undisturbed):
    copy_without(undisturbed, tmp_path, "results", "logs", "data/frames", "data/shards")
    workflow = SlurmWorkflow(tmp_path, slurm)
    group = Step("video_frames_shards", slurm, tmp_path, verb="frames")
    with running(workflow.command(str(VIDEO)), workflow) as job:
        until(lambda: group.halt_where(lambda: True), "the frames")
        cancel(group)
        status = job.wait(timeout=WITHIN_S)
    assert status == 0, (tmp_path / "snakemake.out").read_text()
    assert [one["state"] for one in group.submitted()] == ["CANCELLED", "COMPLETED"]
    for pattern in ("data/frames/**/*.jpg", "data/shards/**/*.tfrecord"):
        found = sorted(undisturbed.folder.glob(pattern))
        assert found
        for path in found:
            ours = tmp_path / path.relative_to(undisturbed.folder)
            assert ours.read_bytes() == path.read_bytes()
