"""Confusion matrix and its figures by hand, and what holds for any masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timewalk.metrics.segmentation import confusion, scores


def test_by_hand():
    truth = np.array([[0, 0, 0, 0], [1, 1, 1, 255]], np.uint8)
    predicted = np.array([[0, 0, 1, 0], [1, 1, 0, 1]], np.uint8)
    matrix = confusion(truth, predicted, 3)
    assert matrix.tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert matrix.dtype == np.int64
    found = scores(matrix)
    assert found.iou[:2].tolist() == pytest.approx([3 / 5, 2 / 4])
    assert np.isnan(found.iou[2])
    assert found.mean_iou == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert found.overall_accuracy == pytest.approx(5 / 7)
    assert found.mean_accuracy == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.weighted_iou == pytest.approx((4 * 3 / 5 + 3 * 2 / 4) / 7)


def test_a_class_that_is_only_predicted_counts_in_the_mean_iou_alone():
    found = scores(np.array([[3, 1], [0, 0]]))
    assert found.iou.tolist() == [0.75, 0]
    assert found.mean_iou == 0.375
    assert found.mean_accuracy == 0.75
    assert found.weighted_iou == 0.75


def test_true_ids_beyond_the_classes_are_ignored():
    truth = np.array([0, 1, 2, 19, 20, 255], np.uint8)
    assert confusion(truth, np.zeros(6, np.uint8), 20).sum() == 4
    signed = np.array([0, 1, -1, -7], np.int64)
    assert confusion(signed, np.zeros(4, np.uint8), 2).tolist() == [[1, 0], [1, 0]]


def test_a_predicted_id_beyond_the_classes():
    with pytest.raises(ValueError, match="the predicted id 20 is beyond 20 classes"):
        confusion(np.zeros(2, np.uint8), np.array([0, 20], np.uint8), 20)
    with pytest.raises(ValueError, match="the predicted id -1 is beyond 20 classes"):
        confusion(np.zeros(2, np.uint8), np.array([3, -1]), 20)


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"truth \(2,\) and prediction \(3,\) differ in shape"):
        confusion(np.zeros(2, np.uint8), np.zeros(3, np.uint8), 20)


@st.composite
def masks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape, classes = (draw(st.integers(1, 8)), draw(st.integers(1, 8))), draw(st.integers(1, 6))
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    return truth, rng.integers(0, classes, shape).astype(np.uint8), classes


@given(masks())
def test_against_counting_sets_of_pixels(case):
    truth, predicted, classes = case
    found = scores(confusion(truth, predicted, classes))
    for label in range(classes):
        a, b = truth == label, predicted == label
        if (a | b).any():
            assert found.iou[label] == pytest.approx((a & b).sum() / (a | b).sum())
        else:
            assert np.isnan(found.iou[label])
    assert found.overall_accuracy == pytest.approx((truth == predicted).mean())
    present = np.unique(truth)
    recalls = [(predicted[truth == label] == label).mean() for label in present]
    assert found.mean_accuracy == pytest.approx(np.mean(recalls))


@given(masks())
def test_perfect_is_1(case):
    truth, _, classes = case
    found = scores(confusion(truth, truth, classes))
    figures = [found.overall_accuracy, found.mean_accuracy, found.mean_iou, found.weighted_iou]
    assert figures == pytest.approx([1] * 4)


@given(masks(), masks())
def test_matrices_of_frames_add_up(one, other):
    classes = max(one[2], other[2])
    truth, predicted = (np.concatenate([one[i].ravel(), other[i].ravel()]) for i in (0, 1))
    parts = [confusion(case[0], case[1], classes) for case in (one, other)]
    assert (confusion(truth, predicted, classes) == sum(parts)).all()


def test_what_is_predicted_of_ignored_pixels_does_not_matter():
    ids = np.array([[0, 1], [255, 2]], np.uint8)
    assert (confusion(ids, ids, 3) == np.eye(3)).all()
