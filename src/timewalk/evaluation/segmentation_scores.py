"""Tables, figures and pictures that evaluations of segmentation against classes share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timewalk.data.segmented import SegmentedSet, read_square
from timewalk.evaluation.mask_pictures import sheet
from timewalk.evaluation.pictures import save_png
from timewalk.metrics.matching import MatchedScores

PICTURE_SIDE = 224
"""pixels of an image in the sheet"""


def percent(found: MatchedScores, classes: int, background: bool) -> dict[str, float | None]:
    """Return the figures of a set of so many classes in percent; `miou_without_background` is None
    where there is no background class, or nothing else.

    `miou` is over the classes that occur in the truth, `miou_fixed` over all: absent ones score 0.
    """
    objects = bool((found.tp + found.fn)[found.classes > 0].any())
    without = 100 * found.miou_without_background if background and objects else None
    return {
        "miou": 100 * found.miou,
        "miou_without_background": without,
        "miou_fixed": 100 * float(found.iou.sum()) / classes,
        "pixel_accuracy": 100 * found.accuracy,
    }


def class_table(found: MatchedScores, names: Sequence[str]) -> list[list[object]]:
    """Return a table of every class: its IoU in percent, and pixels in truth and prediction; the
    IoU is empty where the truth does not have the class."""
    rows: list[list[object]] = [["class", "name", "iou", "true_pixels", "predicted_pixels"]]
    columns = (found.classes, found.iou, found.tp, found.fp, found.fn)
    scores = {
        number: (f"{100 * iou:.6g}", tp + fn, tp + fp)
        for number, iou, tp, fp, fn in zip(*(c.tolist() for c in columns), strict=True)
    }
    return rows + [[n, name, *scores.get(n, (None, 0, None))] for n, name in enumerate(names)]


def spread(count: int, pictures: int) -> list[int]:
    """Return the numbers of so many of ``count`` images, evenly spread."""
    places = np.linspace(0, count - 1, min(pictures, count)).round().astype(int)
    return [int(place) for place in places]


def save_sheet(
    folder: Path,
    segmented: SegmentedSet,
    places: Sequence[int],
    truth: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
) -> Path:
    """Write input, truth and prediction of some images as `sheet.png`.

    Args:
        folder: where.
        segmented: the set.
        places: numbers of the images.
        truth: (n, M, M) classes of these images.
        predicted: likewise.
        names: of the classes.
    """
    paths = [segmented.frames[place][0] for place in places]
    pixels = [read_square(path, PICTURE_SIDE).transpose(1, 2, 0) for path in paths]
    rows = list(zip(pixels, truth, predicted, strict=True))
    return save_png(folder / "sheet.png", sheet(rows, names))
