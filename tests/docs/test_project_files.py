"""What the project says of itself to catalogues, citations and people; its workflow as a module."""

import re
import sys
import tomllib

import pytest
import yaml

from tests.conftest import ROOT
from tests.workflow.conftest import Workflow, miniature

SHIM = str(ROOT / "workflow" / "Snakefile")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_has_what_its_format_requires(project):
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about["cff-version"] == "1.2.0"
    assert about["message"]
    assert about["title"].startswith("timewalk")
    assert about["type"] == "software"
    assert all({"name"} <= set(a) or {"family-names"} <= set(a) for a in about["authors"])
    assert about["version"] == project["version"]
    assert about["license"] == project["license"]
    for reference in about["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all("family-names" in author for author in reference["authors"])
    assert len(about["references"]) == 8


def test_the_changelog_knows_the_version(project):
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert project["version"] in versions
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Changed protocols", "Deprecated", "Removed", "Fixed"}


def test_the_catalogue_has_a_file_it_can_read():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert usage["software-stack-deployment"]["conda"] is True
    assert usage["report"] is True


def test_the_data_cards_say_what_is_not_covered():
    text = " ".join((ROOT / "docs" / "data_cards.md").read_text().split())
    for sentence in (
        "Faces only. Misses happen.",
        "it is no anonymisation",
        "Raw videos are no part of what is handed on",
    ):
        assert sentence in text


def test_the_data_cards_name_the_demos_videos():
    demo = yaml.safe_load((ROOT / "workflow" / "demo.yaml").read_text())
    text = (ROOT / "docs" / "data_cards.md").read_text()
    for video in demo["videos"].values():
        assert video["source"].rpartition("/")[2] in text


def test_the_readme_leads_to_the_overviews():
    text = (ROOT / "README.md").read_text()
    missing = [folder for folder in ("docs/methods/", "docs/evaluations/") if folder not in text]
    assert not missing, f"name {missing} in README.md: its tables need not be complete, these are"


class Elsewhere(Workflow):
    """A folder of somebody else's, with a small suite."""

    def command(self, *words, cores=2):
        return [sys.executable, "-m", "snakemake", "--cores", str(cores), *words]


@pytest.fixture
def elsewhere(tmp_path):
    suite = miniature()
    suite["runs"] = {"random": suite["runs"]["random"]}
    workflow = Elsewhere(tmp_path, forked=False)
    workflow.configure(suite)
    return workflow


def test_the_shim_has_a_default_target(elsewhere):
    outcome = elsewhere.run("-n", "--snakefile", SHIM, "--configfile", "suite.yaml")
    assert outcome.code == 0, outcome.text
    assert re.search(r"^everything +1$", outcome.text, re.MULTILINE)
    assert re.search(r"^evaluate +1$", outcome.text, re.MULTILINE)


def test_without_a_suite_the_shim_is_the_papers(elsewhere):
    outcome = elsewhere.run("-n", "--snakefile", SHIM, "--", "results/dora/knn.json")
    assert outcome.code == 0, outcome.text
    assert re.search(r"^download +1$", outcome.text, re.MULTILINE)


MODULE = f"""
configfile: "suite.yaml"

module timewalk:
    snakefile: "{SHIM}"
    config: config

use rule * from timewalk as timewalk_*

rule mine:
    default_target: True
    input: "results/random/knn.json"
"""


def test_another_workflow_uses_it_as_a_module(elsewhere):
    (elsewhere.folder / "Snakefile").write_text(MODULE)
    outcome = elsewhere.run("-n")
    assert outcome.code == 0, outcome.text
    assert re.search(r"^mine +1$", outcome.text, re.MULTILINE)
    assert re.search(r"^timewalk_embed +2$", outcome.text, re.MULTILINE)
