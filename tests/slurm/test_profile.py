"""`--profile slurm` on a real Slurm: every stage of the graph is a job that holds what it asks for.

One workflow with three trainings: two at once on a GPU each, and one on two machines with two GPUs
each, which ends at the encoder of the first. Each rule once where that will do: a job starts
Snakemake twice, and costs ten seconds of a core.
"""

import copy
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.slurm import conftest
from tests.slurm.conftest import HERE, IMPOSSIBLE, SlurmWorkflow
from tests.workflow.conftest import ROOT, miniature
from tests.workflow.test_dense_transfer import suite as dense_suite

TARGETS = [
    "results/dora/card.md",
    "results/summary.csv",
    "results/other/encoder.safetensors",
    "results/pair/encoder.safetensors",
    "results/dora/embeddings/digits-test.safetensors",
    "results/dora/finetuned/parse/network.safetensors",
    "data/shards/stills/folders.json",
]


def suite() -> dict:
    """Return a suite in which every rule of the demo has a job."""
    config = miniature()
    dora = config["runs"]["dora"]
    dora["training"].update(batch_size=4, max_steps=2)
    dora["encoder"] = {**dora["encoder"], "drop_path": 0.0}
    other, pair = copy.deepcopy(dora), copy.deepcopy(dora)
    other["seed"], pair["nodes"] = 1, 2
    dense = dense_suite()
    return {
        **config,
        "datasets": {**config["datasets"], "stills": {"folders": "stills"}},
        "labelled": {**config["labelled"], "scenes": dense["labelled"]["scenes"]},
        "runs": {"dora": dora, "other": other, "pair": pair},
        "finetuning": {"parse": dense["finetuning"]["parse"]},
        "evaluations": {
            "attention": {
                **{"kind": "attention", "dataset": "digits", "runs": ["dora"]},
                **{"images": 1, "size": 32},
            }
        },
    }


def two_gpus_a_machine(folder: Path) -> Path:
    """Return a profile as a user makes it of the one here: with one line edited."""
    text = (ROOT / "slurm" / "config.yaml").read_text()
    assert text.count('train_nodes: { gres: "gpu:1",') == 1
    folder.mkdir()
    edited = text.replace('train_nodes: { gres: "gpu:1",', 'train_nodes: { gres: "gpu:2",')
    (folder / "config.yaml").write_text(edited)
    return folder


@pytest.fixture(scope="module")
def done(slurm, tmp_path_factory):
    workflow = SlurmWorkflow(tmp_path_factory.mktemp("profile"), slurm)
    workflow.forked = True
    workflow.profile = two_gpus_a_machine(workflow.folder / "mine")
    stills = workflow.folder / "stills" / "walk"
    stills.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((40, 50, 3), 60 * number, np.uint8)).save(stills / f"{number}.png")
    workflow.configure(suite())
    outcome = workflow.run(*TARGETS)
    assert outcome.code == 0, outcome.text
    workflow.text = outcome.text
    name = re.search(r"SLURM run ID: (\S+)", outcome.text)
    assert name, outcome.text
    workflow.jobs = {job["comment"]: job for job in slurm.jobs(name[1])}
    return workflow


def provenance(workflow, run):
    about = json.loads((workflow.folder / "results" / run / "encoder.json").read_text())
    return about["provenance"]


def test_every_stage_is_a_slurm_job(done):
    rules = {comment.split("_wildcards_")[0] for comment in done.jobs}
    plain = [
        "download",
        "folders",
        "prepare",
        "train",
        "train_nodes",
        "finetune",
        "embed",
        "evaluate",
    ]
    assert {f"rule_{name}" for name in plain} <= rules
    assert {job["state"] for job in done.jobs.values()} == {"COMPLETED"}
    local = set(re.findall(r"^localrule (\w+):", done.text, re.MULTILINE))
    assert local == {"card", "report"}
    summary = (done.folder / "results" / "summary.csv").read_text()
    assert "attention" in summary


def test_frames_and_shards_of_a_video_are_one_job(done):
    groups = [job for comment, job in done.jobs.items() if "_frames_shards" in comment]
    assert len(groups) == 1, done.jobs
    group = groups[0]
    # The larger of both, not their sum; the hours of both.
    assert (group["cpus"], group["memory"], group["limit"]) == ("8", "8000M", "1-12:00:00")
    steps = int(re.search(r"of (\d+) steps", done.text)[1])
    assert len(done.jobs) == steps - len(re.findall("^localrule", done.text, re.MULTILINE)) - 1


def test_each_training_has_a_device_of_its_own(done):
    held = {}
    for run in ("dora", "other"):
        job = done.jobs[f"rule_train_wildcards_{run}"]
        device = re.search(
            r"on GPU (\S+) of \S+, chosen by Slurm", done.log(f"results/train-{run}")
        )
        held[run] = (job["nodes"], device[1])
    assert held["dora"] != held["other"]
    for comment in ("rule_download_wildcards_carphone", "rule_folders_wildcards_stills"):
        assert done.jobs[comment]["gres"] == "N/A"


def test_logs_are_where_the_rules_say(done):
    names = ["data/download-carphone", "data/frames-talk-carphone", "data/shards-talk-carphone"]
    names += ["data/folders-stills", "data/prepare-digits", "results/embed-dora-digits-test"]
    names += ["results/train-pair", "results/finetune-dora-parse"]
    names += ["results/evaluate-dora-attention"]
    for name in names:
        assert (done.folder / "logs" / f"{name}.log").is_file(), name
    # What Slurm itself kept is of failed jobs.
    assert not list((done.folder / ".snakemake" / "slurm_logs").rglob("*.log"))


def test_states_are_read_without_accounting(done):
    words = ["sacct", "-X"]
    asked = subprocess.run(words, env=done.environment(), capture_output=True, text=True)
    assert asked.returncode == 1
    assert "accounting storage is disabled" in asked.stderr


def test_a_training_on_two_machines_is_that_of_one(done):
    job = done.jobs["rule_train_nodes_wildcards_pair"]
    # Cores and memory are those of both.
    assert (job["nodes"], job["gres"], job["cpus"]) == ("node[1-2]", "gres:gpu:2", "16")
    assert provenance(done, "pair")["processes"] == 4
    assert provenance(done, "dora")["processes"] == 1
    one, two = (
        load_file(done.folder / "results" / run / "encoder.safetensors") for run in ("dora", "pair")
    )
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6)


def test_without_root_there_is_no_cluster_and_the_script_says_so(slurm, tmp_path):
    """The tests of this folder are then skipped."""
    nobody = 65534
    with (HERE / "start.sh").open() as script:
        words = ["bash", "-s", str(tmp_path / "none")]
        done = subprocess.run(words, stdin=script, user=nobody, capture_output=True, text=True)
    assert done.returncode == IMPOSSIBLE
    assert "run as root" in done.stderr


@pytest.mark.parametrize(
    ("needed", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_who_needs_a_cluster_does_not_go_without(tmp_path, monkeypatch, needed, outcome):
    script = tmp_path / "start.sh"
    script.write_text(f"#!/bin/sh\necho no network\nexit {IMPOSSIBLE}\n")
    script.chmod(0o755)
    monkeypatch.setattr(conftest, "HERE", tmp_path)
    monkeypatch.setenv("TIMEWALK_NEED_SLURM", needed)
    with pytest.raises(outcome, match=r"SLURM IS MISSING.* no network"):
        conftest.start(tmp_path)


def test_a_cluster_of_killed_tests_is_taken_down(slurm, tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    running = int((slurm.state / "owner").read_text())
    for name, owner in {"dead": killed.pid, "alive": running, "new": ""}.items():
        state = tmp_path / f"{conftest.PREFIX}{name}"
        (state / "run").mkdir(parents=True)
        (state / "env.sh").touch()
        (state / "owner").write_text(str(owner))
    conftest.remove_abandoned(tmp_path)
    left = {path.name.removeprefix(conftest.PREFIX) for path in tmp_path.iterdir()}
    assert left == {"alive", "new"}


def test_a_second_call_submits_nothing(done):
    outcome = done.run(*TARGETS)
    assert outcome.code == 0, outcome.text
    assert "Nothing to be done" in outcome.text
