"""Videos matched frame by frame to a reference video by their embeddings, and how well they fit.

Source: TCC's released code, its alignment videos. Nearest neighbours look at each frame by itself
and may jump; dynamic time warping goes on through both videos from beginning to end.

Shapes: L frames of the reference, K of another video, D width of an embedding, P steps of a path.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from timewalk.ops.time_warping import cheapest_path, matched, squared_distances

EPSILON = 1e-7


@dataclass(frozen=True, eq=False)
class Video:
    """An embedded video whose frames can be shown.

    Attributes:
        name: of the video.
        embeddings: float32 (K, D).
        labels: int64 (K,) phase of each frame; None: not labelled.
        action: what is done in the video; phases of different actions have nothing in common.
        frame: number of an embedding, 0 to K - 1, to its frame, uint8 (H, W, 3).
    """

    name: str
    embeddings: np.ndarray
    labels: np.ndarray | None
    action: int
    frame: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, eq=False)
class Match:
    """A video matched to the reference.

    Attributes:
        distances: (L, K) squared Euclidean distances.
        nearest: (L,) nearest frame of each reference frame, of several the first.
        path: (P, 2) path of dynamic time warping.
        frames: (L,) the frame that is shown beside each reference frame, by either of the two.
    """

    distances: np.ndarray
    nearest: np.ndarray
    path: np.ndarray
    frames: np.ndarray


def match(reference: Video, other: Video, *, use_dtw: bool, normalise: bool) -> Match:
    """Match a video to the reference.

    Args:
        reference: to whose frames the other's are matched.
        other: of the same width.
        use_dtw: by dynamic time warping; else by nearest neighbours.
        normalise: whether embeddings are divided by their lengths first.
    """
    distances = squared_distances(*(_vectors(x, normalise) for x in (reference, other)))
    nearest = distances.argmin(axis=1)
    path = cheapest_path(distances)
    frames = matched(path, len(reference)) if use_dtw else nearest
    return Match(distances, nearest, path, frames)


def _vectors(video: Video, normalise: bool) -> np.ndarray:
    vectors = video.embeddings.astype(np.float64)
    if not normalise:
        return vectors
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + EPSILON)


def scores(reference: Video, other: Video, found: Match) -> dict[str, float | None]:
    """Return how well a video fits the reference; None for what needs labels that are missing.

    Returns:
        `dtw_cost`: mean squared distance along the path of dynamic time warping;
        `dtw_cost_percent`: the same in percent of the mean of all distances, which any path would
        cost if embeddings told nothing; `phase_difference`: mean absolute difference in phases of
        matched frames; `same_phase_percent`: share of frames matched to a frame of their phase.
    """
    cost = float(found.distances[found.path[:, 0], found.path[:, 1]].mean())
    chance = float(found.distances.mean())
    values: dict[str, float | None] = {
        "dtw_cost": cost,
        "dtw_cost_percent": 100 * cost / chance if chance > 0 else None,
        "phase_difference": None,
        "same_phase_percent": None,
    }
    if reference.labels is not None and other.labels is not None:
        difference = np.abs(reference.labels - other.labels[found.frames])
        values["phase_difference"] = float(difference.mean())
        values["same_phase_percent"] = 100 * float((difference == 0).mean())
    return values


def averaged(all_scores: Iterable[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each score over the videos that have it; None where none has."""
    collected: dict[str, list[float]] = {}
    for one in all_scores:
        for name, value in one.items():
            collected.setdefault(name, []).extend([] if value is None else [value])
    return {name: float(np.mean(x)) if x else None for name, x in collected.items()}
