"""Many clusters: each takes the class of most of its pixels."""

import csv

import numpy as np
import pytest
import torch

from tests.evaluation.coloured_masks import CELLS, SIDE, MeanColours, a_run, class_maps, write_set
from timewalk.errors import UserError
from timewalk.evaluation import clusters
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.overclustering import Config, evaluate

pytest.importorskip("faiss")

KEYS = {"dataset": "colours", "image_size": SIDE, "map_size": CELLS, "scope": "per_dataset"}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that evaluates on three images of coloured cells."""
    monkeypatch.setattr(clusters, "load_encoder", lambda run: MeanColours())
    manifest = write_set(tmp_path / "set", class_maps(1, 9), class_maps(3, 1))

    def go(**keys):
        inputs = Inputs(a_run(tmp_path / "run"), manifest, torch.device("cpu"))
        return evaluate(inputs, Config(**(KEYS | keys)), tmp_path / "out")

    return go


def test_its_own_settings():
    config = Config(dataset="a")
    assert (config.clusters, config.matching, config.scope) == (500, "many_to_one", "per_frame")
    assert (config.iterations, config.redos, config.points_per_centroid) == (50, 5, 256)
    assert config.kmeans().seed == 1


def test_pure_clusters_score_1(run, tmp_path):
    result = run(clusters=6, map_size=16)
    assert result.protocol == "voc2012-val-per_dataset-many_to_one-k6-m16-s64-d3"
    assert result.metrics["clusters"] == 6
    # Cells mix where maps are enlarged.
    assert 60 < result.metrics["miou"] <= 100
    with (tmp_path / "out" / "clusters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["of"] for row in rows} == {"colours"}
    to_background = sum(row["class"] == "0" for row in rows)
    assert result.metrics["background_clusters"] == pytest.approx(100 * to_background / 6)
    assert sum(int(row["pixels"]) for row in rows) == 3 * 16**2
    right = sum(int(row["pixels"]) * float(row["precision"]) / 100 for row in rows)
    assert result.metrics["pixel_accuracy"] == pytest.approx(100 * right / (3 * 16**2), abs=1e-3)


def test_more_clusters_are_purer(run):
    few, many = (run(clusters=count, map_size=24).metrics for count in (4, 60))
    assert many["pixel_accuracy"] > few["pixel_accuracy"] + 0.5


def test_more_clusters_than_pixels(run):
    with pytest.raises(UserError, match="192 points cannot make 500 clusters"):
        run(clusters=500)


def test_the_published_wins_ties_by_class(run, tmp_path):
    result = run(clusters=1)
    with (tmp_path / "out" / "clusters.csv").open() as file:
        (row,) = csv.DictReader(file)
    counts = np.bincount(class_maps(3, 1).ravel())
    assert int(row["class"]) == counts.argmax()
    assert result.metrics["pixel_accuracy"] == pytest.approx(100 * counts.max() / counts.sum())
