"""Figures of semantic segmentation from one confusion matrix.

Source: CRW's evaluation on VIP; iBOT's on ADE20K has the same figures.

Shapes: K classes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SegmentationScores:
    """Shares, 0 to 1.

    Attributes:
        overall_accuracy: of all pixels.
        mean_accuracy: mean over the classes that occur in the truth.
        mean_iou: mean over the classes that occur in truth or prediction.
        weighted_iou: mean of the IoU over classes, weighted by their share of the truth.
        iou: (K,) NaN where a class is in neither.
    """

    overall_accuracy: float
    mean_accuracy: float
    mean_iou: float
    weighted_iou: float
    iou: np.ndarray


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of pixels of each true (row) and predicted (column) class, int64 (K, K).

    Pixels of true ids outside 0..K-1 are ignored, whatever is predicted there.

    Raises:
        ValueError: different shapes, or a predicted id outside 0..K-1.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth {truth.shape} and prediction {predicted.shape} differ in shape")
    known = (truth >= 0) & (truth < classes)
    found = predicted[known]
    if (beyond := found[(found < 0) | (found >= classes)]).size:
        raise ValueError(f"the predicted id {int(beyond[0])} is beyond {classes} classes")
    pairs = truth[known].astype(np.int64) * classes + found
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores(matrix: np.ndarray) -> SegmentationScores:
    """Return the figures of a confusion matrix (K, K)."""
    right, true, found = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _share(right, true + found - right)
    present = true > 0
    return SegmentationScores(
        overall_accuracy=float(_share(right.sum(), true.sum())),
        mean_accuracy=float(np.nanmean(_share(right, true))),
        mean_iou=float(np.nanmean(iou)),
        weighted_iou=float((true[present] * iou[present]).sum() / true.sum()),
        iou=iou,
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    empty = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=empty, where=np.asarray(whole) > 0)
