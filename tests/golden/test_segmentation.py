"""Matching, mIoU, clusters of features and foreground by clusters against what Timetuning's own
code gave: every array of the set."""

import numpy as np
import pytest
import torch

from timewalk.evaluation.feature_maps import Moments, cluster_maps, upsampled
from timewalk.metrics.foreground import (
    boundary_f,
    cluster_counts,
    cluster_precision,
    jaccard,
    jaccard_of_clusters,
    tune,
)
from timewalk.metrics.matching import contingency, matched_scores, renamed, with_classes
from timewalk.ops.foreground_mask import attention_masks
from timewalk.ops.kmeans import KMeans

VOID = 255
TAGS = {
    "hungarian": ("pred", "hungarian"),
    "hungarian_30": ("pred_over", "hungarian"),
    "hungarian_3": ("pred_3", "hungarian"),
    "m2o_precision_6": ("pred", "many_to_one"),
    "m2o_precision_30": ("pred_over", "many_to_one"),
    "m2o_iou_6": ("pred", "many_to_one_iou"),
    "m2o_iou_30": ("pred_over", "many_to_one_iou"),
    "linear": ("pred_linear", "none"),
}
SCOPES = {"frame": 1, "sample": 5, "dataset": 10}
PROTOCOLS = {"hungarian": ("pred", "hungarian"), "m2o_precision": ("pred_over", "many_to_one")}
FIXED = {"hungarian": ("pred", "hungarian"), "m2o_precision_30": ("pred_over", "many_to_one")}
GROUPS = {
    "frame-wise": [[0], [1], [2], [3], [4], [5]],
    "sample-wise": [[0, 1], [2, 3], [4, 5]],
    "dataset-wise": [[0, 1, 2, 3, 4, 5]],
}
CLUSTERS, DIMENSIONS = 5, 50
CUTS = (0.55, 0.75)
INPUTS = {f"{s}_{w}" for s in ("train", "val") for w in ("gt", "clusters", "attention")}
OUTPUTS = {
    *("train_precision", "val_precision", "cut_start", "cut_precision", "cut_jaccard"),
    *("threshold", "val_mask", "jaccard_boundary_foreground", "jaccard_boundary_background"),
    *("jaccard_per_image", "bf_score_as_coded_threshold2"),
    *("attention", "attention_mask_0.65", "attention_mask_0.5"),
}


@pytest.fixture(scope="module")
def matching(golden):
    return golden("segmentation", "matching.npz")


@pytest.fixture(scope="module")
def clustered(golden):
    pytest.importorskip("faiss")
    return golden("segmentation", "kmeans.npz")


@pytest.mark.parametrize("tag", TAGS)
def test_scores(matching, tag):
    predicted, criterion = TAGS[tag]
    predicted = matching[predicted]
    scores = matched_scores(contingency(matching["gt"], predicted, void=VOID), criterion)
    assert scores.miou == pytest.approx(matching[f"{tag}_miou"], abs=1e-12)
    without = matching[f"{tag}_miou_without_background"]
    assert scores.miou_without_background == pytest.approx(without, abs=1e-12)
    for name in ("classes", "tp", "fp", "fn"):
        np.testing.assert_array_equal(getattr(scores, name), matching[f"{tag}_{name}"])
    np.testing.assert_allclose(scores.iou, matching[f"{tag}_iou"], rtol=0, atol=1e-12)
    kept = matching["gt"] != VOID
    named = renamed(predicted, scores.cluster_to_class)[kept]
    np.testing.assert_array_equal(named, matching[f"{tag}_reordered"])
    if criterion == "none":
        return
    expected = matching[f"{tag}_score_matrix"]
    np.testing.assert_allclose(scores.score_matrix, expected, rtol=0, atol=1e-7)
    assert scores.background_fraction == pytest.approx(matching[f"{tag}_bg_fraction"], abs=1e-12)
    layout = "match" if criterion == "hungarian" else "cluster_to_class"
    pairs = dict(matching[f"{tag}_{layout}"].T.tolist())
    assert scores.cluster_to_class == dict.fromkeys(scores.cluster_to_class, 0) | pairs


def mean_miou(truth, predicted, frames, criterion, void=None):
    """Return the mean of the mIoU over groups of so many frames."""
    starts = range(0, len(truth), frames)
    tables = [
        contingency(truth[n : n + frames], predicted[n : n + frames], void=void) for n in starts
    ]
    return np.mean([matched_scores(table, criterion).miou for table in tables])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_scopes(matching, scope, name):
    predicted, criterion = PROTOCOLS[name]
    truth = matching["gt_void_as_background"]
    found = mean_miou(truth, matching[predicted], SCOPES[scope], criterion)
    assert found == pytest.approx(matching[f"protocol_{scope}-wise_{name}"], abs=1e-12)


def test_void_as_a_class_as_published_frame_by_frame(matching):
    """Ours drops void everywhere; the table without ``void`` is the published one."""
    found = mean_miou(matching["gt"], matching["pred"], 1, "hungarian")
    expected = matching["protocol_frame-wise_hungarian_void_as_class"]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_classes(matching, name):
    predicted, criterion = FIXED[name]
    table = contingency(matching["gt"], matching[predicted], void=VOID)
    found = matched_scores(with_classes(table, 7), criterion).miou
    assert found == pytest.approx(matching[f"fixed7_{name}_miou"], abs=1e-12)


@pytest.fixture(scope="module")
def reduced(clustered):
    """Return the maps (6, 50, 7, 7), from rows that come in parts."""
    rows = clustered["features"].reshape(-1, clustered["features"].shape[-1])
    moments = Moments()
    for part in np.array_split(rows, 4):
        moments.add(part)
    projection = moments.projection(DIMENSIONS)
    np.testing.assert_allclose(projection.variance, clustered["pca_variance"], rtol=2e-5)
    return projection(rows).reshape(6, 7, 7, DIMENSIONS).transpose(0, 3, 1, 2)


def test_scaler_and_components(clustered, reduced):
    rows = reduced.transpose(0, 2, 3, 1).reshape(-1, DIMENSIONS)
    np.testing.assert_allclose(rows.var(axis=0), clustered["pca_variance"], rtol=2e-5)
    gram = clustered["pca_gram"]
    np.testing.assert_allclose(rows[: len(gram)] @ rows[: len(gram)].T, gram, atol=2e-4)


@pytest.mark.parametrize("variant", ["published", "fast"])
@pytest.mark.parametrize("scope", GROUPS)
def test_clusters(clustered, reduced, scope, variant):
    """As good as the published clusters; labels depend on faiss' random numbers and rounding.

    `published` found the very clusters with the faiss of constraints.txt.
    """
    side = clustered["gt"].shape[-1]
    truth = clustered["gt"].reshape(-1, side, side)
    published = clustered[f"{scope}_clusters"].reshape(-1, side, side)
    mious, inertias = [], []
    for frames in GROUPS[scope]:
        points = upsampled(reduced[frames], side)
        found = cluster_maps(reduced[frames], CLUSTERS, side, KMeans(variant=variant))
        mious.append(matched_scores(contingency(truth[frames], found), "hungarian").miou)
        inertias.append(inertia(points, found.ravel()))
        expected = clustered[f"{scope}_inertia"][len(inertias) - 1]
        assert inertia(points, published[frames].ravel()) == pytest.approx(expected, rel=1e-4)
    assert np.mean(mious) == pytest.approx(clustered[f"{scope}_miou"], abs=0.03)
    # Lower is better.
    assert (np.array(inertias) <= 1.02 * clustered[f"{scope}_inertia"]).all()


def inertia(points, labels):
    """Return the sum of squared distances to the means of the clusters."""
    each = (points[labels == k].astype(np.float64) for k in np.unique(labels))
    return sum(((own - own.mean(axis=0)) ** 2).sum() for own in each)


def test_nothing_of_the_set_is_left_out(matching, clustered):
    known = {"gt", "gt_void_as_background", "pred", "pred_over", "pred_3", "pred_linear"}
    each = ("miou", "miou_without_background", "classes", "tp", "fp", "fn", "iou", "reordered")
    known |= {f"{tag}_{name}" for tag in TAGS for name in each}
    for tag, (_, criterion) in TAGS.items():
        if criterion != "none":
            layout = "match" if criterion == "hungarian" else "cluster_to_class"
            known |= {f"{tag}_{name}" for name in ("score_matrix", "bg_fraction", layout)}
    known |= {f"protocol_{scope}-wise_{name}" for scope in SCOPES for name in PROTOCOLS}
    known |= {"protocol_frame-wise_hungarian_void_as_class"}
    assert set(matching) == known | {f"fixed7_{name}_miou" for name in FIXED}
    known = {"features", "gt", "pca_gram", "pca_variance"}
    known |= {f"{scope}_{what}" for scope in GROUPS for what in ("clusters", "miou", "inertia")}
    assert set(clustered) == known


@pytest.fixture(scope="module")
def values(golden):
    return golden("segmentation", "cbfe.npz")


def counted(values, split, masks):
    clusters = values[f"{split}_clusters"]
    return np.stack(
        [
            cluster_counts(ids, mask, len(values["train_precision"]))
            for ids, mask in zip(clusters, masks, strict=True)
        ]
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


def test_nothing_of_the_foreground_is_left_out(values):
    assert set(values) == INPUTS | OUTPUTS
