"""From fresh weights to fine-tuned networks and tracks: ADE20K, COCO and GOT-10k in miniature."""

import json

import pytest

from tests.workflow.conftest import TINY, Workflow
from tests.workflow.test_dry_run import counts

EVALUATIONS = ("ade20k", "coco", "got10k")


def suite():
    sizes = {"height": 64, "width": 64}
    training = {"batch_size": 2, "learning_rate": 0.001, "warmup_steps": 0, "precision": "fp32"}
    parse = {"kind": "ade20k", "dataset": "scenes", "network": "parse", "pictures": 2}
    return {
        "blur": "off",
        "labelled": {
            "scenes": {"kind": "ade20k_shapes", "train": 4, "test": 3, **sizes},
            "things": {"kind": "coco_shapes", "train": 4, "test": 3, **sizes},
            "tracks": {"kind": "got10k_shapes", "sequences": 2, "frames": 4, **sizes},
        },
        "runs": {"random": {"method": "random", "encoder": TINY}},
        "finetuning": {
            "parse": {
                "task": "semantic_segmentation",
                "dataset": "scenes",
                **{"channels": 8, "crop": 32, "short_side": 32, "long_side": 64},
                "training": {**training, "max_steps": 2},
            },
            "detect": {
                "task": "detection",
                "dataset": "things",
                **{"head": "mask_rcnn", "channels": 8, "crop": False},
                **{"short_sides": [64], "long_side": 64},
                "training": {**training, "max_steps": 1, "schedule": "linear"},
            },
        },
        "evaluations": {
            "ade20k": parse,
            "coco": {"kind": "coco", "dataset": "things", "network": "detect", "pictures": 2},
            "got10k": {"kind": "got10k", "dataset": "tracks", "short_side": 64, "pictures": 1},
        },
    }


def targets():
    return [f"results/random/{name}.json" for name in EVALUATIONS]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workflow = Workflow(tmp_path_factory.mktemp("dense"))
    workflow.configure(suite())
    outcome = workflow.run(*targets(), "results/random/card.md", "results/summary.csv")
    assert outcome.code == 0, outcome.text
    return workflow


def read(workflow, *parts):
    return json.loads(workflow.folder.joinpath("results", *parts).read_text())


@pytest.mark.slow
def test_every_evaluation_has_its_result(done):
    metrics = {"ade20k": "miou", "coco": "box_ap", "got10k": "ao"}
    for name, metric in metrics.items():
        result = read(done, "random", f"{name}.json")
        assert 0 <= result["metrics"][metric] <= 100
        for artefact in result["artefacts"]:
            assert (done.folder / "results" / "random" / artefact).is_file(), artefact
    network = read(done, "random", "ade20k.json")["provenance"]["network"]
    assert (network["name"], network["steps"], network["images"]) == ("parse", 2, 4)


@pytest.mark.slow
def test_nothing_is_done_twice_and_another_test_of_a_network_fine_tunes_nothing(done):
    config = suite()
    config["evaluations"]["whole"] = {**config["evaluations"]["ade20k"], "test": "whole"}
    done.configure(config)
    outcome = done.run(*targets(), "results/random/whole.json", "-n")
    done.configure(suite())
    assert outcome.code == 0, outcome.text
    assert counts(outcome.text) == {"evaluate": 1, "total": 1}
