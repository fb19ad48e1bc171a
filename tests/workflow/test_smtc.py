"""SMTC on the frames of a labelled set, scored by objects found, between its epochs too."""

import json

import pytest

from tests.workflow.conftest import TINY, Workflow, miniature
from timewalk.encoders import load_head

EVALUATIONS = ("object_discovery", "foreground_segmentation")


def suite():
    config = miniature()
    config["blur"] = "off"
    shapes = {"kind": "moving_shapes", "sequences": 2, "frames": 8, "clutter": 0.2}
    config["labelled"] = {"shapes": shapes, "shapes_train": {**shapes, "seed": 1}}
    config["datasets"] = {**config["datasets"], "moving": {"labelled": "shapes_train"}}
    config["runs"] = {
        "random": {"method": "random", "encoder": TINY},
        "smtc": {
            "method": "smtc",
            "dataset": "moving",
            "encoder": {**TINY, "weights": "run:random"},
            "image_size": 32,
            "frames_per_clip": 3,
            "step_between_frames": 2,
            "slots": 4,
            "instances": 2,
            "frozen_steps": 4,
            "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 0.01},
            "validation": {"evaluation": "object_discovery", "every": 1, "metric": "JF_mean"},
        },
    }
    size = {"image_height": 64, "image_width": 96}
    config["evaluations"] = {
        name: {"kind": name, "dataset": "shapes", "clusters": 4, **size} for name in EVALUATIONS
    }
    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workflow = Workflow(tmp_path_factory.mktemp("smtc"))
    workflow.configure(suite())
    targets = [f"results/{run}/{name}.json" for run in ("smtc", "random") for name in EVALUATIONS]
    outcome = workflow.run(*targets, "results/smtc/card.md", "results/summary.csv")
    assert outcome.code == 0, outcome.text
    return workflow


def read(workflow, *parts):
    return json.loads(workflow.folder.joinpath("results", *parts).read_text())


@pytest.mark.slow
def test_slots_and_clusters_are_scored(done):
    found = {run: read(done, run, "object_discovery.json") for run in ("smtc", "random")}
    assert [found[run]["metrics"]["from_slots"] for run in ("smtc", "random")] == [1.0, 0.0]
    for run, record in found.items():
        assert 0 < record["metrics"]["JF_mean"] < 100
        for artefact in record["artefacts"]:
            assert (done.folder / "results" / run / artefact).is_file(), artefact
    masks = done.folder / "results" / "smtc" / "object_discovery" / "masks"
    assert len(list(masks.rglob("*.png"))) == 2 * 8
    foreground = {run: read(done, run, "foreground_segmentation.json") for run in found}
    assert foreground["smtc"]["protocol"] != foreground["random"]["protocol"]
    assert 0 < foreground["smtc"]["metrics"]["J"] <= 100
    assert "object_discovery" in (done.folder / "results" / "summary.csv").read_text()


@pytest.mark.slow
def test_the_slots_of_the_moment_are_validated_though_the_encoder_is_frozen(done):
    history = read(done, "smtc", "validation.json")
    assert [entry["step"] for entry in history] == [0, 2, 4]
    assert len({entry["encoder_sha256"] for entry in history}) == 1
    assert all(entry["metrics"]["from_slots"] == 1.0 for entry in history)
    last = read(done, "smtc", "object_discovery.json")["metrics"]
    assert history[-1]["metrics"] == last
    assert history[0]["metrics"] != last, "slots learn"
    best = max(entry["metrics"]["JF_mean"] for entry in history)
    kept = load_head(done.folder / "results" / "smtc" / "best")["slot_attention.slots_mu"]
    own = load_head(done.folder / "results" / "smtc")["slot_attention.slots_mu"]
    assert (kept.tolist() == own.tolist()) == (last["JF_mean"] == best)


@pytest.mark.slow
def test_the_card_tells_of_the_slots(done):
    card = (done.folder / "results" / "smtc" / "card.md").read_text()
    assert "4 semantic" in card
    assert "load_slots" in card
    again = done.run("results/smtc/object_discovery.json", "--dry-run")
    assert "Nothing to be done" in again.text
