"""The evaluation between epochs: of an encoder, or of embeddings that are computed by it first."""

import numpy as np
import pytest
import torch

from tests.evaluation.aligned import write_set
from timewalk.artefacts import write_json
from timewalk.config import ArrayLabels, EncoderConfig, MovingPhases, MovingShapes
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder, save_encoder, save_head
from timewalk.encoders.embedders import build_embedder, embedder_tensors
from timewalk.evaluation.phase_embeddings import embed_phases, load_phase_embeddings
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


def test_pictures_are_kept_where_they_are_asked_for(tmp_path):
    manifest = write_set(tmp_path)
    settings = {"kind": "alignment_video", "dataset": "grey", "format": "gif", "cell": 32}
    sources = {"name": "aligned", "settings": settings, "dataset": str(manifest)}
    save_encoder(build_encoder(EncoderConfig(**TINY), 0), tmp_path / "now" / "encoder", {})
    evaluate = validator(sources, CPU, 0)
    for step in ("1", "2"):
        found = evaluate(tmp_path / "now" / "encoder", tmp_path / step)
        assert 0 <= found["same_phase_percent"] <= 100
        assert sorted(x.name for x in (tmp_path / step).iterdir()) == ["alignment.gif", "paths.png"]


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


@pytest.mark.parametrize(
    ("kind", "falling", "rising"),
    [
        ("alignment_video", ["dtw_cost", "dtw_cost_percent", "phase_difference"], ["same_phase_p"]),
        ("phase_progression", ["transition_error"], ["r2", "train_r2_1", "r2_event1"]),
        ("algorithm_loss", ["loss_test", "loss_train", "tcn_test"], ["accuracy_test"]),
        ("davis", ["J_decay", "F_decay", "plain_J_decay"], ["JF_mean", "J_recall"]),
        ("tsne", ["kl_divergence"], ["trustworthiness", "top1_2d"]),
        ("kendalls_tau", [], ["tau", "pairs"]),
    ],
)
def test_of_which_metrics_less_is_better(kind, falling, rising, tmp_path):
    words = {"name": "x", "settings": {"kind": kind, "dataset": "x"}, "dataset": str(tmp_path)}
    one = validator(words, CPU, 0)
    assert all(one.lower_is_better(name) for name in falling)
    assert not any(one.lower_is_better(name) for name in rising)


EMBEDDER = {"kind": "conv", "inputs": 24, "size": 6, "layers": [[8, 3, True]], "fc": [[8, True]]}


def save_run(folder, seed):
    save_encoder(build_encoder(EncoderConfig(**TINY), 0), folder, {})
    about = {"image_size": 16, "context": 2, "context_step": 3}
    save_head(embedder_tensors(build_embedder(EMBEDDER, seed), {}, about), folder)


@pytest.fixture
def phases(tmp_path):
    pytest.importorskip("matplotlib")
    sizes = {"train": 3, "test": 3, "shortest": 12, "longest": 16, "height": 32, "width": 32}
    config = MovingPhases(kind="moving_phases", **sizes)
    prepare("pour", config, tmp_path / "set" / "manifest.json")
    settings = {"kind": "kendalls_tau", "dataset": "pour", "stride": 1}
    manifest = str(tmp_path / "set" / "manifest.json")
    return {"name": "tau", "settings": settings, "dataset": manifest}


def test_embeddings_of_videos_are_those_of_the_moment(phases, tmp_path):
    now = tmp_path / "validation" / "now"
    evaluate, found = validator(phases, CPU, 0), []
    for seed in (0, 1, 0):
        save_run(now, seed)
        found.append(evaluate(now))
        for split in ("train", "test"):
            embed_phases(now, tmp_path / "set/manifest.json", split, tmp_path / "x.safetensors")
            kept = load_phase_embeddings(now.parent / f"embeddings-{split}.safetensors")
            expected = load_phase_embeddings(tmp_path / "x.safetensors")
            for one, other in zip(kept.videos, expected.videos, strict=True):
                np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-6)
    assert set(found[0]) == {"tau", "pairs", "train_tau", "train_pairs"}
    assert found[0] == found[2] != found[1]


def test_features_of_images_are_computed_too(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    arrays = {"train_images": images, "test_images": images[:4]}
    labels = {"train_labels": np.arange(6) % 2, "test_labels": np.arange(4) % 2}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    config = ArrayLabels(kind="arrays", path=str(tmp_path / "x.npz"), resize=16, crop=16)
    prepare("toy", config, tmp_path / "set" / "manifest.json")
    save_encoder(build_encoder(EncoderConfig(**TINY), 0), tmp_path / "now", {})
    settings = {"kind": "knn", "dataset": "toy", "k": [1]}
    manifest = str(tmp_path / "set" / "manifest.json")
    words = {"name": "knn", "settings": settings, "dataset": manifest}
    assert validator(words, CPU, 0)(tmp_path / "now")["top1_k1"] == 100
