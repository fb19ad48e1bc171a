"""CRW trained on real videos and scored on generated ones, through Snakemake."""

import csv
import json

import pytest
import yaml

from tests.workflow.conftest import ROOT, Workflow
from timewalk.evaluation.davis_folders import score_folders

MARGIN = 2.0
"""points of J&F by which a minute of CRW has to beat the same network with fresh weights: 4.6, 4.8
and 8.8 with the demo's settings and three seeds"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's runs, frames not blurred."""
    workflow = Workflow(tmp_path_factory.mktemp("demo"))
    config = yaml.safe_load((ROOT / "workflow" / "demo.yaml").read_text())
    config["blur"] = "off"
    workflow.configure(config)
    targets = [f"results/demo/{run}/davis.json" for run in ("crw", "random_resnet")]
    outcome = workflow.run(*targets, cores=1)
    assert outcome.code == 0, outcome.text
    return workflow.folder


def result(folder, run):
    return json.loads((folder / "results" / "demo" / run / "davis.json").read_text())


@pytest.mark.soak
def test_crw_beats_fresh_weights(demo):
    crw, fresh = (result(demo, run) for run in ("crw", "random_resnet"))
    assert crw["protocol"] == fresh["protocol"] == "davis2017-val-crw-s8"
    assert crw["metrics"]["JF_mean"] > fresh["metrics"]["JF_mean"] + MARGIN
    assert crw["samples"] == 8


@pytest.mark.soak
def test_masks_are_in_the_official_layout(demo):
    folder = demo / "results" / "demo" / "crw" / "davis"
    davis = demo / "data" / "demo" / "datasets" / "shapes" / "DAVIS"
    scores = score_folders(folder / "masks", davis, "semi-supervised")
    metrics = result(demo, "crw")["metrics"]
    assert metrics["JF_mean"] == pytest.approx(100 * scores.means()["J&F-Mean"])
    with (folder / "global_results-val.csv").open() as file:
        [row] = csv.DictReader(file)
    assert float(row["J-Mean"]) == round(metrics["J_mean"] / 100, 3)
    assert len(list((folder / "overlays").glob("*.mp4"))) == 4
