"""Clusters or predicted ids to classes, and the mIoU that follows.

Source: TimeT's released evaluation. Everything is computed from one table of pixel counts, so that
a data set may come in parts.

Shapes: G classes that occur in the truth, P ids that occur in the prediction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

Criterion = Literal["hungarian", "many_to_one", "many_to_one_iou", "none"]

BACKGROUND = 0
FLOOR = 1e-8
CHUNK = 1 << 15
"""pixels that are counted at a time, as the processor's caches like it"""
SMALL = 4096
"""ids below this are counted as they are; others are sorted first"""


@dataclass(frozen=True)
class Contingency:
    """Pixels of each class in each cluster.

    Attributes:
        classes: int64 (G,), ids that occur in the truth, ascending.
        clusters: int64 (P,), ids that occur in the prediction, ascending.
        counts: int64 (G, P), pixels.
    """

    classes: np.ndarray
    clusters: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class MatchedScores:
    """Scores of a prediction whose ids were matched to classes; shares, 0 to 1.

    Attributes:
        miou: mean IoU over the G classes.
        miou_without_background: the same without class 0; 0 where nothing is left.
        accuracy: share of the pixels that have their class.
        classes: int64 (G,).
        iou: float64 (G,).
        tp: int64 (G,), pixels of the class that are predicted as it.
        fp: int64 (G,), pixels of other classes that are.
        fn: int64 (G,), pixels of the class that are not.
        cluster_to_class: class of every cluster.
        score_matrix: float64 (G, P): share of the cluster for `many_to_one`, else IoU.
        background_fraction: share of the clusters that go to the first class; for `hungarian` the
            constant 1 / G, as published; None without matching.
    """

    miou: float
    miou_without_background: float
    accuracy: float
    classes: np.ndarray
    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    cluster_to_class: dict[int, int]
    score_matrix: np.ndarray
    background_fraction: float | None


def contingency(
    truth: np.ndarray, predicted: np.ndarray, *, void: int | None = None
) -> Contingency:
    """Count the pixels of every class in every cluster.

    Args:
        truth: class ids, integers of any shape.
        predicted: cluster ids, integers of the same shape.
        void: pixels of this true id do not count; None: all count.

    Raises:
        ValueError: different shapes.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth {truth.shape} and prediction {predicted.shape} differ in shape")
    (classes, rows), (clusters, columns) = _places(truth.ravel()), _places(predicted.ravel())
    cells = len(classes) * len(clusters)
    flat, step = np.zeros(cells, np.int64), max(CHUNK, cells)
    narrow = np.min_scalar_type(cells)
    for start in range(0, len(rows), step):
        pairs = rows[start : start + step].astype(narrow)
        pairs *= len(clusters)
        pairs += columns[start : start + step].astype(narrow)
        flat += np.bincount(pairs, minlength=cells)
    counts = flat.reshape(len(classes), len(clusters))
    if void is not None:
        classes, counts = classes[classes != void], counts[classes != void]
    return _without_empty(Contingency(classes, clusters, counts))


def add(tables: Iterable[Contingency]) -> Contingency:
    """Return the table of a whole from those of its parts.

    Raises:
        ValueError: no part.
    """
    parts = list(tables)
    if not parts:
        raise ValueError("there is no table to add")
    classes = np.unique(np.concatenate([part.classes for part in parts]))
    clusters = np.unique(np.concatenate([part.clusters for part in parts]))
    counts = np.zeros((len(classes), len(clusters)), np.int64)
    for part in parts:
        rows = np.searchsorted(classes, part.classes)
        columns = np.searchsorted(clusters, part.clusters)
        counts[np.ix_(rows, columns)] += part.counts
    return Contingency(classes, clusters, counts)


def with_classes(table: Contingency, count: int) -> Contingency:
    """Return the table with a row for each class 0 to ``count - 1``: absent ones score 0 then.

    Raises:
        ValueError: a class is beyond them.
    """
    if len(table.classes) and not 0 <= table.classes[0] <= table.classes[-1] < count:
        raise ValueError(f"the classes {table.classes.tolist()} are not within 0..{count - 1}")
    counts = np.zeros((count, len(table.clusters)), np.int64)
    counts[table.classes] = table.counts
    return Contingency(np.arange(count), table.clusters, counts)


def match(table: Contingency, criterion: Criterion) -> dict[int, int]:
    """Return the class of every cluster.

    `hungarian`: one cluster a class, the assignment of largest summed IoU; clusters that are left
    over become background (0). `many_to_one`: the class with most of the cluster's pixels.
    `many_to_one_iou`: the class of largest IoU. Ties go to the smaller class. `none`: the ids are
    classes already.

    Raises:
        ValueError: an empty table.
    """
    if not table.counts.size:
        raise ValueError("no pixel counts: truth or prediction is empty")
    clusters = table.clusters.tolist()
    if criterion == "none":
        return {cluster: cluster for cluster in clusters}
    matrix = score_matrix(table, criterion)
    if criterion == "hungarian":
        rows, columns = linear_sum_assignment(1 - matrix)
        pairs = zip(table.clusters[columns].tolist(), table.classes[rows].tolist(), strict=True)
        return dict.fromkeys(clusters, BACKGROUND) | dict(pairs)
    return dict(zip(clusters, table.classes[matrix.argmax(axis=0)].tolist(), strict=True))


def score_matrix(table: Contingency, criterion: Criterion) -> np.ndarray:
    """Return what is maximised, float64 (G, P): IoU, or for `many_to_one` the precision."""
    of_cluster = table.counts.sum(axis=0)
    if criterion == "many_to_one":
        return np.asarray(table.counts / np.maximum(of_cluster, FLOOR))
    union = table.counts.sum(axis=1)[:, None] + of_cluster - table.counts
    return np.asarray(table.counts / np.maximum(union, FLOOR))


def matched_scores(table: Contingency, criterion: Criterion) -> MatchedScores:
    """Match the clusters to classes and score them.

    Raises:
        ValueError: an empty table.
    """
    cluster_to_class = match(table, criterion)
    named = np.array([cluster_to_class[cluster] for cluster in table.clusters.tolist()])
    own = named == table.classes[:, None]
    tp = (table.counts * own).sum(axis=1)
    fp = (table.counts.sum(axis=0) * own).sum(axis=1) - tp
    fn = table.counts.sum(axis=1) - tp
    iou = tp / np.maximum(tp + fp + fn, FLOOR)
    foreground = iou[table.classes != BACKGROUND]
    return MatchedScores(
        miou=float(iou.mean()),
        miou_without_background=float(foreground.mean()) if foreground.size else 0.0,
        accuracy=float(tp.sum() / table.counts.sum()),
        classes=table.classes,
        iou=iou,
        tp=tp,
        fp=fp,
        fn=fn,
        cluster_to_class=cluster_to_class,
        score_matrix=score_matrix(table, criterion),
        background_fraction=_background_fraction(table, criterion, named),
    )


def renamed(predicted: np.ndarray, cluster_to_class: Mapping[int, int]) -> np.ndarray:
    """Return the class of every pixel, int64 of the prediction's shape.

    A cluster that has no class (it occurs at void pixels only) becomes background.
    """
    clusters, places = _places(predicted)
    classes = [cluster_to_class.get(cluster, BACKGROUND) for cluster in clusters.tolist()]
    return np.array(classes, np.int64)[places].reshape(predicted.shape)


def _background_fraction(
    table: Contingency, criterion: Criterion, named: np.ndarray
) -> float | None:
    if criterion == "none":
        return None
    if criterion == "hungarian":
        return 1 / len(table.classes)
    return float((named == table.classes[0]).mean())


def _places(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, ascending, and the place of each entry's id among them; small ids are their own
    places, so that some may not occur."""
    if ids.size and 0 <= ids.min() <= ids.max() < SMALL:
        return np.arange(int(ids.max()) + 1), ids
    return np.unique(ids.astype(np.int64), return_inverse=True)


def _without_empty(table: Contingency) -> Contingency:
    rows, columns = (table.counts.sum(axis=axis) > 0 for axis in (1, 0))
    return Contingency(table.classes[rows], table.clusters[columns], table.counts[rows][:, columns])
