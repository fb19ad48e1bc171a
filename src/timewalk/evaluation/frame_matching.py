"""SMTC's score of object proposals: candidates and objects are matched anew in every frame.

Source: SMTC's released evaluation, its changes to that of DAVIS 2017. The truth picks the
candidates of each frame, and whether an object keeps its proposal over time does not count: the
figures are usually higher than the official ones. They may be lower, because candidates overlap and
are enlarged by nearest neighbour here. Either way the two are never compared.

Shapes: T frames, O objects, n candidates of a frame, h and w cells, H and W pixels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from timewalk.data.sequences import VOID, read_ids
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError
from timewalk.evaluation.davis_tables import ObjectScores, SequenceScores
from timewalk.evaluation.proposal_tracks import binarised
from timewalk.metrics.davis import match_frame, overlapping_scores, statistics


@dataclass(frozen=True)
class FrameMatches:
    """The candidates that suit the objects best, frame by frame.

    Attributes:
        J: float64 (O, T), row k is object k + 1.
        F: likewise.
        candidates: int64 (O, T), from 0; one beyond the frame's own is an empty mask.
    """

    J: np.ndarray
    F: np.ndarray
    candidates: np.ndarray


def match_frames(
    soft: Sequence[np.ndarray], truth: Sequence[np.ndarray], workers: int = 1
) -> FrameMatches:
    """Match the candidates of every frame with the objects of the first.

    Args:
        soft: float32 (n, h, w) of each frame.
        truth: uint8 (H, W) of each frame, 255 is void; objects are 1 to the largest id of the
            first frame.
        workers: threads.
    """
    first = truth[0]
    num_objects = int(np.where(first == VOID, 0, first).max())
    # Frames with fewer candidates get empty ones, as many as the fullest has.
    most = max(num_objects, *map(len, soft))

    def one(frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        masks, ids = soft[frame], truth[frame]
        blank = np.zeros((1, *masks.shape[1:]), masks.dtype)
        found = binarised(np.concatenate([masks, blank]), ids.shape)
        scores = overlapping_scores(ids, found, num_objects, ids == VOID)
        J, F = (_repeated_last(values, most - len(masks)) for values in scores)
        chosen, objects = match_frame(J, F), np.arange(num_objects)
        return J[chosen, objects], F[chosen, objects], chosen

    with ThreadPoolExecutor(max(1, workers)) as pool:
        columns = list(pool.map(one, range(len(truth))))
    J, F, candidates = (np.stack(each, axis=1) for each in zip(*columns, strict=True))
    return FrameMatches(J, F, candidates)


def _repeated_last(values: np.ndarray, times: int) -> np.ndarray:
    return np.concatenate([values[:-1], np.repeat(values[-1:], times, axis=0)])


def true_ids(video: Video) -> list[np.ndarray]:
    """Return the ids of every frame, uint8 (H, W) each; 255 is void.

    Raises:
        UserError: a frame has no annotation, or it cannot be read.
    """
    return [read_ids(path, video.size) for path in annotations(video)]


def annotations(video: Video) -> list[Path]:
    """Return the mask of every frame.

    Raises:
        UserError: a frame has none.
    """
    for frame, mask in zip(video.frames, video.masks, strict=True):
        if mask is None:
            raise UserError(
                f"{frame} has no annotation, but every frame is scored; name a set whose truth is "
                "public under the key 'dataset'."
            )
    return [mask for mask in video.masks if mask is not None]


def as_scores(name: str, frames: Sequence[str], J: np.ndarray, F: np.ndarray) -> SequenceScores:
    """Return J and F (O, T) of a sequence as rows by object; their proposal is 0: it changes."""
    rows = tuple(
        ObjectScores(f"{name}_{k}", k, 0, j, f, statistics(j), statistics(f))
        for k, (j, f) in enumerate(zip(J, F, strict=True), start=1)
    )
    return SequenceScores(name, tuple(frames), rows)
