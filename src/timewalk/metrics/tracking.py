"""Overlap, success and speed of single-object trackers, as on GOT-10k.

Source: GOT-10k and its toolkit. Boxes are (x, y, w, h) in pixels, x and y of the upper left corner.
Of a video the first frame, whose box is given, is left out, and so is every frame in which the
object cannot be seen. Shapes: T frames.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

EPSILON = float(np.finfo(float).eps)
THRESHOLDS = np.linspace(0, 1, 101)
"""of the success curve"""


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes (T, 4) cut by an image: first the corner, then what remains of the sides.

    A corner left of or above the image moves to its edge, and the sides keep their lengths as far
    as the image goes: the official toolkit does so. NaN stays NaN.

    Args:
        boxes: (T, 4).
        size: (height, width) of the image in pixels.
    """
    limits = np.array([size[1], size[0]], float)
    corners = np.clip(np.asarray(boxes, float)[:, :2], 0, limits)
    sides = np.clip(np.asarray(boxes, float)[:, 2:], 0, limits - corners)
    return np.concatenate([corners, sides], axis=1)


def overlaps(predicted: np.ndarray, truth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return intersection over union of boxes in each frame, float64 (T,), 0 to 1.

    Args:
        predicted: (T, 4); a box with NaN overlaps nothing, nor does one outside the image.
        truth: (T, 4).
        size: (height, width) of the image in pixels, by which both are cut.

    Raises:
        ValueError: other shapes.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2 or predicted.shape[1] != 4:
        raise ValueError(f"boxes {predicted.shape} and {truth.shape} are not both (T, 4)")
    a, b = clipped(predicted, size), clipped(truth, size)
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(a[:, 2:], axis=1) + np.prod(b[:, 2:], axis=1) - common
    return np.clip(np.nan_to_num(common / (union + EPSILON), nan=0.0), 0, 1)


def counted(frames: int, cover: np.ndarray | None = None) -> np.ndarray:
    """Return which frames are scored, bool (T,): not the first, nor those with cover label 0.

    Args:
        frames: T.
        cover: (T,) how much of the object is seen, from 0 (nothing) to 8; None: always something.
    """
    wanted = np.ones(frames, bool) if cover is None else np.asarray(cover) > 0
    wanted[:1] = False
    return wanted


def average_overlap(found: np.ndarray) -> float | None:
    """Return the mean of overlaps (AO), 0 to 1; None of none."""
    return float(found.mean()) if len(found) else None


def success_rate(found: np.ndarray, threshold: float) -> float | None:
    """Return the share of overlaps strictly above a threshold (SR); None of none."""
    return float((found > threshold).mean()) if len(found) else None


def success_curve(found: np.ndarray) -> np.ndarray:
    """Return the success rate at each of `THRESHOLDS`, (101,); NaN of no overlap."""
    if not len(found):
        return np.full(len(THRESHOLDS), np.nan)
    return (found[:, None] > THRESHOLDS).mean(axis=0)


def scores(found: np.ndarray) -> dict[str, float | None]:
    """Return `ao`, `sr50` and `sr75` of overlaps that count, 0 to 1."""
    return {
        "ao": average_overlap(found),
        "sr50": success_rate(found, 0.5),
        "sr75": success_rate(found, 0.75),
    }


def pooled(videos: Iterable[np.ndarray]) -> np.ndarray:
    """Return the overlaps of all videos one after the other: long videos weigh more."""
    return np.concatenate([np.empty(0), *videos])


def class_balanced(
    videos: Mapping[str, np.ndarray], classes: Mapping[str, str]
) -> dict[str, float | None]:
    """Return `mao`, `msr50` and `msr75`, 0 to 1: each object class counts the same.

    The mean over the videos of a class of their own scores, then the mean over classes. Videos
    without a frame that counts are left out.

    Args:
        videos: overlaps of each video by its name.
        classes: object class of each of them.
    """
    by_class: dict[str, list[dict[str, float | None]]] = {}
    for name, found in videos.items():
        if len(found):
            by_class.setdefault(classes[name], []).append(scores(found))

    def mean(key: str) -> float | None:
        means = [np.mean([one[key] for one in group]) for group in by_class.values()]
        return float(np.mean(means)) if means else None

    return {f"m{key}": mean(key) for key in ("ao", "sr50", "sr75")}


def frames_per_second(seconds: Sequence[float] | np.ndarray) -> float | None:
    """Return the mean of 1 / seconds over frames, as the official toolkit has it.

    Frames without a positive time do not count; None where none has one.
    """
    known = np.asarray(seconds, float)
    known = known[known > 0]  # NaN is not
    return float((1 / known).mean()) if len(known) else None
