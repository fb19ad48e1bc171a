"""First labels of a box, and boxes of soft labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from timewalk.evaluation.got10k_boxes import (
    BoxFinder,
    _greatest_rectangle,
    densest_box,
    first_labels,
)

SIZE, GRID = (80, 160), (10, 20)  # cells of 8 pixels


def test_labels_of_a_box_are_shares_of_cells():
    background, inside = first_labels(np.array([12.0, 8, 20, 12]), SIZE, GRID, "box")
    torch.testing.assert_close(background, 1 - inside)
    assert inside[1, 1:4].tolist() == [0.5, 1, 1]
    assert inside[2, 1:4].tolist() == [0.25, 0.5, 0.5]
    assert inside.sum() == pytest.approx(20 * 12 / 64)


def test_labels_of_an_ellipse():
    box = np.array([16.0, 8, 96, 64])
    inside = first_labels(box, SIZE, GRID, "ellipse")[1]
    assert inside.sum() * 64 == pytest.approx(np.pi / 4 * 96 * 64, rel=0.005)
    torch.testing.assert_close(inside[:, 2:14], inside[:, 2:14].flip(0, 1))
    assert inside[1, 2] == 0
    assert inside[5, 7] == 1


@pytest.mark.parametrize("shape", ["ellipse", "box"])
@pytest.mark.parametrize("box", [(37.3, 21.2, 0.3, 0.4), (-4, -4, 9, 9), (150, 70, 90, 90)])
def test_the_greatest_label_is_one(shape, box):
    """Of objects smaller than a cell, and of those that the image cuts."""
    assert first_labels(np.array(box, float), SIZE, GRID, shape)[1].max() == 1


gains = arrays(np.int64, st.tuples(*[st.integers(1, 5)] * 2), elements=st.integers(-9, 9))


@given(gains)
def test_the_greatest_rectangle_is_the_best_of_all(gain):
    low, high, first, last = _greatest_rectangle(gain)
    height, width = gain.shape
    best = max(
        gain[a:b, c:d].sum()
        for a in range(height)
        for b in range(a + 1, height + 1)
        for c in range(width)
        for d in range(c + 1, width + 1)
    )
    # Nothing at all is also a choice where everything is a loss.
    assert gain[low:high, first:last].sum() == max(best, 0)


def test_many_rows_in_parts(monkeypatch):
    gain = np.random.default_rng(0).normal(-0.3, 1, (20, 12))
    whole = _greatest_rectangle(gain)
    monkeypatch.setattr("timewalk.evaluation.got10k_boxes.AT_ONCE", 30)
    assert _greatest_rectangle(gain) == whole


def test_a_scattered_cell_does_not_stretch_the_box():
    labels = np.zeros(GRID, np.float32)
    labels[3:6, 4:10] = 1
    labels[8, 18] = 1
    assert densest_box(labels, 0.3).tolist() == [4, 3, 6, 3]
    labels[4, 6] = 0  # nor does a hole split it
    assert densest_box(labels, 0.3).tolist() == [4, 3, 6, 3]


def test_nothing_left():
    assert densest_box(np.full(GRID, 0.25, np.float32), 0.3) is None


@pytest.mark.parametrize("shape", ["ellipse", "box"])
@given(
    st.floats(0, 100), st.floats(0, 40), st.floats(4, 60), st.floats(4, 40), st.floats(0, 1)
)  # fmt: skip
def test_the_first_labels_give_the_first_box(shape, x, y, w, h, smoothing):
    box = np.array([x, y, w, h])
    inside = first_labels(box, SIZE, GRID, shape)[1].numpy()
    finder = BoxFinder(box, inside, SIZE, 0.3, smoothing)
    np.testing.assert_allclose(finder(inside), box, atol=1e-9)
    assert finder.lost == 0


def finder_of(box, smoothing):
    inside = first_labels(box, SIZE, GRID, "box")[1].numpy()
    return BoxFinder(box, inside, SIZE, 0.3, smoothing)


def test_boxes_move_and_grow():
    finder = finder_of(np.array([16.0, 16, 32, 16]), 0)
    moved = first_labels(np.array([64.0, 32, 32, 16]), SIZE, GRID, "box")[1].numpy()
    np.testing.assert_allclose(finder(moved), [64, 32, 32, 16], atol=1e-9)


def test_sizes_change_slowly():
    finder = finder_of(np.array([16.0, 16, 32, 16]), 0.5)
    grown = first_labels(np.array([16.0, 16, 64, 16]), SIZE, GRID, "box")[1].numpy()
    sharp = finder_of(np.array([16.0, 16, 32, 16]), 0)(grown)
    box = finder(grown)
    np.testing.assert_allclose(box[2], np.sqrt(32 * sharp[2]))
    np.testing.assert_allclose(box[:2] + box[2:] / 2, sharp[:2] + sharp[2:] / 2)


def test_where_nothing_is_left_the_box_stays():
    finder = finder_of(np.array([16.0, 16, 32, 16]), 0.5)
    assert finder(np.zeros(GRID, np.float32)).tolist() == [16, 16, 32, 16]
    assert finder.lost == 1


def test_a_first_box_that_reaches_out_of_the_frame_stretches_no_later_one():
    """Labels of the part within, as they are, follow the object into the frame."""
    height, width = SIZE
    outside = np.array([-32.0, 16, 64, 32])
    finder = finder_of(outside, 0)
    inside = np.array([32.0, 16, 32, 32])
    labels = first_labels(inside, SIZE, GRID, "box")[1].numpy()
    np.testing.assert_allclose(finder(labels), inside, atol=1e-9)
    far = np.array([-500.0, -500, 502 + 30, 502 + 30])
    assert (finder_of(far, 0.5)(labels)[2:] <= (width, height)).all()
