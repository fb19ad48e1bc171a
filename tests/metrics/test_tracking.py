"""Overlap, success and speed of trackers on cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timewalk.metrics.tracking import (
    THRESHOLDS,
    average_overlap,
    class_balanced,
    clipped,
    counted,
    frames_per_second,
    overlaps,
    pooled,
    scores,
    success_curve,
    success_rate,
)

SIZE = (100, 200)  # height, width
NAN = float("nan")


def one(predicted, truth, size=SIZE):
    return overlaps(np.array([predicted], float), np.array([truth], float), size)[0]


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ((10, 20, 40, 30), (10, 20, 40, 30), 1),
        ((20, 20, 40, 30), (10, 20, 40, 30), 30 * 30 / (2 * 1200 - 900)),
        ((60, 20, 40, 30), (10, 20, 40, 30), 0),
        ((50, 20, 40, 30), (10, 20, 40, 30), 0),  # edges that touch
        ((0, 0, 200, 100), (10, 20, 40, 30), 1200 / 20000),
        # The corner moves into the image, the width stays: (0, 20, 40, 30).
        ((-20, 20, 40, 30), (0, 20, 40, 30), 1),
        # The truth is cut to (180, 20, 20, 30), the prediction to (190, 20, 10, 30).
        ((190, 20, 40, 30), (180, 20, 40, 30), 0.5),
        ((250, 20, 40, 30), (180, 20, 40, 30), 0),  # nothing of it in the image
        ((10, 20, -5, 30), (10, 20, 40, 30), 0),
        ((10, 20, 0, 30), (10, 20, 40, 30), 0),
        ((10, 20, 40, 30), (0, 0, 0, 0), 0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0),
        ((NAN, 20, 40, 30), (10, 20, 40, 30), 0),
        ((10, 20, 40, NAN), (10, 20, 40, 30), 0),
    ],
)
def test_overlap_by_hand(predicted, truth, expected):
    assert one(predicted, truth) == pytest.approx(expected, abs=1e-15)


def test_the_inputs_are_left_alone():
    boxes = np.array([[-5.0, -5, 300, 300]])
    overlaps(boxes, boxes, SIZE)
    assert boxes.tolist() == [[-5, -5, 300, 300]]
    assert clipped(boxes, SIZE).tolist() == [[0, 0, 200, 100]]


def test_boxes_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"boxes \(2, 4\) and \(3, 4\) are not both \(T, 4\)"):
        overlaps(np.zeros((2, 4)), np.zeros((3, 4)), SIZE)


box = st.tuples(*[st.floats(-50, 250)] * 2, *[st.floats(0, 250)] * 2)


@given(box, box)
def test_overlap_is_symmetric_and_a_share(a, b):
    value = one(a, b)
    assert 0 <= value <= 1
    assert value == one(b, a)


@given(st.integers(0, 150), st.integers(0, 80), st.integers(2, 50), st.integers(2, 20))
def test_a_box_overlaps_itself_wholly(x, y, w, h):
    assert one((x, y, w, h), (x, y, w, h)) == 1


def test_the_first_frame_and_unseen_ones_do_not_count():
    assert counted(4).tolist() == [False, True, True, True]
    assert counted(4, np.array([8, 0, 1, 8])).tolist() == [False, False, True, True]
    assert counted(1).tolist() == [False]


def test_rates_are_strict():
    found = np.array([0.5, 0.75, 1.0, 0.25])
    assert scores(found) == {"ao": 0.625, "sr50": 0.5, "sr75": 0.25}
    assert success_rate(found, 0.25) == 0.75


def test_nothing_scored_has_no_scores():
    assert scores(np.empty(0)) == {"ao": None, "sr50": None, "sr75": None}
    assert average_overlap(pooled([])) is None
    assert np.isnan(success_curve(np.empty(0))).all()


def test_success_curve():
    found = np.array([0.0, 0.301, 0.305, 1.0])
    curve = success_curve(found)
    assert THRESHOLDS[[0, 30, 100]].tolist() == [0, 0.3, 1]
    assert curve[[0, 30, 31, 99, 100]].tolist() == [0.75, 0.75, 0.25, 0.25, 0]


@given(st.lists(st.floats(0, 1), min_size=1))
def test_success_curve_falls(values):
    assert (np.diff(success_curve(np.array(values))) <= 0).all()


def test_pooled_and_class_balanced_by_hand():
    videos = {
        "a": np.array([1.0, 1.0, 1.0, 1.0]),
        "b": np.array([0.4]),
        "c": np.array([0.6, 0.0]),
        "d": np.empty(0),
    }
    assert average_overlap(pooled(videos.values())) == pytest.approx(5 / 7)
    classes = {"a": "bear", "b": "bear", "c": "car", "d": "dog"}
    found = class_balanced(videos, classes)
    assert found["mao"] == pytest.approx(((1 + 0.4) / 2 + 0.3) / 2)
    assert found["msr50"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["msr75"] == pytest.approx((0.5 + 0) / 2)
    assert class_balanced({"d": videos["d"]}, classes)["mao"] is None


def test_speed():
    assert frames_per_second([0.5, 0.25, 0, NAN, -1]) == 3
    assert frames_per_second([0, NAN]) is None
