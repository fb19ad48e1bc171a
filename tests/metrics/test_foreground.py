"""Foreground of clusters: the definitions, slowly, by hand, and invariants."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.errors import UserError
from timewalk.metrics.foreground import (
    boundary_f,
    cluster_counts,
    cluster_precision,
    contour,
    cut_starts,
    jaccard,
    jaccard_of_clusters,
    tune,
)


def images(seed, count=3, clusters=8, size=9):
    """Return clusters and a random mask of some images, and both tables of counts."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, clusters, (count, size, size))
    mask = rng.random(ids.shape) < rng.random(clusters)[ids]
    return ids, mask, counted(ids, np.ones_like(mask), clusters), counted(ids, mask, clusters)


def counted(ids, mask, clusters):
    return np.stack([cluster_counts(*pair, clusters) for pair in zip(ids, mask, strict=True)])


def test_precision_is_a_mean_over_the_images_that_have_the_cluster():
    pixels = np.array([[10, 4], [2, 0], [0, 5]])
    attended = np.array([[5, 4], [2, 0], [0, 0]])
    # Over all pixels cluster 0 would have 7 of 12.
    np.testing.assert_allclose(cluster_precision(pixels, attended), [(0.5 + 1) / 2, (1 + 0) / 2])


def test_a_cluster_without_pixels_is_one_sentence():
    with pytest.raises(UserError, match="1 of 3 clusters, such as 1, hold no pixel; lower"):
        cluster_precision(np.array([[4, 0, 5]]), np.array([[4, 0, 5]]))


@given(st.integers(0, 2**32 - 1))
def test_tables_give_the_jaccard_of_the_masks(seed):
    ids, truth, pixels, foreground = images(seed)
    chosen = np.random.default_rng(seed).random(8) < 0.5
    expected = jaccard(truth, chosen[ids])
    np.testing.assert_allclose(jaccard_of_clusters(pixels, foreground, chosen), expected)
    for one, mask, value in zip(truth, chosen[ids], expected, strict=True):
        union = (one | mask).sum()
        assert value == pytest.approx((one & mask).sum() / union if union else 1.0)


def test_an_empty_union_is_1():
    nothing = np.zeros((2, 4, 4), bool)
    one = nothing.copy()
    one[1, 0, 0] = True
    assert jaccard(nothing, nothing).tolist() == [1, 1]
    assert jaccard(nothing, one).tolist() == [1, 0]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_tuning_is_the_best_of_all_cuts(seed):
    ids, truth, pixels, foreground = images(seed, clusters=20, size=12)
    precision = np.random.default_rng(seed).random(20).round(1)
    found = tune(precision, pixels, foreground, (0.3, 0.8))
    order = np.argsort(precision, kind="stable")
    assert found.starts.tolist() == list(range(6, 16))
    each = [jaccard(truth, np.isin(ids, order[start:])).mean() for start in found.starts]
    np.testing.assert_allclose(found.jaccards, each)
    at_cut = precision[order[found.starts[len(each) - 1 - np.argmax(found.jaccards[::-1])]]]
    multiples = [number * 0.05 for number in range(20)]
    assert found.threshold == min(multiples, key=lambda value: abs(value - at_cut))


def test_of_equal_cuts_the_largest_counts():
    pixels, foreground = np.array([[1, 0, 0, 0, 2]]), np.array([[0, 0, 0, 0, 2]])
    precision = np.array([0.0, 0.31, 0.36, 0.61, 0.9])
    # Cuts 1 to 3 are equal: what they differ in has no pixels.
    assert tune(precision, pixels, foreground, (0.2, 0.8)).threshold == pytest.approx(0.6)


def test_a_threshold_stays_below_1():
    pixels = np.array([[1, 1, 1, 1]])
    found = tune(np.ones(4), pixels, pixels, (0.5, 0.75))
    assert found.threshold == pytest.approx(0.95)


def test_cuts():
    assert cut_starts(300, (0.55, 0.75)).tolist() == list(range(165, 225))
    with pytest.raises(UserError, match=r"no cut of 3 clusters lies between the shares 0.4 and"):
        cut_starts(3, (0.4, 0.6))


def drawn(text):
    return np.array([[sign == "#" for sign in line] for line in text.split()])


def test_outlines():
    square = drawn(".##### .##### .##### ......")
    expected = np.array([[0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1], [0] * 6])
    assert np.array_equal(contour(square), expected)
    # A line is passed twice, there and back; a dot once; a corner without its diagonal not at all.
    assert contour(drawn("..... .###. .....")).tolist()[1] == [0, 1, 2, 1, 0]
    assert contour(drawn("... .#. ...")).sum() == 1
    assert contour(drawn("##### ###.# ##### ##### #####"))[2, 2] == 0


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_outlines_are_opencvs(seed, share):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < share
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    expected = np.zeros(mask.shape, int)
    for line in lines:
        np.add.at(expected, (line[:, 0, 1], line[:, 0, 0]), 1)
    assert np.array_equal(contour(mask), expected)


def test_boundary_score():
    mask = np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    moved = np.roll(mask, 2, axis=1)
    assert boundary_f(mask, mask, 1) == 1
    # 16 pixels of outline each; of either, 4 + 2 are nearer than 2 to the other, 16 nearer than 3.
    assert boundary_f(mask, moved, 3) == 1
    assert boundary_f(mask, moved, 2) == boundary_f(moved, mask, 2) < 1
    assert math.isnan(boundary_f(mask, np.roll(mask, 9, axis=0), 2))


@pytest.mark.parametrize("value", [False, True])
def test_a_constant_mask_has_no_boundary_score(value):
    other = np.zeros((5, 5), bool)
    other[2, 2] = True
    assert boundary_f(np.full((5, 5), value), other, 16) == 0
    assert boundary_f(other, np.full((5, 5), value), 16) == 0
