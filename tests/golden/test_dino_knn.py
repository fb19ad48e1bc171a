"""Weighted k-NN against the published code's figures."""

import pytest
import torch
from torch.nn import functional as F

from timewalk.evaluation.knn import class_scores, weighted_knn


@pytest.fixture
def data(golden):
    arrays = golden("dino", "knn.npz")
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def scores_at(data, k, num_classes):
    """Return the scores of every test image, (M, C), at one k."""
    chunks = class_scores(
        data["train_features"],
        data["train_labels"],
        data["test_features"],
        [k],
        float(data["temperature"]),
        num_classes,
    )
    return torch.cat([chunk[k] for chunk in chunks])


def test_features_are_normalised(data):
    for split in ("train_features", "test_features"):
        norms = data[split].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [2, 256])
def test_results(data, chunk):
    images = len(data["test_labels"])
    rows = data["results_numclasses_k_top1_top5"].tolist()
    assert rows
    for num_classes, k, top1, top5 in rows:
        num_classes, k = int(num_classes), int(k)
        (vote,) = weighted_knn(
            data["train_features"],
            data["train_labels"],
            data["test_features"],
            data["test_labels"],
            [k],
            float(data["temperature"]),
            num_classes,
            chunk,
        )
        assert vote.k == k
        assert vote.top1 == pytest.approx(top1, abs=1e-9)
        # Ours is strict. The published figure may count, by the order of a non-stable sort, the
        # images whose class is not among fewer than five that have neighbours.
        scores = scores_at(data, k, num_classes)
        right = scores.gather(1, data["test_labels"][:, None])[:, 0] > 0
        unsure = int((~right & ((scores > 0).sum(1) < min(5, k))).sum())
        counted = top5 * images / 100
        assert counted == pytest.approx(round(counted), abs=1e-6)
        assert vote.top5 - 1e-9 <= top5 <= vote.top5 + 100 * unsure / images + 1e-9


def test_scores(data):
    expected = data["scores_k20"]
    scores = scores_at(data, 20, expected.shape[1])
    train, test = (F.normalize(data[key], dim=1) for key in ("train_features", "test_features"))
    largest = (test @ train.T).max(1, keepdim=True).values
    # ours are scaled by exp(-largest / T)
    scores = scores * (largest.double() / float(data["temperature"])).exp()
    torch.testing.assert_close(scores.float(), expected, rtol=2e-5, atol=0)


def test_distinct_classes(data):
    scores = scores_at(data, 10, int(data["train_labels"].max()) + 1)
    assert (scores > 0).sum(1).tolist() == data["distinct_classes_k10"].tolist()
