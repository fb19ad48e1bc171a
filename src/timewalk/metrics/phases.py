"""Scores of per-frame embeddings of videos: phases, progression, order.

Source: TCC and its released code.

Shapes: V videos, L frames of a video, F frames of several videos, D width, K phases and so K - 1
events (the ends of all phases but the last).
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.linalg import lstsq
from scipy.spatial.distance import cdist
from scipy.stats import t as student

from timewalk.errors import UserError

Classifier = Literal["svm", "logistic"]
Gamma = Literal["scale", "auto"]
Distance = Literal["sqeuclidean", "cosine"]
Predictor = Callable[[np.ndarray], np.ndarray]

EPISODE_SEED = 42
"""of the published draw of few-shot episodes"""
LEAST_DIRECTION = 1e-6
"""singular values below this share of the largest count as 0 (scikit-learn since 1.9)"""
CELLS = 1 << 24
"""distances that are held at a time"""


def share(fraction: float, videos: int) -> int:
    """Return how many videos the first ``fraction`` of ``videos`` is, at least one."""
    return max(1, int(fraction * videos))


def fit_classifier(
    features: np.ndarray,
    labels: np.ndarray,
    classifier: Classifier = "svm",
    gamma: Gamma = "scale",
) -> Predictor:
    """Fit a classifier of frames; where all bear one label it is predicted for every frame.

    Args:
        features: (F, D), as they are: nothing is scaled.
        labels: int64 (F,).
        classifier: a support vector machine with radial basis functions, C = 1, one against one;
            or multinomial logistic regression, C = 1.
        gamma: the machine's width: 1 / (D variance), or 1 / D as scikit-learn had it until 2019.

    Returns:
        features (M, D) to labels int64 (M,).

    Raises:
        UserError: scikit-learn is missing.
    """
    if (labels == labels[0]).all():
        only = labels[0]
        return lambda x: np.full(len(x), only)
    if classifier == "svm":
        model = _sklearn("svm").SVC(gamma=gamma)
    else:
        model = _sklearn("linear_model").LogisticRegression(max_iter=100_000)
    predict: Predictor = model.fit(features, labels).predict
    return predict


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise UserError(
            "scikit-learn is missing: pip install 'timewalk[phases]' to classify phases."
        ) from None


@dataclass(frozen=True)
class Episodes:
    """Few-shot accuracies with k labelled videos.

    Attributes:
        videos: labelled videos of each episode, in the order drawn.
        train: float64 (E,), 0 to 1, on the frames of the episode's own videos.
        test: float64 (E,), 0 to 1, on all test frames.
    """

    videos: list[list[int]]
    train: np.ndarray
    test: np.ndarray


def draw_episodes(videos: int, labelled: Sequence[int], episodes: int) -> list[list[list[int]]]:
    """Draw the labelled videos of each episode, for each number of them, as published.

    NumPy's legacy generator of seed 42, one permutation an episode; more than there are is all.
    """
    rng = np.random.RandomState(EPISODE_SEED)
    return [[rng.permutation(videos)[:k].tolist() for _ in range(episodes)] for k in labelled]


def score_episodes(
    train: Sequence[tuple[np.ndarray, np.ndarray]],
    test: tuple[np.ndarray, np.ndarray],
    episodes: Sequence[list[int]],
    classifier: Classifier = "svm",
    gamma: Gamma = "scale",
    threads: int = 1,
) -> Episodes:
    """Fit a classifier on the frames of each episode's videos, and score it.

    Args:
        train: embeddings (L, D) and labels (L,) of each training video.
        test: those of all test frames.
        episodes: numbers of training videos.
        classifier: see :func:`fit_classifier`.
        gamma: likewise.
        threads: episodes at a time.
    """

    def score(chosen: tuple[int, ...]) -> tuple[float, float]:
        x = np.concatenate([train[i][0] for i in chosen])
        y = np.concatenate([train[i][1] for i in chosen])
        predict = fit_classifier(x, y, classifier, gamma)
        return float((predict(x) == y).mean()), float((predict(test[0]) == test[1]).mean())

    # With few videos many episodes are equal: each is computed once.
    different = sorted({tuple(chosen) for chosen in episodes})
    with ThreadPoolExecutor(max(1, threads)) as pool:
        scores = dict(zip(different, pool.map(score, different), strict=True))
    both = np.array([scores[tuple(chosen)] for chosen in episodes])
    return Episodes([list(chosen) for chosen in episodes], both[:, 0], both[:, 1])


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def confidence(values: np.ndarray) -> float:
    """Return half the width of the mean's 95 % interval by Student's t; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(values) - 1) * standard_error(values))


def transitions(labels: np.ndarray, phases: int) -> np.ndarray:
    """Return the frame in which each phase but the last ends, int64 (K - 1,).

    Args:
        labels: int64 (L,), phase of each frame.
        phases: K.
    """
    ends = np.full(phases - 1, len(labels) - 1)
    for phase in range(phases - 1):
        later = np.flatnonzero(labels[1:] > phase)
        if len(later):
            # The phase may be absent: then the event is the first frame of what comes instead.
            ends[phase] = later[0] if labels[later[0]] == phase else later[0] + 1
    return ends


def progression_targets(labels: np.ndarray, phases: int) -> np.ndarray:
    """Return the signed time of each frame from each event as a share of the video's length.

    Args:
        labels: int64 (L,), phase of each frame.
        phases: K.

    Returns:
        float64 (L, K - 1), negative before the event.
    """
    frames = np.arange(len(labels))
    return (frames[:, None] - transitions(labels, phases)) / len(labels)


def fit_least_squares(features: np.ndarray, targets: np.ndarray) -> Predictor:
    """Fit a linear map with intercept from (F, D) to (F, K - 1) by ordinary least squares.

    An event at a time, in the features' float32 or float64, directions below 1e-6 of the widest
    left out: as scikit-learn's ``LinearRegression`` does it, to the bit. Of all best maps it is the
    one of least norm.
    """
    precision = np.float32 if features.dtype == np.float32 else np.float64
    x = features.astype(precision)
    centre = x.mean(0)
    maps = []
    for column in targets.T:
        y = np.ascontiguousarray(column, precision)
        level = y.mean()
        weights = lstsq(x - centre, y - level, cond=LEAST_DIRECTION)[0]
        maps.append((weights, level - centre @ weights))

    def predict(x: np.ndarray) -> np.ndarray:
        x = x.astype(precision)
        return np.stack([x @ weights + level for weights, level in maps], axis=1)

    return predict


def r_squared(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return 1 - residual / variance of each column of (F, K - 1); NaN for a constant target."""
    left = ((targets - predictions) ** 2).sum(0)
    spread = ((targets - targets.mean(0)) ** 2).sum(0)
    return 1 - np.divide(left, spread, out=np.full_like(left, np.nan), where=spread > 0)


def transition_error(targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> float:
    """Return how far off the events are that predictions imply, as a share of a video's length.

    Every frame votes for the place of the event: its own time minus its predicted progression.

    Args:
        targets: (L, K - 1) of each video.
        predictions: likewise.

    Returns:
        mean over videos and events.
    """
    both = zip(targets, predictions, strict=True)
    return float(np.mean([np.abs((truth - guess).mean(0)) for truth, guess in both]))


def nearest_frames(
    query: np.ndarray, candidates: Sequence[np.ndarray], distance: Distance = "sqeuclidean"
) -> np.ndarray:
    """Return the nearest frame in each candidate for each frame of a video, the first of equals.

    Args:
        query: (L, D).
        candidates: (L', D) each, of any L'.
        distance: squared Euclidean or cosine.

    Returns:
        int64 (number of candidates, L).
    """
    lengths = np.array([len(candidate) for candidate in candidates], np.int64)
    stops = lengths.cumsum()
    starts = stops - lengths
    exact = np.concatenate(candidates).astype(np.float64)
    frames = query.astype(np.float64)
    found = np.empty((len(candidates), len(frames)), np.int64)
    rows = max(1, CELLS // len(exact))
    for top in range(0, len(frames), rows):
        part = slice(top, top + rows)
        rough, tolerance = _rough_distances(frames[part], exact, distance)
        least = np.minimum.reduceat(rough, starts, axis=1)
        close = rough <= np.repeat(least + tolerance, lengths, axis=1)
        # Equal frames are common and a matrix product rounds: what is close is computed exactly.
        doubtful = np.add.reduceat(close, starts, axis=1, dtype=np.int64) != 1
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            nearest = rough[:, start:stop].argmin(1)
            again = np.flatnonzero(doubtful[:, i])
            if len(again):
                distances = cdist(frames[part][again], exact[start:stop], distance)
                nearest[again] = distances.argmin(1)
            found[i, part] = nearest
    return found


def _rough_distances(
    query: np.ndarray, frames: np.ndarray, distance: Distance
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances (n, F) up to a constant a row, and how far rounding may move them (n, 1)."""
    if distance == "cosine":
        # A frame of zeros has no direction: it becomes NaN, which is doubtful.
        with np.errstate(invalid="ignore"):
            query, frames = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, frames))
    lengths = (frames**2).sum(1)
    longest = lengths.max(initial=0, where=np.isfinite(lengths))
    scale = (query**2).sum(1, keepdims=True) + longest
    eps = np.finfo(np.float64).eps
    return lengths - 2 * query @ frames.T, 8 * query.shape[1] * eps * scale


def discordant(values: np.ndarray) -> np.ndarray:
    """Return for each row the number of pairs i < j with values[i] > values[j].

    Bit by bit from the highest: two values that agree so far are out of order where the earlier
    has the bit and the later has not. O(rows L log L log values).

    Args:
        values: int64 (rows, L), not negative.

    Returns:
        int64 (rows,).
    """
    rows, length = values.shape
    bits = int(values.max(initial=0)).bit_length()
    keys = (values + (np.arange(rows)[:, None] << bits)).ravel()
    total = np.zeros(rows, np.int64)
    for bit in reversed(range(bits)):
        has = (keys >> bit) & 1
        agreed = keys >> (bit + 1)
        before = np.cumsum(has) - has
        first = np.flatnonzero(np.r_[True, agreed[1:] != agreed[:-1]])
        sizes = np.diff(np.r_[first, len(keys)])
        earlier = (before - np.repeat(before[first], sizes)) * (1 - has)
        total += earlier.reshape(rows, length).sum(1)
        keys = keys[np.argsort(keys >> bit, kind="stable")]
    return total


def tau_b(values: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b between 0, 1, ... and each row, NaN where all of a row is equal.

    Args:
        values: int64 (rows, L), not negative.

    Returns:
        float64 (rows,), -1 to 1.
    """
    length = values.shape[1]
    pairs = length * (length - 1) // 2
    ordered = np.sort(values, axis=1)
    # Of a value that occurs n times, 0 + 1 + ... + (n - 1) pairs are ties.
    run = np.zeros_like(ordered)
    for column in range(1, length):
        run[:, column] = (run[:, column - 1] + 1) * (ordered[:, column] == ordered[:, column - 1])
    untied = pairs - run.sum(1)
    difference = untied - 2 * discordant(values)
    with np.errstate(invalid="ignore"):
        return np.clip(difference / np.sqrt(pairs) / np.sqrt(untied), -1, 1)


def tau_matrix(
    videos: Sequence[np.ndarray], stride: int = 5, distance: Distance = "sqeuclidean"
) -> np.ndarray:
    """Return Kendall's tau of every ordered pair of videos.

    Args:
        videos: embeddings (L, D) of each.
        stride: every how many-th frame counts.
        distance: between frames.

    Returns:
        float64 (V, V): entry (i, j) says in how far the nearest frames in j of the frames of i
        keep the order of time; NaN on the diagonal and where they are all the same frame.
    """
    kept = [video[::stride] for video in videos]
    matrix = np.full((len(kept), len(kept)), np.nan)
    for i, nearest in enumerate(_nearest_of_others(kept, distance)):
        matrix[i, np.arange(len(kept)) != i] = tau_b(nearest)
    return matrix


def _nearest_of_others(videos: list[np.ndarray], distance: Distance) -> Iterator[np.ndarray]:
    for i, query in enumerate(videos if len(videos) > 1 else []):
        yield nearest_frames(query, videos[:i] + videos[i + 1 :], distance)
