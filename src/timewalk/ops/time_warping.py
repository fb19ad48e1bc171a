"""Two sequences of embeddings matched in time: nearest neighbours and dynamic time warping.

Source: TCC's released code, its alignment videos. The costs of paths are computed by
anti-diagonals, whose cells do not depend on one another; additions and choices are those of the
plain double loop, so that ties fall the same way.

Shapes: L and K frames of the reference and of the candidate, D width of an embedding, P steps of
a path.
"""

import numpy as np
from scipy.spatial.distance import cdist


def squared_distances(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances, float64 (L, K), of rows (L, D) and (K, D)."""
    pair = (np.asarray(x, np.float64) for x in (reference, candidate))
    distances: np.ndarray = cdist(*pair, "sqeuclidean")
    return distances


def nearest(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the nearest frame of the candidate for each frame of the reference.

    Args:
        reference: (L, D).
        candidate: (K, D).

    Returns:
        int64 (L,); of several nearest ones the first.
    """
    found: np.ndarray = squared_distances(reference, candidate).argmin(axis=1)
    return found


def dtw_path(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the cheapest path through both sequences from their beginnings to their ends.

    A cell costs its squared Euclidean distance; a step goes on by one frame in both sequences or in
    one of them, all steps at the same weight.

    Args:
        reference: (L, D), L at least 1.
        candidate: (K, D), K at least 1.

    Returns:
        int64 (P, 2), frames of reference and candidate, from (0, 0) to (L - 1, K - 1). Of equally
        cheap ways back the diagonal one is taken, else the one in the reference.

    Raises:
        ValueError: an empty sequence, or distances that are not finite.
    """
    return cheapest_path(squared_distances(reference, candidate))


def cheapest_path(costs: np.ndarray) -> np.ndarray:
    """Return :func:`dtw_path` for the costs (L, K) of all cells."""
    if not costs.size or not np.isfinite(costs).all():
        raise ValueError(f"costs {costs.shape} must be finite and at least one")
    total = _accumulated(costs)
    row, column = costs.shape[0] - 1, costs.shape[1] - 1
    path = [(row, column)]
    while row or column:
        # With the border of infinities, cell (row, column) is at (row + 1, column + 1).
        before = (total[row, column], total[row, column + 1], total[row + 1, column])
        way = before.index(min(before))
        row -= way != 2
        column -= way != 1
        path.append((row, column))
    return np.array(path[::-1], np.int64)


def _accumulated(costs: np.ndarray) -> np.ndarray:
    """Return the cost of the cheapest path to each cell, (L + 1, K + 1), behind a border."""
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    total[1:, 1:] = costs
    # In the flat array a step down is `width` cells, a step along an anti-diagonal one less.
    flat, width = total.reshape(-1), columns + 1
    for diagonal in range(rows + columns - 1):
        top = max(0, diagonal - columns + 1)
        count = min(diagonal, rows - 1) - top + 1
        first = (top + 1) * width + diagonal - top + 1

        def cells(back: int, first: int = first, count: int = count) -> np.ndarray:
            start = first - back
            return flat[start : start + columns * (count - 1) + 1 : columns]

        before = np.minimum(cells(width + 1), np.minimum(cells(width), cells(1)))
        cells(0)[:] += before
    return total


def matched(path: np.ndarray, length: int) -> np.ndarray:
    """Return the candidate's frame at the first entry of a path for each reference frame.

    Args:
        path: (P, 2), as :func:`dtw_path` gives it.
        length: L, frames of the reference.

    Returns:
        int64 (L,).
    """
    first = np.searchsorted(path[:, 0], np.arange(length))
    found: np.ndarray = path[first, 1]
    return found
