"""How often a failed job is started again: a training as was asked for, wherever that was, or
twice; any other job once, where anything was asked for."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.workflow.conftest import ROOT, TINY, Workflow, miniature
from timewalk.report import failures

PREEMPTIBLE = str(ROOT / "slurm" / "preemptible")
CALLS = [
    ([], {}, 2, 0),
    (["--retries", "0"], {}, 0, 0),
    (["--retries=7"], {}, 7, 1),
    (["-T5"], {}, 5, 1),
    (["--executor", "slurm", "--jobs", "1"], {}, 2, 0),
    (["--profile", str(ROOT / "slurm")], {}, 2, 1),
    (["--profile", PREEMPTIBLE], {}, 20, 1),
    (["--profile", PREEMPTIBLE, "--retries", "0"], {}, 0, 0),
    (["--workflow-profile", PREEMPTIBLE], {}, 20, 1),
    ([], {"SNAKEMAKE_PROFILE": PREEMPTIBLE}, 20, 1),
]
# Snakemake, as far as the rules.
SCRIPT = """
import json, os, sys
from snakemake.api import DAGApi
from snakemake.cli import main

def execute(api, execution_settings, remote_execution_settings, **others):
    workflow = api.workflow_api._workflow
    workflow.execution_settings = execution_settings
    workflow.remote_execution_settings = remote_execution_settings
    workflow.globals["limit_retries"]()
    trainings = {"train", "train_nodes", "finetune", "finetune_nodes"}
    of = {True: set(), False: set()}
    for rule in workflow.rules:
        of[rule.name in trainings].add(rule.restart_times)
    found.append([sorted(of[True]), sorted(of[False])])
    sys.exit()

DAGApi.execute_workflow = execute
found = []
for words, environment in json.load(sys.stdin):
    os.environ.update(environment)
    sys.argv[1:] = words
    try:
        main(words)
    except SystemExit:
        pass
    for key in environment:
        del os.environ[key]
print("found", json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[list[list[int]]]:
    """The different retries of the rules that train, and of all others, for each call."""
    workflow = Workflow(tmp_path_factory.mktemp("retries"))
    workflow.configure({"runs": {}, "evaluations": {}})
    options = ["-n", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "suite.yaml"]
    calls = [([*words, *options], environment) for words, environment, *_ in CALLS]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(calls),
        cwd=workflow.folder,
        env={key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("found ")[2])


def test_retries_are_as_many_as_asked_for(found):
    assert found == [[[trainings], [others]] for _, _, trainings, others in CALLS]


def test_a_mistake_is_made_again_once_and_a_trainings_as_often_as_asked_for(workflow):
    config = miniature()
    config["labelled"]["digits"]["path"] = "missing.npz"
    config["runs"] = {"given": {"method": "pretrained", "encoder": TINY | {"weights": "none.pth"}}}
    workflow.configure(config)
    targets = ["data/datasets/digits/manifest.json", "results/given/encoder.safetensors"]
    outcome = workflow.run(*targets, "--retries", "3", "--keep-going")
    assert outcome.code == 1, outcome.text
    logs = [workflow.log(name) for name in ("data/prepare-digits", "results/train-given")]
    assert [log.count(failures.BEGINS) for log in logs] == [2, 4]
    assert [len(re.findall("^timewalk ", log, re.MULTILINE)) for log in logs] == [2, 4], logs
