"""Candidates to masks, to tracks, to ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.evaluation.slots import proposals
from timewalk.evaluation.proposal_tracks import (
    Track,
    binarised,
    link,
    paint,
    rank,
    soft_iou,
)

LEFT, RIGHT, NONE = [[1, 0]], [[0, 1]], [[0.5, 0.5]]
X, Y = [1.0, 0.0], [0.0, 1.0]


def members(tracks):
    return [(track.group, track.members) for track in tracks]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_binarised_is_enlarged_stretched_and_cut(seed, h, w, side):
    soft = np.random.default_rng(seed).random((3, h, w)).astype(np.float32)
    soft[1] = 0.25
    large = F.interpolate(torch.from_numpy(soft)[None], (side, 2 * side), mode="nearest")[0].numpy()
    masks = binarised(soft, (side, 2 * side))
    for mask, values in zip(masks, large, strict=True):
        low, high = values.min(), values.max()
        expected = (values - low) / (high - low) > 0.3 if high > low else np.zeros_like(values)
        np.testing.assert_array_equal(mask, expected.astype(bool))


def test_binarised_is_strict_and_may_hold_nothing():
    soft = np.array([[[0, 0.25, 0.5, 1]], [[0.7] * 4]], np.float32)
    assert binarised(soft, (1, 4)).tolist() == [[[False, False, True, True]], [[False] * 4]]
    assert binarised(soft[:0], (6, 8)).shape == (0, 6, 8)


def test_soft_iou():
    ones = np.array([[[1, 0]], [[0, 0]]], np.float32)
    others = np.array([[[0.5, 0.5]], [[0, 0]]], np.float32)
    np.testing.assert_allclose(soft_iou(ones, others), [[0.5 / 1.5, 0], [0, 0]])


def test_links_what_looks_alike_though_the_order_changes():
    found = proposals([[LEFT, LEFT], [LEFT, LEFT]], vectors=[[X, Y], [Y, X]])
    assert members(link(found)) == [(0, {0: 0, 1: 1}), (0, {0: 1, 1: 0})]


def test_links_what_covers_the_same_place_where_all_look_alike():
    found = proposals([[LEFT, RIGHT], [RIGHT, LEFT]])
    assert members(link(found)) == [(0, {0: 0, 1: 1}), (0, {0: 1, 1: 0})]


def test_groups_are_never_linked():
    found = proposals([[LEFT], [LEFT]], groups=[[0], [1]])
    assert members(link(found)) == [(0, {0: 0}), (1, {1: 0})]


def test_what_is_unlike_begins_a_track():
    found = proposals([[LEFT], [RIGHT]], vectors=[[X], [Y]])
    assert members(link(found)) == [(0, {0: 0}), (0, {1: 0})]


def test_what_finds_no_partner_begins_a_track():
    found = proposals([[LEFT], [LEFT, RIGHT]], vectors=[[X], [X, X]])
    assert members(link(found)) == [(0, {0: 0, 1: 0}), (0, {1: 1})]


def test_a_track_is_taken_up_after_a_gap():
    found = proposals(
        [[LEFT], np.zeros((0, 1, 2)), [RIGHT]],
        vectors=[[X], np.zeros((0, 2)), [[0.8, 0.6]]],
    )
    assert members(link(found)) == [(0, {0: 0, 2: 0})]
    found.vectors[2] = np.array([Y], np.float32)
    assert members(link(found)) == [(0, {0: 0}), (0, {2: 0})]


def test_no_candidate_at_all():
    found = proposals([np.zeros((0, 1, 2))] * 3)
    assert link(found) == []
    assert rank([], found) == []
    np.testing.assert_array_equal(paint([], found, (2, 4)), np.zeros((3, 2, 4), np.uint8))


def test_a_vector_of_length_zero_is_like_nothing():
    found = proposals([[LEFT], [RIGHT]], vectors=[[[0.0, 0.0]], [[0.0, 0.0]]])
    assert len(link(found)) == 2


def test_rank_by_score_times_frames_and_the_earlier_of_equals():
    masks = np.eye(4).reshape(4, 1, 4)[[0, 1, 2]]
    found = proposals([masks, masks], scores=[[0.5, 0.9, 0.9], [0.5, 0.5, 0.9]])
    tracks = [Track(0, {0: 0, 1: 0}), Track(1, {0: 1}), Track(2, {0: 2}), Track(3, {1: 2})]
    assert [track.group for track in rank(tracks, found)] == [0, 1, 2, 3]
    assert [track.group for track in rank(tracks[::-1], found, most=2)] == [0, 3]


def test_at_most_twenty_are_kept():
    found = proposals([np.eye(30).reshape(30, 1, 30)])
    tracks = [Track(k, {0: k}) for k in range(30)]
    assert [track.group for track in rank(tracks, found)] == list(range(20))


def test_repeats_make_room_for_others():
    """Twenty-one near-duplicates of the best track, then one elsewhere."""
    rng, scores = np.random.default_rng(0), np.linspace(1, 0.5, 22)
    masks = np.zeros((3, 22, 1, 40), np.float32)
    masks[:, :21, :, :20] = 1 - 0.1 * rng.random((3, 21, 1, 20))
    masks[:, 21, :, 20:] = 1
    found = proposals(list(masks), scores=[scores] * 3)
    tracks = [Track(k, dict.fromkeys(range(3), k)) for k in range(22)]
    assert [track.group for track in rank(tracks, found)] == [0, 21]


@pytest.mark.parametrize(
    ("like", "frames", "kept"), [(8, 10, 1), (6, 10, 2), (9, 8, 1), (8, 8, 2), (10, 6, 2)]
)
def test_what_repeats_a_better_track(like, frames, kept):
    """Of a track in ten frames: what covers some tenths of its mask in some of the frames."""
    masks = np.zeros((10, 2, 1, 10), np.float32)
    masks[:, 0], masks[:, 1, :, :like] = 1, 1
    found = proposals(list(masks))
    tracks = [Track(0, dict.fromkeys(range(10), 0)), Track(1, dict.fromkeys(range(frames), 1))]
    assert len(rank(tracks, found)) == kept
    assert len(rank(tracks[::-1], found)) == kept


def test_frames_without_either_do_not_count():
    found = proposals([[LEFT, LEFT], np.zeros((0, 1, 2)), [LEFT, LEFT]])
    tracks = [Track(0, {0: 0, 2: 0}), Track(1, {0: 1, 2: 1})]
    assert [track.group for track in rank(tracks, found)] == [0]


@pytest.mark.parametrize(("cells", "size"), [((5, 7), (30, 41)), ((30, 56), (480, 854))])
def test_paint_nearest_is_as_binarised(cells, size):
    """Also where the quotient of floats is not that of integers, as of 56 cells on 854 pixels."""
    soft = np.random.default_rng(0).random((1, *cells)).astype(np.float32)
    ids = paint([Track(0, {0: 0})], proposals([soft]), size, "nearest")
    np.testing.assert_array_equal(ids[0], binarised(soft, size)[0])


def test_paint_bilinear_has_smooth_edges():
    found = proposals([[[[0, 1]]]])
    ids = paint([Track(0, {0: 0})], found, (1, 20), "bilinear")[0, 0]
    # Centres of cells at 4.5 and 14.5: above 0.3 from 7.5 on.
    assert ids.tolist() == [0] * 8 + [1] * 12


def test_the_larger_soft_value_wins_and_the_earlier_of_equals():
    first = [[[0.5, 0.5, 0.0]]]
    found = proposals([np.array([[[0.5, 0.5, 0.0]], [[0.0, 0.5, 0.6]], [[0.9, 0.0, 0.0]]])])
    tracks = [Track(0, {0: 0}), Track(0, {0: 1}), Track(0, {0: 2})]
    assert paint(tracks, found, (1, 3), "nearest").tolist() == [[[3, 1, 2]]]
    assert paint(tracks[:1], proposals([first]), (1, 3), "nearest").tolist() == [[[1, 1, 0]]]


@pytest.mark.parametrize("enlarge", ["bilinear", "nearest"])
def test_a_constant_mask_paints_nothing(enlarge):
    found = proposals([[NONE, LEFT]])
    ids = paint([Track(0, {0: 0}), Track(0, {0: 1})], found, (2, 4), enlarge)
    assert set(np.unique(ids)) == {0, 2}


def test_a_track_is_painted_where_it_is_seen():
    found = proposals([[LEFT], np.zeros((0, 1, 2)), [LEFT]])
    ids = paint([Track(0, {0: 0, 2: 0})], found, (1, 2), "nearest")
    assert ids.tolist() == [[[1, 0]], [[0, 0]], [[1, 0]]]
