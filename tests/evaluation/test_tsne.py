"""t-SNE: a table that belongs to its picture, numbers that say what they say."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.pictures import balanced
from timewalk.evaluation.tsne import Config, evaluate

CPU = torch.device("cpu")


def embeddings(path, classes=3, each=12, spread=0.1, width=8):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    centres = torch.randn(classes, width, generator=rng)
    features = centres[labels] + spread * torch.randn(len(labels), width, generator=rng)
    about = {"split": "test", "classes": [f"class {n}" for n in range(classes)]}
    save_file({"features": features, "labels": labels}, path, {"about": json.dumps(about)})
    return features, labels


def run(tmp_path, name="out", **keys):
    inputs = Inputs(tmp_path, tmp_path / "manifest.json", CPU, test=tmp_path / "test.safetensors")
    config = Config(dataset="x", **{"iterations": 250} | keys)
    return evaluate(inputs, config, tmp_path / name)


def test_table_and_picture(tmp_path):
    _, labels = embeddings(tmp_path / "test.safetensors")
    result = run(tmp_path, perplexity=5)
    assert result.protocol == "tsne-p5-n36"
    assert result.samples == 36
    assert [path.name for path in result.artefacts] == ["tsne.png", "tsne.csv"]
    rows = list(csv.DictReader(result.artefacts[1].open()))
    assert [int(row["label"]) for row in rows] == labels[[int(r["index"]) for r in rows]].tolist()
    assert all(row["class"] == f"class {row['label']}" for row in rows)
    points = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    assert np.isfinite(points).all()
    centres = np.array([points[labels.numpy() == n].mean(0) for n in range(3)])
    distances = np.linalg.norm(points[:, None] - centres, axis=-1)
    assert (distances.argmin(1) == labels.numpy()).mean() > 0.8
    with Image.open(result.artefacts[0]) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"split": "train"}, "test.safetensors holds the split 'train' where 'test' is read"),
        ({"encoder_sha256": "x"}, "test.safetensors was not made with .*encoder_sha256"),
        ({"dataset_sha256": "x"}, "test.safetensors was not made with .*dataset_sha256"),
    ],
)
def test_features_of_another_split_run_or_set(tmp_path, about, message):
    path = tmp_path / "test.safetensors"
    features, labels = embeddings(path)
    about = about | {"classes": ["a", "b", "c"]}
    save_file({"features": features, "labels": labels}, path, {"about": json.dumps(about)})
    with pytest.raises(UserError, match=message):
        run(tmp_path)


def test_a_repeat_gives_the_same_bytes(tmp_path):
    embeddings(tmp_path / "test.safetensors")
    one, two = run(tmp_path, "one"), run(tmp_path, "two")
    for a, b in zip(one.artefacts, two.artefacts, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_numbers_tell_clusters_from_noise(tmp_path):
    embeddings(tmp_path / "test.safetensors", each=20)
    good = run(tmp_path, iterations=500).metrics
    embeddings(tmp_path / "test.safetensors", each=20, spread=50.0)
    bad = run(tmp_path, iterations=500).metrics
    # Layouts differ from processor to processor: the last bits decide where points go.
    assert good["top1_2d"] > 85
    assert bad["top1_2d"] < 70
    assert 0.5 < bad["trustworthiness"] <= 1
    assert 0.85 < good["trustworthiness"] <= 1
    assert 0 < good["kl_divergence"] < bad["kl_divergence"]


def test_a_divergence_that_was_not_computed_is_none(tmp_path):
    embeddings(tmp_path / "test.safetensors")
    metrics = run(tmp_path, iterations=250).metrics
    assert metrics["kl_divergence"] is None
    assert metrics["trustworthiness"] is not None


def test_as_many_images_of_each_class(tmp_path):
    embeddings(tmp_path / "test.safetensors", classes=4, each=10)
    result = run(tmp_path, images=8)
    rows = list(csv.DictReader(result.artefacts[1].open()))
    labels = [row["label"] for row in rows]
    assert [labels.count(str(n)) for n in range(4)] == [2, 2, 2, 2]
    assert result.protocol == "tsne-p2.33333-n8"


def test_many_classes_have_a_legend_beside_the_points(tmp_path):
    embeddings(tmp_path / "test.safetensors", classes=30, each=4)
    result = run(tmp_path)
    with Image.open(result.artefacts[0]) as picture:
        found = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert len(found) > 30
    assert picture.width > picture.height


def test_one_class_and_equal_features(tmp_path):
    embeddings(tmp_path / "test.safetensors", classes=1)
    assert run(tmp_path).metrics["top1_2d"] == 100
    features, labels = torch.ones(12, 6), torch.arange(12) % 2
    about = {"about": json.dumps({"classes": ["a", "b"]})}
    save_file({"features": features, "labels": labels}, tmp_path / "test.safetensors", about)
    result = run(tmp_path, "equal")
    assert result.metrics["kl_divergence"] is result.metrics["trustworthiness"] is None
    assert 0 <= result.metrics["top1_2d"] <= 100


def test_too_few_images_are_one_sentence(tmp_path):
    embeddings(tmp_path / "test.safetensors", classes=1, each=3)
    with pytest.raises(UserError, match="holds 3 images: t-SNE needs 4 or more"):
        run(tmp_path)


@pytest.mark.parametrize("library", ["sklearn.manifold", "matplotlib.figure"])
def test_an_absent_library_is_one_sentence(tmp_path, monkeypatch, library):
    embeddings(tmp_path / "test.safetensors")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"is missing: pip install 'timewalk\[figures\]'"):
        run(tmp_path)


def test_balanced_choice():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 10)
    chosen = balanced(labels, 15, seed=0)
    counts = torch.bincount(labels[chosen]).tolist()
    assert counts == [6, 3, 6]
    assert chosen == balanced(labels, 15, seed=0) == sorted(set(chosen))
    assert chosen != balanced(labels, 15, seed=1)
    assert balanced(labels, 500, seed=0) == list(range(63))
