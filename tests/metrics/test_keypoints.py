"""PCK by hand, and what holds for any joints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timewalk.metrics.keypoints import pck, relative_distances

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


def frame(*points):
    """Return (2, K, 1) of points (x, y)."""
    return np.array(points, np.float64).T[..., None]


def test_by_hand():
    # The box is 30 x 40: its diagonal 50, the length 0.6 x 50 = 30.
    truth = frame((10, 10), (40, 50), (20, 30))
    predicted = frame((13, 14), (40, 50), (20, 39))
    found = relative_distances(predicted, truth)
    assert found.shape == (3, 1)
    assert found[:, 0].tolist() == pytest.approx([5 / 30, 0, 9 / 30])
    assert pck([found], THRESHOLDS).tolist() == [
        [0, 100, 0],
        [100, 100, 0],
        [100, 100, 100],
        [100, 100, 100],
        [100, 100, 100],
    ]


def test_a_distance_equal_to_the_threshold_counts():
    assert pck([np.array([[0.25]])], [0.25, 0.24]).tolist() == [[100], [0]]


def test_joints_that_are_not_predicted_do_not_take_part():
    # Without the second joint the box is 10 x 20; its x alone says that it is lost.
    truth = frame((10, 10), (400, 500), (20, 30))
    predicted = frame((10, 12), (-1, -1), (20, 30))
    found = relative_distances(predicted, truth)[:, 0]
    assert found[0] == pytest.approx(2 / (0.6 * np.hypot(10, 20)))
    assert np.isnan(found[1])
    assert found[2] == 0
    seen = relative_distances(frame((10, 12), (0, -5), (20, 30)), truth)
    assert not np.isnan(seen).any()


def test_a_frame_without_any_joint(recwarn):
    found = relative_distances(np.full((2, 3, 2), -1.0), np.ones((2, 3, 2)))
    assert found.shape == (3, 2)
    assert np.isnan(found).all()
    assert np.isnan(pck([found], THRESHOLDS)).all()
    assert not recwarn.list


def test_a_single_joint_has_a_box_without_size(recwarn):
    truth = frame((10, 10), (40, 50))
    off = relative_distances(frame((11, 10), (-1, -1)), truth)
    assert off[0, 0] == np.inf
    assert pck([off], THRESHOLDS)[:, 0].tolist() == [0] * 5
    exact = relative_distances(frame((10, 10), (-1, -1)), truth)
    assert exact[0, 0] == 0
    assert not recwarn.list


def test_videos_are_pooled_not_averaged():
    long, short = np.full((2, 3), 0.05), np.array([[0.9], [np.nan]])
    assert pck([long, short], [0.1]).tolist() == [[75, 100]]
    assert pck([short, long], [0.1]).tolist() == [[75, 100]]


@st.composite
def joints(draw):
    """Return truth and prediction, (2, K, T), some joints lost."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (2, draw(st.integers(1, 6)), draw(st.integers(1, 5)))
    truth = rng.integers(0, 200, shape).astype(float)
    predicted = truth + rng.normal(0, draw(st.sampled_from([0, 1, 20])), shape)
    predicted[:, rng.random(shape[1:]) < draw(st.sampled_from([0, 0.4]))] = -1
    return truth, predicted


@given(joints())
def test_a_frame_at_a_time(case):
    truth, predicted = case
    found = relative_distances(predicted, truth)
    for t in range(truth.shape[2]):
        seen = predicted[0, :, t] >= 0
        box = truth[:, seen, t]
        for joint in range(truth.shape[1]):
            if not seen[joint]:
                assert np.isnan(found[joint, t])
                continue
            length = 0.6 * np.hypot(*(np.ptp(axis) for axis in box))
            distance = np.hypot(*(predicted - truth)[:, joint, t])
            expected = distance / length if length else (np.inf if distance else 0)
            assert found[joint, t] == pytest.approx(expected)


@given(joints())
def test_perfect_is_100_and_more_tolerance_never_less(case):
    truth, predicted = case
    assert (pck([relative_distances(truth, truth)], THRESHOLDS) == 100).all()
    found = pck([relative_distances(predicted, truth)], THRESHOLDS)
    seen = ~np.isnan(found[0])
    assert (np.diff(found[:, seen], axis=0) >= 0).all()
    assert ((found[:, seen] >= 0) & (found[:, seen] <= 100)).all()


@given(joints(), st.floats(0.1, 10), st.floats(-50, 50))
def test_scale_and_place_of_the_person_do_not_matter(case, scale, shift):
    truth, predicted = case
    found = relative_distances(predicted, truth)
    seen = ~np.isnan(found)
    # A shift must not lose a joint: the sign of x decides.
    moved = np.where(seen, np.abs(shift) + scale * np.maximum(predicted, 0), -1)
    still = np.where(seen, np.maximum(predicted, 0), -1)
    expected = relative_distances(still, truth)
    again = relative_distances(moved, np.abs(shift) + scale * truth)
    np.testing.assert_allclose(again[expected > 1e-6], expected[expected > 1e-6], rtol=1e-6)
