"""Candidates matched anew in every frame."""

from dataclasses import replace

import numpy as np
import pytest

from tests.evaluation.davis_set import a_set
from timewalk.data.sequences import LabelledVideos
from timewalk.errors import UserError
from timewalk.evaluation.frame_matching import as_scores, match_frames, true_ids

VOID = 255


def truth(*rows):
    """Return frames of 20 x 30 pixels from strips of ids, ten columns each."""
    return [
        np.repeat([[a] * 10 + [b] * 10 + [c] * 10], 20, axis=0).astype(np.uint8) for a, b, c in rows
    ]


def soft(*strips):
    return np.array([[strip] for strip in strips], np.float32).reshape(len(strips), 1, 3)


def test_perfect_candidates_in_any_order():
    frames = truth((1, 0, 2), (1, 0, 2))
    found = match_frames([soft((0, 0, 1), (1, 0, 0)), soft((1, 0, 0), (0, 0, 1))], frames)
    np.testing.assert_array_equal(found.J, np.ones((2, 2)))
    np.testing.assert_array_equal(found.F, np.ones((2, 2)))
    np.testing.assert_array_equal(found.candidates, [[1, 0], [0, 1]])


def test_frames_with_fewer_candidates_than_objects():
    found = match_frames([soft((1, 0, 0)), soft()], truth((1, 0, 2), (1, 0, 2)))
    np.testing.assert_array_equal(found.J, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(found.F, [[1, 0], [0, 0]])


def test_an_absent_object_is_matched_by_an_empty_candidate():
    # The second frame has no object 2; its only candidate is object 1's, the other one is padding.
    found = match_frames([soft((0, 0, 1), (1, 0, 0)), soft((1, 0, 0))], truth((1, 0, 2), (1, 0, 0)))
    np.testing.assert_array_equal(found.J, np.ones((2, 2)))
    np.testing.assert_array_equal(found.candidates, [[1, 0], [0, 1]])


def test_without_padding_an_absent_object_gets_a_wrong_candidate():
    masks = soft((1, 0, 0), (0, 1, 0))
    found = match_frames([masks, masks], truth((1, 0, 2), (1, 0, 0)))
    np.testing.assert_array_equal(found.J, [[1, 1], [0, 0]])


def test_a_constant_candidate_is_empty():
    found = match_frames([soft((0.5, 0.5, 0.5))], truth((1, 0, 0)))
    np.testing.assert_array_equal(found.J, [[0]])


def test_void_does_not_count():
    found = match_frames([soft((1, 1, 0))], truth((1, VOID, 0)))
    np.testing.assert_array_equal([found.J, found.F], [[[1]], [[1]]])


def test_objects_are_those_of_the_first_frame():
    found = match_frames([soft((1, 0, 0))] * 2, truth((1, 0, 0), (1, 0, 2)))
    assert found.J.shape == (1, 2)
    nothing = match_frames([soft((1, 0, 0))], truth((0, VOID, 0)))
    assert nothing.J.shape == (0, 1)


def test_threads_change_nothing():
    rng = np.random.default_rng(0)
    masks = [rng.random((5, 6, 8)).astype(np.float32) for _ in range(4)]
    ids = list(rng.integers(0, 4, (4, 20, 30)).astype(np.uint8))
    alone, shared = (match_frames(masks, ids, workers) for workers in (1, 3))
    for name in ("J", "F", "candidates"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))


def test_rows_are_objects():
    scores = as_scores("cows", ["00000", "00001"], np.array([[0.2, 0.8]]), np.array([[1.0, 0.0]]))
    (row,) = scores.objects
    assert (row.name, row.object) == ("cows_1", 1)
    assert row.J_statistics.mean == pytest.approx(0.5)
    assert row.J_statistics.recall == pytest.approx(0.5)


def test_a_frame_without_annotation(tmp_path):
    video = next(iter(LabelledVideos(a_set(tmp_path))))
    assert [ids.shape for ids in true_ids(video)] == [(64, 80)] * 6
    with pytest.raises(UserError, match=r"00000\.jpg has no annotation, but every frame is scored"):
        true_ids(replace(video, masks=(None, *video.masks[1:])))
