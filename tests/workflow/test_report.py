"""The page of a suite that is done, of one that has failed, and Snakemake's own report."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.report import results
from tests.report.mirrored import KINDS, make_run
from tests.workflow.conftest import Workflow, miniature


def rows(page):
    return re.findall(r'<tr data-row="([^"]+)"', re.search(r"<table id.*?</table>", page, re.S)[0])


def states(page):
    """Return the states of the cells of the square."""
    square = re.search(r"<table id.*?</table>", page, re.DOTALL)[0]
    return re.findall(r'<td class="([^"]+)"', square)


def text_of(workflow):
    return (workflow.folder / "results" / "report.html").read_text()


@pytest.fixture(scope="module")
def failed(finished, tmp_path_factory):
    """The miniature with one more evaluation, which fails for one of two runs."""
    folder = tmp_path_factory.mktemp("failed")
    shutil.copytree(finished.folder, folder, symlinks=True, dirs_exist_ok=True)
    workflow = Workflow(folder)
    config = miniature()
    config["evaluations"]["nearest"] = {"kind": "knn", "dataset": "digits", "k": [7]}
    workflow.configure(config)
    (folder / "results" / "dora" / "nearest").write_text("a file where a folder is needed")
    return workflow, workflow.run("all", "--keep-going")


def test_the_page_of_a_finished_suite(finished):
    page = text_of(finished)
    assert rows(page) == ["random", "dora"]
    assert states(page) == ["value", "value"]
    assert "Every result that the suite asks for is here." in page
    assert page.count('src="data:image/png;base64,') == 4  # what the method sees in four clips


def test_a_failed_suite_has_a_page(failed):
    workflow, outcome = failed
    assert outcome.code == 1
    assert "results/report.html shows what is done and what has failed." in outcome.text
    assert "Error in rule evaluate" in outcome.text
    page = text_of(workflow)
    assert sorted(states(page)) == ["failed", "value", "value", "value"]
    assert "FileExistsError" in page
    assert '<tr id="p-dora-nearest" class="failed"' in page


def test_no_page_hides_why_a_suite_has_failed(failed):
    workflow, _ = failed
    shutil.copytree(workflow.folder, workflow.folder / "copy", symlinks=True)
    copy = Workflow(workflow.folder / "copy")
    page = copy.folder / "results" / "report.html"
    page.unlink()
    (page / "in the way").mkdir(parents=True)
    outcome = copy.run("results/dora/nearest.json")
    assert outcome.code == 1
    assert "Error in rule evaluate" in outcome.text
    said = [line for line in outcome.text.splitlines() if "report.html was not written" in line]
    assert len(said) == 1
    assert "Traceback" not in outcome.text


def test_the_page_is_made_again_when_all_is_done(failed):
    workflow, _ = failed
    (workflow.folder / "results" / "dora" / "nearest").unlink()
    outcome = workflow.run("all")
    assert outcome.code == 0, outcome.text
    page = text_of(workflow)
    assert states(page) == ["value"] * 4
    assert "Every result that the suite asks for is here." in page
    assert "Nothing to be done" in workflow.run("all", "--dry-run").text


def test_the_page_of_a_failure_is_never_taken_as_done(finished, tmp_path):
    """An evaluation is added, fails, and is taken out again: the page goes with it."""
    shutil.copytree(finished.folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    workflow, config = Workflow(tmp_path), miniature()
    assert "Nothing to be done" in workflow.run("all", "--dry-run").text
    config["evaluations"]["nearest"] = {"kind": "knn", "dataset": "digits", "k": [7]}
    workflow.configure(config)
    (tmp_path / "results" / "dora" / "nearest").write_text("a file where a folder is needed")
    assert workflow.run("results/dora/nearest.json").code == 1
    assert 'id="p-dora-nearest"' in text_of(workflow)
    workflow.configure(miniature())
    outcome = workflow.run("all")
    assert outcome.code == 0, outcome.text
    assert "p-dora-nearest" not in text_of(workflow)
    assert states(text_of(workflow)) == ["value", "value"]
    assert "Nothing to be done" in workflow.run("all", "--dry-run").text


def test_a_large_suite_has_tables_and_a_page(workflow):
    """More runs and results than a command line has room for: 128 KiB."""
    config = miniature()
    names = [f"random_{number:02}" for number in range(20)]
    evaluations = [f"knn_{number:02}_{'x' * 170}" for number in range(40)]
    assert sum(len(name) for name in evaluations) * len(names) > 1 << 17
    config["runs"] = dict.fromkeys(names, config["runs"]["random"])
    config["evaluations"] = dict.fromkeys(evaluations, config["evaluations"]["knn"])
    workflow.configure(config)
    for name in names:
        place = results.run(workflow.folder / "results", name, "random")
        (place / "card.md").touch()
        for evaluation in evaluations:
            results.result(place, evaluation, {"top1_k20": 1.0})
    words = ("results/report.html", "results/summary.md", "--allowed-rules", "page", "report")
    outcome = workflow.run(*words)
    assert outcome.code == 0, outcome.text
    assert len(states(text_of(workflow))) == len(names) * len(evaluations)
    assert "Every result that the suite asks for is here." in text_of(workflow)
    assert names[-1] in (workflow.folder / "results" / "summary.md").read_text()
    del config["evaluations"][evaluations[-1]]
    workflow.configure(config)
    assert "rule page" in workflow.run(*words, "--dry-run").text


def test_the_report_of_snakemake_has_our_captions(finished, tmp_path):
    target = tmp_path / "snakemake.html"
    outcome = finished.run("--report", str(target))
    assert outcome.code == 0, outcome.text
    text = target.read_text()
    for said in (
        "learns image encoders from video and measures what they have learned",
        "What the encoder of the run",
        "The square of methods and evaluations, to be sorted and filtered",
        "the best of a column is bold",
        "Model cards",
    ):
        assert said in text


def test_a_deleted_store_is_made_again(workflow):
    config, folder = miniature(), workflow.folder / "results"
    config["runs"] = {"dora": config["runs"]["dora"]}
    workflow.configure(config)
    make_run(folder / "dora")
    words = ("results/mlflow.json", "--allowed-rules", "mlflow")
    for _ in range(2):
        outcome = workflow.run(*words)
        assert outcome.code == 0, outcome.text
        stamp = json.loads((folder / "mlflow.json").read_text())
        with closing(sqlite3.connect(folder / "mlflow.db")) as store:
            rows = store.execute("SELECT artifact_uri FROM runs WHERE status = 'FINISHED'")
            places = [Path(place) for (place,) in rows]
        assert stamp["runs"]["dora"]["mlflow_run"] in [place.parent.name for place in places]
        assert len(places) == len(KINDS)
        assert "Nothing to be done" in workflow.run(*words).text
        (folder / "mlflow.db").unlink()
        shutil.rmtree(folder / "mlartifacts")
        assert "rule mlflow:" in workflow.run(*words, "--dry-run").text
    record = {"own_store": False, "runs": {}}
    (folder / "mlflow.json").write_text(json.dumps(record))
    workflow.run(*words, "--dry-run")
    assert json.loads((folder / "mlflow.json").read_text()) == record  # of a server's
