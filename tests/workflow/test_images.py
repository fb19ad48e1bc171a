"""DINO on a folder of still images, by real Snakemake."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.workflow.conftest import TINY, miniature
from timewalk.errors import UserError
from timewalk.suite import load_suite


@pytest.fixture
def suite(workflow):
    rng = np.random.default_rng(0)
    for number in range(6):
        path = workflow.folder / "my images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    dora = miniature()["runs"]["dora"]
    dino = {
        "method": "dino",
        "dataset": "stills",
        "encoder": TINY,
        **{key: dora[key] for key in ("local_crops", "global_size", "local_size")},
        **{key: dora[key] for key in ("out_dim", "head_hidden", "training")},
    }
    config = {"datasets": {"stills": {"images": "my images"}}, "runs": {"dino": dino}}
    return workflow, config


@pytest.mark.slow
def test_a_folder_of_images_trains_dino(suite):
    workflow, config = suite
    workflow.configure(config)
    outcome = workflow.run("results/dino/encoder.safetensors")
    assert outcome.code == 0, outcome.text
    about = json.loads((workflow.folder / "results/dino/encoder.json").read_text())
    assert about["provenance"]["clips"] == 6
    assert list(about["provenance"]["inputs"]) == ["data/shards/stills/images.json"]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"stills": {}}, "name at least one of `videos`, or a folder of `images`"),
        ({"stills": {"images": "x", "videos": ["venice"]}}, "has both"),
        ({"stills": {"images": "x", "storage": "folder"}}, "`storage` means nothing"),
    ],
)
def test_data_sets_that_cannot_be(suite, datasets, message):
    _, config = suite
    with pytest.raises(UserError, match=message):
        load_suite({**config, "datasets": datasets})


def test_shots_need_videos(suite):
    workflow, config = suite
    shots = {"shots": {"kind": "shots", "dataset": "stills"}}
    workflow.configure({**config, "labelled": shots})
    outcome = workflow.run("-n", "all")
    assert outcome.code != 0
    assert "labelled.shots.dataset: 'stills' holds still images" in outcome.text
    assert "Traceback" not in outcome.text
