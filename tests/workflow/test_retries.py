"""How often a failed job is started again: what goes on from where it was as a profile says, a
training twice if nothing does; any other job once. A number on the command line is for all."""

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
    ([], {}, 2, 0, 0),
    (["--retries", "0"], {}, 0, 0, 0),
    (["--restart-times", "0"], {}, 0, 0, 0),
    (["--retries=7"], {}, 7, 7, 7),
    (["-T5"], {}, 5, 5, 5),
    (["--executor", "slurm", "--jobs", "1"], {}, 2, 0, 0),
    (["--profile", str(ROOT / "slurm")], {}, 2, 2, 1),
    (["--profile", PREEMPTIBLE], {}, 20, 20, 1),
    (["--profile", PREEMPTIBLE, "--retries", "0"], {}, 0, 0, 0),
    (["--workflow-profile", PREEMPTIBLE], {}, 20, 20, 1),
    ([], {"SNAKEMAKE_PROFILE": PREEMPTIBLE}, 20, 20, 1),
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
    kinds = dict.fromkeys(("train", "train_nodes", "finetune", "finetune_nodes"), 0)
    kinds |= {"blur": 1, "download": 1}
    of = [set(), set(), set()]
    for rule in workflow.rules:
        of[kinds.get(rule.name, 2)].add(rule.restart_times)
    found.append([sorted(each) for each in of])
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
    """The different retries of the rules that train, of others that go on from where they were, and
    of all others, for each call."""
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
    assert found == [[[number] for number in numbers] for _, _, *numbers in CALLS]


def test_a_mistake_is_made_again_once_and_a_trainings_as_often_as_a_profile_says(workflow):
    config = miniature()
    config["labelled"]["digits"]["path"] = "missing.npz"
    config["runs"] = {"given": {"method": "pretrained", "encoder": TINY | {"weights": "none.pth"}}}
    workflow.configure(config)
    targets = ["data/datasets/digits/manifest.json", "results/given/encoder.safetensors"]
    (workflow.folder / "often").mkdir()
    (workflow.folder / "often" / "config.yaml").write_text("retries: 3\n")
    outcome = workflow.run(*targets, "--workflow-profile", "often", "--keep-going")
    assert outcome.code == 1, outcome.text
    logs = [workflow.log(name) for name in ("data/prepare-digits", "results/train-given")]
    assert [log.count(failures.BEGINS) for log in logs] == [2, 4]
    assert [len(re.findall("^timewalk ", log, re.MULTILINE)) for log in logs] == [2, 4], logs
