"""The page of a suite that is done, of one that has failed, and Snakemake's own report."""

import re
import shutil

import pytest

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
