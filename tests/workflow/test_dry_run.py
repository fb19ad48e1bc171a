"""The paper's suite: the whole graph without any data; mistakes before the first job."""

import subprocess
import sys

import pytest

from tests.workflow.conftest import ROOT, Workflow


def paper(*words, cwd=ROOT):
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "8", "--nolock", *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def counts(text):
    """Return the job table of a dry run."""
    table = text.split("Job stats:")[1].strip().splitlines()[2:]
    rows = (line.split() for line in table)
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def test_the_users_first_call(tmp_path):
    code, text = paper(
        "--resources",
        "gpu=4",
        "-d",
        str(tmp_path),
        "results/dora/knn.json",
        "--configfile",
        str(ROOT / "config.yaml"),
    )
    assert code == 0, text
    assert counts(text) == {
        "download": 1,
        "frames": 1,
        "shards": 1,
        "train": 1,
        "prepare": 1,
        "embed": 2,
        "evaluate": 1,
        "total": 8,
    }


def test_all_ten_tours(tmp_path):
    code, text = paper(
        "-d",
        str(tmp_path),
        "results/dora_wt_all/knn.json",
        "--configfile",
        str(ROOT / "config.yaml"),
    )
    assert code == 0, text
    assert counts(text)["download"] == counts(text)["shards"] == 10


def test_config_yaml_is_the_default():
    code, text = paper("results/dora_300ep/knn.json", "--forceall")
    assert code == 0, text
    assert counts(text)["train"] == 1


@pytest.mark.parametrize("where", ["video", "frames"])
def test_where_the_blur_is(tmp_path, where):
    workflow = Workflow(tmp_path)
    workflow.configure(
        {
            "blur": {"where": where},
            "datasets": {"walk": {"videos": ["venice"]}},
            "runs": {"dora": {"method": "dora", "dataset": "walk"}},
        }
    )
    outcome = workflow.run("data", "-n")
    assert outcome.code == 0, outcome.text
    assert ("blur" in counts(outcome.text)) == (where == "video")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["results/dorra/knn.json"], "unknown run 'dorra'; did you mean 'dora'?"),
        (["results/dora/knnn.json"], "unknown evaluation 'knnn'; did you mean 'knn'?"),
        (["--config", "blurr=off"], "blurr: unknown key; did you mean 'blur'?"),
    ],
)
def test_a_typo_is_one_sentence_before_the_first_job(words, message):
    code, text = paper(*words)
    assert code == 1
    assert message in text
    assert "Traceback" not in text


def test_an_out_of_range_number(tmp_path):
    workflow = Workflow(tmp_path)
    workflow.configure({"blur": {"threshold": 3}})
    outcome = workflow.run("-n")
    assert outcome.code == 1
    assert "blur.threshold is 3" in outcome.text
    assert "Traceback" not in outcome.text
