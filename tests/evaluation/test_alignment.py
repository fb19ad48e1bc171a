"""Matches of videos and their scores, against numbers worked out by hand."""

import numpy as np
import pytest

from tests.evaluation.aligned import video
from timewalk.evaluation.alignment import averaged, match, scores


def test_neighbours_jump_and_warping_goes_on():
    # Both videos end as they begin.
    reference, other = video([0, 1, 2, 3, 0]), video([0.1, 1, 2, 3, 3, 0])
    near = match(reference, other, use_dtw=False, normalise=False)
    assert near.frames.tolist() == near.nearest.tolist() == [5, 1, 2, 3, 5]
    warped = match(reference, other, use_dtw=True, normalise=False)
    assert warped.frames.tolist() == [0, 1, 2, 3, 5]
    assert warped.nearest.tolist() == [5, 1, 2, 3, 5]
    assert warped.path.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [3, 4], [4, 5]]
    np.testing.assert_allclose(near.distances[0], [0.01, 1, 4, 9, 9, 0], atol=1e-6)


def test_normalised_embeddings_forget_their_lengths():
    reference, other = video([[3, 4], [0, 2]]), video([[0, 1], [30, 40]])
    found = match(reference, other, use_dtw=False, normalise=True)
    assert found.nearest.tolist() == [1, 0]
    np.testing.assert_allclose(found.distances[0, 1], 0, atol=1e-12)
    np.testing.assert_allclose(found.distances[0, 0], 0.6**2 + 0.2**2, rtol=1e-5)
    # The published 1e-7 keeps the zero vector finite.
    still = match(video([[0, 0]]), other, use_dtw=False, normalise=True)
    np.testing.assert_allclose(still.distances, [[1, 1]], rtol=1e-6)


def test_scores_by_hand():
    reference = video([0, 1, 2, 4], labels=[0, 0, 1, 2])
    other = video([0, 2, 4], labels=[0, 2, 2])
    found = match(reference, other, use_dtw=False, normalise=False)
    # Frame 1 is as near to 0 as to 1: the first.
    assert found.frames.tolist() == [0, 0, 1, 2]
    values = scores(reference, other, found)
    # The path pays for frame 1 alone; 14 of 12 cells is what a cell costs on average.
    assert found.path.tolist() == [[0, 0], [1, 0], [2, 1], [3, 2]]
    all_cells = (0 + 4 + 16) + (1 + 1 + 9) + (4 + 0 + 4) + (16 + 4 + 0)
    assert values["dtw_cost"] == pytest.approx(1 / 4)
    assert values["dtw_cost_percent"] == pytest.approx(100 * (1 / 4) / (all_cells / 12))
    # Phases of matched frames: 0-0, 0-0, 1-2, 2-2.
    assert values["phase_difference"] == pytest.approx(1 / 4)
    assert values["same_phase_percent"] == pytest.approx(75)


@pytest.mark.parametrize("unlabelled", [0, 1])
def test_without_labels_phases_have_no_score(unlabelled):
    labels = [[0, 1], [0, 1]]
    labels[unlabelled] = None
    reference, other = (video([0, 1], labels=x) for x in labels)
    values = scores(reference, other, match(reference, other, use_dtw=False, normalise=False))
    assert values["phase_difference"] is values["same_phase_percent"] is None
    assert values["dtw_cost"] == 0


def test_a_collapsed_run_has_no_relative_cost():
    reference, other = video([1, 1, 1]), video([1, 1])
    values = scores(reference, other, match(reference, other, use_dtw=True, normalise=False))
    assert values["dtw_cost"] == 0
    assert values["dtw_cost_percent"] is None


def test_means_are_over_videos_that_have_the_score():
    rows = [{"a": 1.0, "b": None}, {"a": 3.0, "b": 5.0}]
    assert averaged(rows) == {"a": 2.0, "b": 5.0}
    assert averaged([{"b": None}]) == {"b": None}
