"""Foreground from soft masks: cells against enlarged masks, and cases by hand."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from timewalk.errors import UserError
from timewalk.metrics.video_foreground import (
    Annotation,
    border_foreground,
    counted,
    enlarged,
    iou,
    min_max,
    occurring,
    oracle_foreground,
    overlap,
)


def plain_oracle(masks_VKhw, truth, void):
    """Return the mask of SMTC's routine, step by step on enlarged masks, and J."""
    height, width = truth.shape
    h, w = masks_VKhw.shape[-2:]
    large = np.array(
        [
            [
                [
                    [mask[y * h // height, x * w // width] for x in range(width)]
                    for y in range(height)
                ]
                for mask in masks_Khw
            ]
            for masks_Khw in masks_VKhw
        ]
    )

    def agreement(found, wanted):
        found, wanted = found & ~void, wanted & ~void
        # Equal shares must be equal: the original's 1e-12 in the denominator would decide ties.
        return (found & wanted).sum() / max((found | wanted).sum(), 1)

    passes = []
    for masks in large:
        total = np.zeros(truth.shape)
        for mask in masks:
            copy = (mask - mask.min()) / (mask.max() - mask.min() + 1e-10) > 0.5
            if agreement(copy, truth) > agreement(copy, ~truth):
                total += mask
        passes.append(total)
    mean = np.mean(passes, axis=0)
    soft = (mean - mean.min()) / (mean.max() - mean.min() + 1e-10)
    return soft, agreement(soft > 0.5, truth)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.integers(0, 999),
)
@example(shape=(1, 3, 5, 5), size=(1, 10), seed=402)
def test_cells_give_what_enlarged_masks_give(shape, size, seed):
    """Also where the annotation is smaller than the map, so that cells are left out."""
    rng = np.random.default_rng(seed)
    masks, truth = rng.random(shape), rng.random(size) < 0.4
    void = rng.random(size) < 0.1
    annotation = counted(truth, shape[-2:], void)
    soft = oracle_foreground(occurring(masks, size), annotation)
    expected, j = plain_oracle(masks, truth, void)
    rows = np.unique(np.arange(size[0]) * shape[2] // size[0], return_inverse=True)[1]
    columns = np.unique(np.arange(size[1]) * shape[3] // size[1], return_inverse=True)[1]
    np.testing.assert_allclose(soft[rows[:, None], columns], expected, atol=1e-9)
    assert iou(*overlap(soft > 0.5, annotation)) == pytest.approx(j, abs=1e-9)
    assert annotation.inside.sum() + annotation.outside.sum() == (~void).sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_counts_are_those_of_the_enlarged_cells(h, w, height, width):
    rng = np.random.default_rng(h + 10 * w)
    truth = rng.random((height, width)) < 0.5
    annotation = counted(truth, (h, w))
    numbers = enlarged(occurring(np.arange(h * w).reshape(h, w), truth.shape), truth.shape)
    if h <= height and w <= width:
        assert numbers.max() == h * w - 1
        found = np.bincount(numbers[truth], minlength=h * w).reshape(h, w)
        np.testing.assert_array_equal(annotation.inside, found)
    assert annotation.inside.sum() == truth.sum()
    assert annotation.outside.sum() == (~truth).sum()


def test_enlarged_takes_the_cell_at_the_floor():
    cells = np.array([[1, 2, 3]])
    assert enlarged(cells, (2, 7)).tolist() == [[1, 1, 1, 2, 2, 3, 3]] * 2
    assert enlarged(cells, (1, 2)).tolist() == [[1, 2]]
    assert occurring(cells, (1, 2)).tolist() == [[1, 2]]
    found = enlarged(np.arange(16).reshape(2, 8), (3, 13))
    assert found[:, 0].tolist() == [0, 0, 8]
    assert found[0].tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7]


def test_constant_maps_become_nothing():
    assert min_max(np.full((2, 3, 4), 7.0)).tolist() == np.zeros((2, 3, 4)).tolist()
    annotation = Annotation(inside=np.array([[2, 0]]), outside=np.array([[0, 2]]))
    soft = oracle_foreground(np.full((1, 3, 1, 2), 0.2), annotation)
    assert not soft.any()
    assert [int(x) for x in overlap(soft > 0.5, annotation)] == [0, 2]


def test_the_oracle_sums_masks_as_they_are():
    """Two slots on the object, of height 1 and 3: only the higher is above half of the maximum."""
    masks = np.zeros((1, 3, 1, 4))
    masks[0, 0, 0, 0], masks[0, 1, 0, 1], masks[0, 2, 0, 2:] = 1, 3, 9
    annotation = Annotation(inside=np.array([[5, 5, 0, 0]]), outside=np.array([[0, 0, 5, 5]]))
    soft = oracle_foreground(masks, annotation)
    np.testing.assert_allclose(soft, [[1 / 3, 1, 0, 0]], atol=1e-9)
    assert iou(*overlap(soft > 0.5, annotation)) == 0.5


def test_an_empty_truth_chooses_nothing():
    rng = np.random.default_rng(0)
    annotation = counted(np.zeros((8, 8), bool), (4, 4))
    soft = oracle_foreground(rng.random((2, 5, 4, 4)), annotation)
    both, union = overlap(soft > 0.5, annotation)
    assert (int(both), int(union)) == (0, 0)
    assert (iou(both, union), iou(both, union, empty=1.0)) == (0, 1)


def test_iou():
    found = iou(np.array([0, 3, 0]), np.array([0, 4, 5]), empty=1.0)
    assert found.tolist() == [1, 0.75, 0]


class TestBorder:
    def test_what_keeps_off_the_border_is_foreground(self):
        masks = np.full((1, 2, 4, 5), 0.9)
        masks[0, 0, 1:3, 1:4] = 0.2
        masks[0, 1] = 1 - masks[0, 0]
        found = border_foreground(masks)
        np.testing.assert_allclose(found, masks[0, 1])
        assert (found > 0.5).sum() == 6

    def test_passes_are_averaged(self):
        one, two = np.zeros((1, 3, 3)), np.zeros((1, 3, 3))
        one[0, 1, 1], two[0, 0, 0] = 1, 1
        found = border_foreground(np.stack([one, two]))
        assert found.tolist() == [[0, 0, 0], [0, 0.5, 0], [0, 0, 0]]

    def test_constant_masks_are_background(self):
        assert not border_foreground(np.full((2, 4, 5, 6), 0.25)).any()

    @pytest.mark.parametrize("shape", [(2, 9), (9, 2)])
    def test_maps_without_an_inside(self, shape):
        message = rf"maps of {shape[0]} x {shape[1]} cells are all border; raise image_height"
        with pytest.raises(UserError, match=message):
            border_foreground(np.zeros((1, 2, *shape)))
