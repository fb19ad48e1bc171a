"""How often a failed training is started again: as was asked for, wherever that was, or twice."""

import json
import os
import subprocess
import sys

import pytest

from tests.workflow.conftest import ROOT, Workflow

PREEMPTIBLE = str(ROOT / "slurm" / "preemptible")
CALLS = [
    ([], {}, 2),
    (["--retries", "0"], {}, 0),
    (["--retries=7"], {}, 7),
    (["-T5"], {}, 5),
    (["--executor", "slurm", "--jobs", "1"], {}, 2),
    (["--profile", str(ROOT / "slurm")], {}, 2),
    (["--profile", PREEMPTIBLE], {}, 20),
    (["--profile", PREEMPTIBLE, "--retries", "0"], {}, 0),
    (["--workflow-profile", PREEMPTIBLE], {}, 20),
    ([], {"SNAKEMAKE_PROFILE": PREEMPTIBLE}, 20),
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
    workflow.globals["retry_trainings"]()
    rules = [workflow.get_rule(name) for name in ("train", "train_nodes", "finetune")]
    found.append(sorted({rule.restart_times for rule in rules}))
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
def found(tmp_path_factory) -> list[list[int]]:
    """The different retries of the rules that train, for each call."""
    workflow = Workflow(tmp_path_factory.mktemp("retries"))
    workflow.configure({"runs": {}, "evaluations": {}})
    options = ["-n", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "suite.yaml"]
    calls = [([*words, *options], environment) for words, environment, _ in CALLS]
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
    assert found == [[expected] for _, _, expected in CALLS]
