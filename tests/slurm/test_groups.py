"""Several evaluations in one job, by the lines that `slurm/config.yaml` holds behind a `#`.

The encoder and its features are made beside Slurm: what is looked at are the evaluations.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.conftest import SlurmWorkflow
from tests.workflow.conftest import ROOT, TINY, Workflow

GROUPED = ("knn1", "knn5", "knn20")
"""evaluations without a GPU"""
KNN = {"kind": "knn", "dataset": "digits"}
ATTENTION = {"kind": "attention", "dataset": "digits", "images": 1, "size": 32}
EVALUATIONS = {name: KNN | {"k": [int(name[3:])]} for name in GROUPED} | {"attention": ATTENTION}


def suite() -> dict:
    return {
        "labelled": {"digits": {"kind": "arrays", "path": "digits", "resize": 32, "crop": 32}},
        "runs": {"random": {"method": "random", "encoder": TINY}},
        "evaluations": dict(EVALUATIONS),
    }


def with_groups(folder: Path) -> Path:
    """Return the profile with the lines that have evaluations share a job, those on GPUs too."""
    lines = (ROOT / "slurm" / "config.yaml").read_text().splitlines()
    switched = [re.sub(r"^# (group-components|keep-incomplete):", r"\1:", line) for line in lines]
    assert sum(one != other for one, other in zip(lines, switched, strict=True)) == 2
    folder.mkdir()
    text = "\n".join(switched)
    both = text.replace("{ features: 8 }", "{ features: 8, images: 3 }")
    assert both != text
    (folder / "config.yaml").write_text(both)
    return folder


def result(workflow: Workflow, name: str) -> Path:
    return workflow.folder / "results" / "random" / f"{name}.json"


def targets(*names: str) -> list[str]:
    return [f"results/random/{name}.json" for name in names]


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> Workflow:
    """The evaluations' results beside Slurm."""
    workflow = Workflow(tmp_path_factory.mktemp("beside"))
    workflow.configure(suite())
    outcome = workflow.run(*targets(*EVALUATIONS))
    assert outcome.code == 0, outcome.text
    return workflow


@pytest.fixture
def grouped(beside, slurm_workflow) -> SlurmWorkflow:
    """A folder that lacks the evaluations alone, and the profile that has them share a job."""
    subprocess.run(["cp", "-a", f"{beside.folder}/.", slurm_workflow.folder], check=True)
    for name in EVALUATIONS:
        result(slurm_workflow, name).unlink()
    slurm_workflow.forked = True
    slurm_workflow.profile = with_groups(slurm_workflow.folder / "mine")
    return slurm_workflow


def metrics(workflow: Workflow, name: str) -> dict:
    return json.loads(result(workflow, name).read_text())["metrics"]


def jobs(workflow: SlurmWorkflow, text: str) -> list[dict[str, str]]:
    name = re.search(r"SLURM run ID: (\S+)", text)
    assert name, text
    return workflow.cluster.jobs(name[1])


def test_the_lines_group_the_evaluations_by_what_they_hold(tmp_path):
    workflow = Workflow(tmp_path)
    workflow.configure(suite())
    profile = with_groups(tmp_path / "mine")
    outcome = workflow.run(*targets(*EVALUATIONS), "--dry-run", "--profile", str(profile))
    assert outcome.code == 0, outcome.text
    assert [outcome.text.count(f"Group job {name} ") for name in ("features", "images")] == [1, 1]
    single = workflow.run(*targets(*EVALUATIONS), "--dry-run", "--profile", str(ROOT / "slurm"))
    assert single.code == 0, single.text
    assert "Group job" not in single.text


@pytest.mark.soak
def test_evaluations_without_a_gpu_share_a_job(beside, grouped):
    outcome = grouped.run(*targets(*GROUPED))
    assert outcome.code == 0, outcome.text
    for name in GROUPED:
        assert metrics(grouped, name) == metrics(beside, name)
    (job,) = jobs(grouped, outcome.text)
    # The cores and the memory of one, the hours of the three.
    assert (job["cpus"], job["memory"], job["limit"]) == ("4", "16000M", "1-12:00:00")
    assert (job["state"], job["gres"]) == ("COMPLETED", "N/A")


@pytest.mark.soak
def test_evaluations_with_a_gpu_share_a_job_and_the_gpu(grouped):
    """At once, two would ask for two GPUs, and for all the cores of both twice."""
    config = suite()
    config["evaluations"]["again"] = ATTENTION | {"images": 2}
    grouped.configure(config)
    outcome = grouped.run(*targets("attention", "again", *GROUPED))
    assert outcome.code == 0, outcome.text
    found = {job["comment"]: job for job in jobs(grouped, outcome.text)}
    assert len(found) == 2, found
    (job,) = (job for comment, job in found.items() if "images" in comment)
    assert (job["cpus"], job["memory"], job["limit"]) == ("16", "62.50G", "4-00:00:00")
    about = grouped.cluster.call("scontrol", "show", "job", job["id"])
    assert "TresPerJob=gres:gpu:1\n" in about


@pytest.mark.soak
def test_a_failure_takes_no_result_of_its_group_along(beside, grouped):
    stand_in = grouped.folder / "bin" / "timewalk"
    stand_in.parent.mkdir()
    path = grouped.environment()["PATH"]
    real = shutil.which("timewalk", path=path)
    stand_in.write_text(f'#!/bin/sh\ncase "$*" in *knn5*) exit 1 ;; esac\nexec {real} "$@"\n')
    stand_in.chmod(0o755)
    failing = {"PATH": f"{stand_in.parent}:{path}"}
    made: dict[str, int] = {}
    # Each call makes at least what comes before the failing one.
    for _ in range(3):
        outcome = grouped.run(*targets(*GROUPED), "--retries", "0", environment=failing)
        assert outcome.code != 0, outcome.text
        there = [name for name in GROUPED if result(grouped, name).exists()]
        now = {name: result(grouped, name).stat().st_mtime_ns for name in there}
        assert now == now | made, "a result is gone, or was made again"
        made = now
    assert "knn5" not in made
    outcome = grouped.run(*targets(*GROUPED))
    assert outcome.code == 0, outcome.text
    for name in GROUPED:
        assert metrics(grouped, name) == metrics(beside, name)
