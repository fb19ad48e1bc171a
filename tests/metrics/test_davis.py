"""J, F and their statistics: the definitions, slowly, and invariants."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.metrics import davis


def masks(seed, count=2, shape=(24, 31)):
    """Some masks of blobs: neighbouring pixels mostly agree."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, -(-shape[0] // 4), -(-shape[1] // 4))) < 0.4
    fine = coarse.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]]
    return fine ^ (rng.random((count, *shape)) < 0.02)


def id_map(seed, ids, shape=(24, 31)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, ids + 1, (-(-shape[0] // 5), -(-shape[1] // 5)))
    return coarse.repeat(5, 0).repeat(5, 1)[: shape[0], : shape[1]].astype(np.uint8)


def slow_boundary(mask):
    """As the official evaluation draws it, pixel by pixel."""
    height, width = mask.shape
    drawn = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            right, low = min(x + 1, width - 1), min(y + 1, height - 1)
            others = [mask[y, right], mask[low, x]]
            if y < height - 1 and x < width - 1:
                others.append(mask[low, right])
            drawn[y, x] = any(other != mask[y, x] for other in others)
    return drawn


def slow_dilation(mask, radius):
    y, x = np.indices(mask.shape)[..., None]
    ys, xs = np.nonzero(mask)
    return ((y - ys) ** 2 + (x - xs) ** 2 <= radius**2).any(-1)


def slow_contour(truth, result, radius):
    a, b = slow_boundary(truth), slow_boundary(result)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision = (b & slow_dilation(a, radius)).sum() / b.sum()
    recall = (a & slow_dilation(b, radius)).sum() / a.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(24, 31), (1, 9), (9, 1), (1, 1), (2, 2)]))
def test_boundary_is_the_definition(seed, shape):
    mask = masks(seed, 1, shape)[0]
    assert (davis.boundary_map(mask) == slow_boundary(mask)).all()


def test_no_boundary_along_the_edge_of_the_image():
    mask = np.zeros((5, 6), bool)
    mask[:, 3:] = True
    expected = np.zeros((5, 6), bool)
    expected[:, 2] = True  # half a pixel to the left
    assert (davis.boundary_map(mask) == expected).all()
    assert not davis.boundary_map(np.ones((5, 6), bool)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12), st.floats(0, 0.02))
def test_dilation_is_the_disk(seed, radius, share):
    mask = np.random.default_rng(seed).random((24, 31)) < share
    assert (davis.dilate(mask, radius) == slow_dilation(mask, radius)).all()


@pytest.mark.parametrize(
    ("shape", "radius"),
    [((480, 854), 8), ((120, 160), 2), ((240, 427), 4), ((64, 64), 1), ((1, 1), 1)],
)
def test_radius(shape, radius):
    assert davis.boundary_radius(shape) == radius


@pytest.mark.parametrize(("tolerance", "radius"), [(1, 1), (3.0, 3), (2.5, 3), (0.01, 10)])
def test_a_tolerance_from_1_on_is_pixels(tolerance, radius):
    assert davis.boundary_radius((480, 854), tolerance) == radius


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_masks_are_scored_by_definition(seed):
    truth, result, void = masks(seed, 3, (40, 130))
    union = ((truth | result) & ~void).sum()
    expected = (truth & result & ~void).sum() / union
    assert davis.region_similarity(truth, result, void) == expected
    radius = davis.boundary_radius(truth.shape)
    assert radius == 2
    assert davis.contour_accuracy(truth, result) == slow_contour(truth, result, radius)
    clean = slow_contour(truth & ~void, result & ~void, radius)
    assert davis.contour_accuracy(truth, result, void) == clean


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_symmetry_and_perfection(seed):
    a, b = masks(seed)
    assert davis.region_similarity(a, b) == davis.region_similarity(b, a)
    assert davis.contour_accuracy(a, b) == davis.contour_accuracy(b, a)
    assert davis.region_similarity(a, a) == davis.contour_accuracy(a, a) == 1


def test_empty_masks():
    """As published: both empty agree; a mask of the whole image has no boundary."""
    empty, full = np.zeros((8, 9), bool), np.ones((8, 9), bool)
    some = empty.copy()
    some[2:5, 2:5] = True
    assert davis.region_similarity(empty, empty) == davis.contour_accuracy(empty, empty) == 1
    assert davis.region_similarity(some, empty) == davis.contour_accuracy(some, empty) == 0
    assert davis.contour_accuracy(empty, some) == 0
    assert davis.contour_accuracy(full, empty) == 1
    assert davis.region_similarity(full, empty) == 0
    assert davis.region_similarity(some, full, void=some) == 0
    assert davis.region_similarity(some, empty, void=some) == 1


def test_far_boundaries_share_nothing():
    a, b = np.zeros((2, 40, 40), bool)
    a[2:6, 2:6], b[30:34, 30:34] = True, True
    assert davis.contour_accuracy(a, b) == 0


def test_the_void_area_beside_an_object_costs_nothing():
    """The official tool's own check: truth a square, result the square and the void beside it."""
    truth, void = np.zeros((2, 64, 64), bool)
    truth[20:40, 20:40], void[20:40, 40:55] = True, True
    assert davis.region_similarity(truth, truth | void, void) == 1
    assert davis.contour_accuracy(truth, truth | void, void) == 1
    assert davis.region_similarity(truth, truth | void) < 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 6))
def test_id_maps_are_scored_as_their_masks(seed, objects, proposals):
    """Higher ids than those asked for are background, in the truth as in the result."""
    truth, result = id_map(seed, 5, (60, 90)), id_map(seed + 1, 7, (60, 90))
    J, F = davis.frame_scores(truth, result, objects, proposals)
    assert J.shape == F.shape == (proposals, objects)
    for p in range(proposals):
        for o in range(objects):
            pair = truth == o + 1, result == p + 1
            assert J[p, o] == davis.region_similarity(*pair)
            assert F[p, o] == davis.contour_accuracy(*pair)


def test_every_id_of_eight_bits():
    truth = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3, 0).repeat(3, 1)
    J, F = davis.frame_scores(truth, truth, 255, 255)
    np.testing.assert_array_equal(J, np.eye(255))
    assert (np.diagonal(F) == 1).all()


EDGES = {
    4: (0, 1, 2, 2, 3),
    5: (0, 1, 2, 3, 4),
    7: (0, 2, 3, 5, 6),
    10: (0, 2, 5, 7, 9),
    23: (0, 6, 11, 17, 22),
    68: (0, 17, 34, 50, 67),
    102: (0, 25, 51, 76, 101),
}


@pytest.mark.parametrize("length", EDGES)
def test_decay_by_the_edges(length):
    series = np.random.default_rng(length).random(length)
    edges = EDGES[length]
    expected = series[: edges[1] + 1].mean() - series[edges[3] : edges[4] + 1].mean()
    assert davis.statistics(series).decay == expected


def test_statistics():
    found = davis.statistics(np.array([0.5, 0.75, np.nan, 1.0]))
    assert found == davis.Statistics(mean=0.75, recall=0.5, decay=0.625 - 1.0)
    one = davis.statistics(np.array([0.3]))
    assert (one.mean, one.recall, one.decay) == (0.3, 0, 0)
    none = davis.statistics(np.array([np.nan, np.nan]))
    assert math.isnan(none.mean)
    assert none.recall == 0


@pytest.mark.parametrize("length", [257, 300, 1000])
def test_decay_of_long_sequences(length):
    """A falling line: the official 8-bit edges lose it, ours do not."""
    series = np.linspace(1, 0, length)
    assert davis.statistics(series).decay == pytest.approx(0.75, abs=0.01)
    assert davis.statistics(series, eight_bit_edges=True).decay != pytest.approx(0.75, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_up_to_256_frames_the_width_of_edges_is_nothing(seed):
    series = np.random.default_rng(seed).random(1 + seed % 256)
    assert davis.statistics(series) == davis.statistics(series, eight_bit_edges=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 3))
def test_matching_is_the_best(seed, objects, more):
    """No exchange of two objects, nor another proposal for one, is better; the order is free."""
    rng = np.random.default_rng(seed)
    J, F = rng.random((2, objects + more, objects, 5))
    score = (J.mean(2) + F.mean(2)) / 2
    proposals, chosen = davis.match(J, F)
    assert sorted(chosen) == list(range(objects))
    assert list(proposals) == sorted(set(proposals))
    total = score[proposals, chosen].sum()
    for _ in range(20):
        other = rng.permutation(objects + more)[:objects]
        assert score[other, np.arange(objects)].sum() <= total + 1e-12
    order = rng.permutation(objects + more)
    again = davis.match(J[order], F[order])
    assert score[order][again].sum() == pytest.approx(total)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(24, 31), (1, 9), (9, 1), (2, 2)]))
def test_overlapping_masks_are_scored_one_by_one(seed, shape):
    truth, found = id_map(seed, 3, shape), masks(seed, 4, shape)
    void = masks(seed + 1, 1, shape)[0]
    J, F = davis.overlapping_scores(truth, found, 2, void)  # the third id is background
    assert J.shape == F.shape == (4, 2)
    for place, mask in enumerate(found):
        for number in (1, 2):
            pair = truth == number, mask, void
            assert J[place, number - 1] == davis.region_similarity(*pair)
            assert F[place, number - 1] == davis.contour_accuracy(*pair)


def test_overlapping_masks_without_overlap_are_an_id_map():
    truth, result = id_map(0, 3), id_map(1, 4)
    stack = np.stack([result == number for number in range(1, 5)])
    expected = davis.frame_scores(truth, result, 3, 4)
    for values, others in zip(davis.overlapping_scores(truth, stack, 3), expected, strict=True):
        np.testing.assert_array_equal(values, others)


def test_any_number_of_overlapping_masks():
    truth = id_map(0, 2)
    J, F = davis.overlapping_scores(truth, np.zeros((0, *truth.shape), bool), 2)
    assert J.shape == F.shape == (0, 2)
    many = np.stack([truth == 1, truth == 2] * 150)
    J, F = davis.overlapping_scores(truth, many, 2)
    np.testing.assert_array_equal(J, np.tile(np.eye(2), (150, 1)))
    assert (F[::2, 0] == 1).all()
    assert (F[1::2, 1] == 1).all()
    assert davis.overlapping_scores(truth, many, 0)[0].shape == (300, 0)


def test_match_frame_maximises_the_sum_of_both():
    J = np.array([[0.9, 0.8], [0.8, 0.1], [0.0, 0.0]])
    F = np.array([[0.1, 0.3], [0.0, 0.0], [0.5, 0.2]])
    # 1.0 for the first object's proposal 0 would leave 0.2 for the second: 1.2 against 1.9.
    assert davis.match_frame(J, F).tolist() == [1, 0]
    assert davis.match_frame(J[::-1], F[::-1]).tolist() == [1, 2]
    # J alone would take 0.6 + 0.5, F alone 0.1 + 0.9.
    J, F = np.array([[0.6, 0.4], [0.4, 0.5]]), np.array([[0.1, 0.8], [0.2, 0.0]])
    assert davis.match_frame(J, F).tolist() == [1, 0]
    assert davis.match_frame(np.zeros((3, 0)), np.zeros((3, 0))).tolist() == []
