"""Percentage of correct keypoints (PCK) as on JHMDB.

Source: PCK, in the form of CRW's evaluation on JHMDB.

Shapes: K keypoints, T frames; coordinates are x, y in pixels.
"""

from collections.abc import Iterable, Sequence

import numpy as np

BOX_SHARE = 0.6
"""of the diagonal of a person's box: the length that distances are compared with"""


def relative_distances(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return distances of keypoints in units of 0.6 of the person's diagonal, (K, T).

    The person's box is the tight one around the true positions of the keypoints that are seen. NaN
    where a keypoint is not seen, which is where the predicted x is negative: the truth does not
    say.

    Args:
        predicted: (2, K, T).
        truth: (2, K, T).
    """
    seen_KT = predicted[0] >= 0
    hidden = np.where(seen_KT, truth, np.nan)
    empty = ~seen_KT.any(axis=0)
    hidden[..., empty] = 0  # no warning for frames without any
    low, high = np.nanmin(hidden, axis=1), np.nanmax(hidden, axis=1)
    lengths_T = BOX_SHARE * np.sqrt(np.square(high - low).sum(axis=0))
    distances_KT = np.sqrt(np.square(predicted - truth).sum(axis=0))
    # Of a single keypoint the box has no size: any distance but none is too far.
    infinite = np.where(distances_KT > 0, np.inf, 0.0)
    relative = np.divide(distances_KT, lengths_T, out=infinite, where=lengths_T > 0)
    return np.where(seen_KT, relative, np.nan)


def pck(distances: Iterable[np.ndarray], thresholds: Sequence[float]) -> np.ndarray:
    """Return the percentage of keypoints within each threshold, (thresholds, K).

    Args:
        distances: (K, T) of each video, as :func:`relative_distances` gives them.
        thresholds: in the same unit; a distance equal to it counts.

    Returns:
        pooled over all videos and frames; NaN for a keypoint that is never seen. The PCK of a set
        is the mean over keypoints.
    """
    joint_KT = np.concatenate(list(distances), axis=1)
    seen_K = (~np.isnan(joint_KT)).sum(axis=1)
    right = np.array([(joint_KT <= threshold).sum(axis=1) for threshold in thresholds])
    return np.divide(100.0 * right, seen_K, out=np.full(right.shape, np.nan), where=seen_K > 0)
