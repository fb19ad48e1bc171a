"""TimeT from another run's encoder, evaluated between epochs, and the segmentation evaluations."""

import json

import pytest

from tests.workflow.conftest import TINY, Workflow, miniature

EVALUATIONS = ("clustering", "foreground", "propagation_iou")


def suite():
    config = miniature()
    config["blur"] = "off"
    common = {"image_size": 64, "frames_per_clip": 3, "pictures": 2}
    shapes = {"kind": "moving_shapes", "sequences": 2, "frames": 4, "clutter": 0.2}
    config["labelled"] = {"shapes": shapes, "shapes_train": {**shapes, "seed": 1}}
    config["runs"] = {
        "random": {"method": "random", "encoder": TINY},
        "timet": {
            "method": "timet",
            "dataset": "talk",
            "encoder": {**TINY, "weights": "run:random"},
            "image_size": 32,
            "clips_per_video": 8,
            "prototypes": 8,
            "head_widths": [32, 16],
            "backbone_lr_scale": 1.0,
            "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32"},
            "validation": {"evaluation": "clustering", "every": 1, "metric": "miou"},
        },
    }
    kmeans = {"iterations": 5, "redos": 1}
    config["evaluations"] = {
        "clustering": {
            "kind": "clustering",
            "dataset": "shapes",
            "scope": "per_dataset",
            "map_size": 32,
            **common,
            **kmeans,
        },
        "foreground": {
            "kind": "foreground",
            "dataset": "shapes",
            "train_dataset": "shapes_train",
            "clusters": 10,
            "map_size": 32,
            **common,
            **kmeans,
        },
        "propagation_iou": {"kind": "propagation_iou", "dataset": "shapes", "image_size": 64},
    }
    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workflow = Workflow(tmp_path_factory.mktemp("segmentation"))
    workflow.configure(suite())
    targets = [f"results/{run}/{name}.json" for run in ("timet", "random") for name in EVALUATIONS]
    outcome = workflow.run(*targets, "results/timet/card.md", "results/summary.csv")
    assert outcome.code == 0, outcome.text
    return workflow


def read(workflow, *parts):
    return json.loads(workflow.folder.joinpath("results", *parts).read_text())


@pytest.mark.slow
def test_every_evaluation_has_its_result(done):
    for name in EVALUATIONS:
        tuned, start = (read(done, run, f"{name}.json") for run in ("timet", "random"))
        assert tuned["protocol"] == start["protocol"]
        assert tuned["metrics"] != start["metrics"], name
        key = "jaccard" if name == "foreground" else "miou"
        assert 0 < tuned["metrics"][key] <= 100
        for artefact in tuned["artefacts"]:
            assert (done.folder / "results" / "timet" / artefact).is_file(), artefact
    summary = (done.folder / "results" / "summary.csv").read_text()
    assert "clustering" in summary
    trained_on = read(done, "timet", "foreground.json")["provenance"]["train_dataset_sha256"]
    assert trained_on != read(done, "timet", "foreground.json")["provenance"]["dataset_sha256"]


@pytest.mark.slow
def test_the_encoder_of_another_run_is_where_it_starts(done):
    start = read(done, "random", "encoder.json")["sha256"]
    weights = read(done, "timet", "encoder.json")["provenance"]["weights"]
    assert weights == {"results/random/encoder.safetensors": start}
    history = read(done, "timet", "validation.json")
    assert [(entry["step"], entry["epoch"]) for entry in history] == [(0, 0), (2, 1), (4, 2)]
    assert history[0]["encoder_sha256"] == start
    # The last evaluation between epochs is the one of the result.
    last = read(done, "timet", "clustering.json")
    assert history[-1]["metrics"] == last["metrics"]
    best = max(entry["metrics"]["miou"] for entry in history)
    digest = read(done, "timet", "best", "encoder.json")["sha256"]
    assert digest in {x["encoder_sha256"] for x in history if x["metrics"]["miou"] == best}


@pytest.mark.soak
@pytest.mark.slow
def test_nothing_is_left_to_do_and_a_change_of_validation_trains_nothing(done):
    again = done.run("results/timet/clustering.json", "--dry-run")
    assert "Nothing to be done" in again.text
    config = suite()
    config["runs"]["timet"]["validation"] = None
    done.configure(config)
    before = read(done, "timet", "encoder.json")["sha256"]
    outcome = done.run("results/timet/clustering.json")
    assert outcome.code == 0, outcome.text
    assert "going on from step 4 of 4" in done.log("results/train-timet")
    assert read(done, "timet", "encoder.json")["sha256"] == before
    assert not (done.folder / "results" / "timet" / "best").exists()
