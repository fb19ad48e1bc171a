"""The evaluation between epochs: any that reads an encoder, keyed by all it depends on."""

import pytest
import torch

from timewalk.artefacts import write_json
from timewalk.config import EncoderConfig, MovingShapes
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder, save_encoder
from timewalk.validation import validator

CPU = torch.device("cpu")
TINY = {"name": "vit_tiny", "width": 24, "depth": 1, "heads": 3, "patch_size": 8, "image_size": 16}


@pytest.fixture
def sources(tmp_path):
    pytest.importorskip("faiss")
    config = MovingShapes(kind="moving_shapes", sequences=1, frames=3, clutter=0.1)
    prepare("shapes", config, tmp_path / "set" / "manifest.json")
    settings = {"kind": "clustering", "dataset": "shapes", "image_size": 32, "map_size": 16}
    manifest = str(tmp_path / "set" / "manifest.json")
    return {"name": "clusters", "settings": settings, "dataset": manifest}


def test_an_encoder_is_evaluated(sources, tmp_path):
    save_encoder(build_encoder(EncoderConfig(**TINY), 0), tmp_path / "run", {})
    found = validator(sources, CPU, 0)(tmp_path / "run")
    assert 0 < found["miou"] <= 100


def test_the_key_follows_settings_and_set(sources, tmp_path):
    key = validator(sources, CPU, 0).key
    assert validator(sources, CPU, 3).key == key
    settings = sources["settings"]
    assert validator({**sources, "settings": {**settings, "runs": ["a"]}}, CPU, 0).key == key
    assert validator({**sources, "settings": {**settings, "clusters": 4}}, CPU, 0).key != key
    other = tmp_path / "other.json"
    write_json(other, {})
    assert validator({**sources, "dataset": str(other)}, CPU, 0).key != key
    assert validator({**sources, "train_dataset": str(other)}, CPU, 0).key != key
