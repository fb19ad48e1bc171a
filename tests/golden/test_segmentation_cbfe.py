"""Cluster-based foreground extraction against the published code: every array of its golden."""

import numpy as np
import pytest
import torch

from timewalk.metrics.foreground import (
    boundary_f,
    cluster_counts,
    cluster_precision,
    jaccard,
    jaccard_of_clusters,
    tune,
)
from timewalk.ops.foreground_mask import attention_masks

CLUSTERS = 30
CUTS = (0.55, 0.75)
INPUTS = {f"{s}_{w}" for s in ("train", "val") for w in ("gt", "clusters", "attention")}
OUTPUTS = {
    *("train_precision", "val_precision", "cut_start", "cut_precision", "cut_jaccard"),
    *("threshold", "val_mask", "jaccard_boundary_foreground", "jaccard_boundary_background"),
    *("jaccard_per_image", "bf_score_as_coded_threshold2"),
    *("attention", "attention_mask_0.65", "attention_mask_0.5"),
}


@pytest.fixture(scope="module")
def values(golden):
    return golden("segmentation", "cbfe.npz")


def counted(values, split, masks):
    clusters = values[f"{split}_clusters"]
    return np.stack(
        [cluster_counts(ids, mask, CLUSTERS) for ids, mask in zip(clusters, masks, strict=True)]
    )


def tables(values, split):
    """Return all pixels, those attended to, and those of foreground with its boundary."""
    truth = values[f"{split}_gt"]
    masks = (np.ones(truth.shape, bool), values[f"{split}_attention"] > 0, truth != 0)
    return [counted(values, split, mask) for mask in masks]


@pytest.mark.parametrize("keep", [0.65, 0.5])
def test_attention_masks(values, keep):
    heads = torch.from_numpy(values["attention"])[:, :, 1:].unflatten(-1, (7, 7))
    found = attention_masks(heads.mean(dim=1), keep)
    assert np.array_equal(found[:, None].numpy(), values[f"attention_mask_{keep}"] > 0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_precision(values, split):
    pixels, attended, _ = tables(values, split)
    found = cluster_precision(pixels, attended)
    np.testing.assert_allclose(found, values[f"{split}_precision"], rtol=0, atol=1e-12)


def test_tuning(values):
    pixels, _, foreground = tables(values, "train")
    found = tune(values["train_precision"], pixels, foreground, CUTS)
    assert found.starts.tolist() == values["cut_start"].tolist()
    np.testing.assert_allclose(found.precisions, values["cut_precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.jaccards, values["cut_jaccard"], rtol=0, atol=1e-7)
    assert found.threshold == float(values["threshold"])


def test_foreground_and_its_jaccard(values):
    chosen = values["val_precision"] >= values["threshold"]
    mask = chosen[values["val_clusters"]]
    assert np.array_equal(mask, values["val_mask"] > 0)
    truth = values["val_gt"]
    each = jaccard(truth != 0, mask)
    np.testing.assert_allclose(each, values["jaccard_per_image"], rtol=0, atol=1e-7)
    assert each.mean() == pytest.approx(float(values["jaccard_boundary_foreground"]), abs=1e-7)
    inner = jaccard((truth != 0) & (truth != 255), mask).mean()
    assert inner == pytest.approx(float(values["jaccard_boundary_background"]), abs=1e-7)
    pixels, _, foreground = tables(values, "val")
    np.testing.assert_allclose(jaccard_of_clusters(pixels, foreground, chosen), each, atol=1e-12)


def test_boundary_score(values):
    pairs = zip(values["val_gt"] == 0, values["val_mask"] > 0, strict=True)
    found = np.nanmean([boundary_f(truth, mask, 2) for truth, mask in pairs])
    assert found == pytest.approx(float(values["bf_score_as_coded_threshold2"]), abs=1e-12)


def test_nothing_of_the_set_is_left_out(values):
    assert set(values) == INPUTS | OUTPUTS
