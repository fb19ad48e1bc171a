"""DoRA on folders of images, given by their root or by a list, by real Snakemake."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.workflow.conftest import miniature
from timewalk.errors import UserError
from timewalk.suite import load_suite


@pytest.fixture
def suite(workflow):
    rng = np.random.default_rng(0)
    for video, count in (("one ü", 7), ("deep/two", 6)):
        for number in range(count):
            path = workflow.folder / "my videos" / video / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (workflow.folder / "my videos" / "list.txt").write_text("one ü 7\n", encoding="utf-8")
    dora = miniature()["runs"]["dora"]
    config = {
        "datasets": {
            "tree": {"folders": "my videos"},
            "listed": {"list": "my videos/list.txt"},
            "part": {"folders": "my videos", "split": {"share": 0.5, "part": "val"}},
        },
        "runs": {"dora": dora | {"dataset": "tree"}, "short": dora | {"dataset": "listed"}},
    }
    return workflow, config


@pytest.mark.slow
def test_folders_and_lists_train_dora(suite):
    workflow, config = suite
    workflow.configure(config)
    outcome = workflow.run("results/dora/card.md", "data")
    assert outcome.code == 0, outcome.text
    card = (workflow.folder / "results/dora/card.md").read_text()
    assert "Data set `tree`: 2 videos, 13 frames." in card
    assert "| 2 videos in folders | 13 | – | `data/shards/tree/folders.json` |" in card
    about = json.loads((workflow.folder / "results/dora/encoder.json").read_text())
    # Clips of 2 frames, 2 apart: T - 4 of each video.
    assert about["provenance"]["clips"] == (7 - 4) + (6 - 4)
    assert list(about["provenance"]["inputs"]) == ["data/shards/tree/folders.json"]
    listed = json.loads((workflow.folder / "data/shards/listed/folders.json").read_text())
    assert (listed["counts"]["videos"], listed["counts"]["frames"]) == (1, 7)
    part = json.loads((workflow.folder / "data/shards/part/folders.json").read_text())
    assert (part["counts"]["videos"], part["parameters"]["split"]["names"]) == (1, 2)

    (workflow.folder / "my videos" / "list.txt").write_text("one ü 8\n", encoding="utf-8")
    outcome = workflow.run("results/short/encoder.safetensors")
    assert outcome.code != 0
    assert "list.txt, line 1: my videos/one ü holds 7 frames, but the list says 8" in outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize("dataset", ["tree", "listed"])
def test_shots_need_videos(suite, dataset):
    _, config = suite
    shots = {"shots": {"kind": "shots", "dataset": dataset}}
    message = rf"labelled\.shots\.dataset: '{dataset}' is made of folders of images"
    with pytest.raises(UserError, match=message):
        load_suite({**config, "labelled": shots})
