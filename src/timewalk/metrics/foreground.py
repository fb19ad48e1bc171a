"""Foreground made of clusters: which ones, and how well it agrees with the truth.

Source: Leopart's cluster-based foreground, in the form of TimeT's released code. A cluster's
precision is the share of it that lies where the class token looks; clusters of high precision are
the foreground. All is computed from tables of pixel counts, a row an image and a column a cluster,
so that a data set of any size fits.

Shapes: F images, K clusters, H and W rows and columns of pixels.
"""

from dataclasses import dataclass

import numpy as np

from timewalk.errors import UserError

STEP = 0.05
"""a threshold is a multiple of it, below 1"""


@dataclass(frozen=True)
class Table:
    """Pixels of each cluster in each image.

    Attributes:
        pixels: int64 (F, K), all of them.
        attended: int64 (F, K), those in the image's attention mask.
        foreground: int64 (F, K), those in the true foreground; its boundary is part of it.
        inner: int64 (F, K), those in the true foreground without its boundary.
    """

    pixels: np.ndarray
    attended: np.ndarray
    foreground: np.ndarray
    inner: np.ndarray


@dataclass(frozen=True)
class Tuning:
    """The search for a threshold; C cuts.

    Attributes:
        starts: int64 (C,), how many clusters of lowest precision are background.
        precisions: float64 (C,), of the first cluster that is not.
        jaccards: float64 (C,), 0 to 1.
        threshold: precision from which on clusters are foreground.
    """

    starts: np.ndarray
    precisions: np.ndarray
    jaccards: np.ndarray
    threshold: float


def cluster_counts(clusters: np.ndarray, mask: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return how many pixels of each cluster lie in a mask, int64 (K,).

    Args:
        clusters: ids (H, W), below ``num_clusters``.
        mask: bool (H, W).
        num_clusters: K.
    """
    return np.bincount(clusters[mask], minlength=num_clusters)


def cluster_precision(pixels: np.ndarray, attended: np.ndarray) -> np.ndarray:
    """Return each cluster's share in the attention masks, a mean over images, float64 (K,).

    Args:
        pixels: int (F, K), pixels of each cluster in each image; images without any do not count.
        attended: int (F, K), those in the image's attention mask.

    Raises:
        UserError: a cluster has no pixel at all.
    """
    occurs = pixels > 0
    if (empty := np.flatnonzero(~occurs.any(axis=0))).size:
        raise UserError(
            f"{empty.size} of {pixels.shape[1]} clusters, such as {empty[0]}, hold no pixel; "
            "lower 'clusters'."
        )
    share = attended / np.maximum(pixels, 1)
    return np.asarray(share.sum(axis=0) / occurs.sum(axis=0))


def jaccard_of_clusters(
    pixels: np.ndarray, foreground: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Return each image's Jaccard index of the foreground that some clusters are, float64 (F,).

    Args:
        pixels: int (F, K).
        foreground: int (F, K), those in the true foreground.
        chosen: bool (K,).
    """
    both = foreground[:, chosen].sum(axis=1)
    union = pixels[:, chosen].sum(axis=1) + foreground[:, ~chosen].sum(axis=1)
    return ratio(both, union)


def jaccard(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return each image's intersection over union of masks, bool (F, H, W) both, float64 (F,)."""
    both, either = ((mask).sum(axis=(1, 2)) for mask in (truth & found, truth | found))
    return ratio(both, either)


def ratio(both: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Return intersections over unions; 1 where the union is empty."""
    return np.where(union > 0, both / np.maximum(union, 1), 1.0)


def tune(
    precision: np.ndarray, pixels: np.ndarray, foreground: np.ndarray, cuts: tuple[float, float]
) -> Tuning:
    """Find the threshold of precision whose foreground agrees best with the truth.

    Clusters are sorted by precision; of the cuts, the one of largest mean Jaccard index is taken
    (the largest of equal ones), and the precision there rounded to the nearest multiple of 0.05.

    Args:
        precision: float64 (K,).
        pixels: int (F, K).
        foreground: int (F, K), those in the true foreground.
        cuts: shares of the clusters; cuts are tried from the first to before the second.

    Raises:
        UserError: no cut lies between them.
    """
    starts = cut_starts(len(precision), cuts)
    order = np.argsort(precision, kind="stable")
    # Counts of all clusters from a cut on, for all cuts at once.
    inside, covered = (
        np.cumsum(table[:, order][:, ::-1], axis=1)[:, ::-1] for table in (foreground, pixels)
    )
    union = covered[:, starts] + inside[:, :1] - inside[:, starts]
    jaccards = ratio(inside[:, starts], union).mean(axis=0)
    at_cut = precision[order[starts]]
    best = len(starts) - 1 - int(jaccards[::-1].argmax())
    grid = np.arange(round(1 / STEP)) * STEP
    threshold = float(grid[np.abs(grid - at_cut[best]).argmin()])
    return Tuning(starts, at_cut, jaccards, threshold)


def cut_starts(num_clusters: int, cuts: tuple[float, float]) -> np.ndarray:
    """Return the cuts that are tried, int64.

    Raises:
        UserError: there is none.
    """
    starts = np.arange(int(cuts[0] * num_clusters), int(cuts[1] * num_clusters))
    if not starts.size:
        raise UserError(
            f"no cut of {num_clusters} clusters lies between the shares {cuts[0]:g} and "
            f"{cuts[1]:g}; raise 'clusters' or widen 'cuts'."
        )
    return starts


def contour(mask: np.ndarray) -> np.ndarray:
    """Return how often following a mask's outlines passes each pixel, int64 (H, W).

    Outlines of 8-connected parts and of their 4-connected holes; outside the image nothing is set.
    A pixel is passed once for each run of neighbours around it that are not set, runs of a single
    diagonal one apart.
    """
    padded = np.pad(mask, 1)
    height, width = mask.shape
    ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    free = [~padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in ring]
    runs = np.zeros(mask.shape, np.int64)
    for place in range(0, 8, 2):
        straight, diagonal, turned = (free[(place + step) % 8] for step in range(3))
        runs += straight & ~(diagonal & turned)
    alone = np.logical_and.reduce(free)
    return np.where(mask, runs + alone, 0)


def boundary_f(truth: np.ndarray, found: np.ndarray, distance: float) -> float:
    """Return the harmonic mean of the outlines' precision and recall, as published.

    Args:
        truth: bool (H, W), the true *background*: the published code compares its outline.
        found: bool (H, W), the predicted foreground.
        distance: pixels that outlines must be nearer to each other than, to agree.

    Returns:
        0 to 1; 0 where a mask is all or nothing, NaN where no outlines are near each other.
    """
    # Here, because it takes longer to import than to use.
    from scipy.ndimage import distance_transform_edt

    if any(mask.all() or not mask.any() for mask in (truth, found)):
        return 0.0
    true, drawn = contour(truth), contour(found)
    recall = true[distance_transform_edt(drawn == 0) < distance].sum() / true.sum()
    precision = drawn[distance_transform_edt(true == 0) < distance].sum() / drawn.sum()
    if precision + recall == 0:
        return float("nan")
    return float(2 * precision * recall / (precision + recall))
