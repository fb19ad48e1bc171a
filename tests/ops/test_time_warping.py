"""Dynamic time warping against the plain double loop, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.ops.time_warping import (
    cheapest_path,
    dtw_path,
    matched,
    nearest,
    squared_distances,
)


def plain_path(costs):
    """The recursion and its way back, cell by cell."""
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = costs[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j = rows - 1, columns - 1
    path = [(i, j)]
    while i > 0 or j > 0:
        way = np.argmin((total[i, j], total[i, j + 1], total[i + 1, j]))
        i, j = ((i - 1, j - 1), (i - 1, j), (i, j - 1))[way]
        path.append((i, j))
    return path[::-1], total[-1, -1]


sizes = st.integers(1, 9)


@settings(max_examples=200)
@given(sizes, sizes, st.integers(0, 2**32 - 1), st.booleans())
def test_path_of_the_double_loop(rows, columns, seed, with_ties):
    rng = np.random.default_rng(seed)
    costs = rng.random((rows, columns))
    if with_ties:
        costs = np.floor(3 * costs)
    expected, cost = plain_path(costs)
    path = cheapest_path(costs)
    assert path.dtype == np.int64
    assert path.tolist() == [list(cell) for cell in expected]
    assert costs[path[:, 0], path[:, 1]].sum() == pytest.approx(cost, abs=1e-12)


@settings(max_examples=100)
@given(sizes, sizes, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_paths_are_monotone_and_whole(rows, columns, width, seed):
    rng = np.random.default_rng(seed)
    reference = rng.integers(-2, 3, (rows, width)).astype(np.float32)
    candidate = rng.integers(-2, 3, (columns, width)).astype(np.float32)
    path = dtw_path(reference, candidate)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [rows - 1, columns - 1]
    steps = np.diff(path, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all()
    assert (steps.sum(axis=1) >= 1).all()
    found = matched(path, rows)
    first = [next(j for i, j in path.tolist() if i == frame) for frame in range(rows)]
    assert found.tolist() == first


@settings(max_examples=50)
@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_nearest_takes_the_first_minimum(rows, columns, seed):
    rng = np.random.default_rng(seed)
    reference, candidate = (rng.integers(0, 2, (n, 2)).astype(float) for n in (rows, columns))
    expected = [int(np.argmin([np.sum((x - y) ** 2) ** 0.5 for y in candidate])) for x in reference]
    found = nearest(reference, candidate)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_a_sequence_played_at_half_speed_is_found():
    reference = np.arange(6.0)[:, None]
    candidate = reference.repeat(2, axis=0)
    assert matched(dtw_path(reference, candidate), 6).tolist() == [0, 2, 4, 6, 8, 10]
    assert matched(dtw_path(candidate, reference), 12).tolist() == [n // 2 for n in range(12)]
    path = dtw_path(reference, candidate)
    assert squared_distances(reference, candidate)[path[:, 0], path[:, 1]].sum() == 0


def test_ties_go_diagonally_then_back_in_the_reference():
    assert cheapest_path(np.zeros((3, 3))).tolist() == [[0, 0], [1, 1], [2, 2]]
    # Both ways around the dear middle cost nothing: back in the reference first.
    costs = np.zeros((3, 3))
    costs[1, 1] = 9
    assert cheapest_path(costs).tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]
    # Only the way back in the candidate is cheap.
    costs[1, 2] = 9
    assert cheapest_path(costs).tolist() == [[0, 0], [1, 0], [2, 1], [2, 2]]


@pytest.mark.parametrize("costs", [np.zeros((0, 3)), np.array([[0.0, np.nan]])])
def test_costs_without_a_path(costs):
    with pytest.raises(ValueError, match="finite and at least one"):
        cheapest_path(costs)
