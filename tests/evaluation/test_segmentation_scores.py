"""Figures and tables of segmentations against classes."""

import numpy as np
import pytest

from timewalk.evaluation.segmentation_scores import class_table, percent, spread
from timewalk.metrics.matching import contingency, matched_scores


def scores(truth, predicted):
    return matched_scores(contingency(np.array(truth), np.array(predicted), void=255), "none")


def test_percent_by_hand():
    found = scores([0, 0, 1, 1, 255], [0, 1, 1, 1, 2])
    figures = {"miou": 100 * (1 / 2 + 2 / 3) / 2, "miou_without_background": 200 / 3}
    figures |= {"miou_fixed": 100 * (1 / 2 + 2 / 3) / 4, "pixel_accuracy": 75}
    assert percent(found, 4, background=True) == pytest.approx(figures)
    expected = figures | {"miou_without_background": None}
    assert percent(found, 4, background=False) == pytest.approx(expected)


def test_background_alone_has_no_mean_without_it():
    found = percent(scores([0, 0, 0, 255], [0, 0, 1, 1]), 3, background=True)
    assert found["miou"] == pytest.approx(200 / 3)
    assert found["miou_without_background"] is None


def test_classes_that_the_truth_lacks_have_no_iou():
    table = class_table(scores([0, 0, 1], [0, 1, 1]), ("ground", "rose", "leaf"))
    assert table[1:] == [
        [0, "ground", "50", 2, 1],
        [1, "rose", "50", 1, 2],
        [2, "leaf", None, 0, None],
    ]


def test_spread():
    assert spread(9, 3) == [0, 4, 8]
    assert spread(2, 5) == [0, 1]
    assert spread(5, 0) == []
