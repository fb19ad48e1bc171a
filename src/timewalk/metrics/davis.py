"""DAVIS 2017 metrics on id maps: region similarity J and contour accuracy F of video objects.

Source: DAVIS 2016 for J and F, and the official evaluation of DAVIS 2017, whose figures these are,
to the last digit. One frame is scored at a time, every result id against every object at once: the
areas of all pairs come from one joint histogram, and each boundary is grown once, in its own
bounding box. Results that overlap, in no id map, are stacks of masks; their matching anew in every
frame is that of SMTC's release.

Shapes: T frames, H and W rows and columns of pixels, O objects of the truth, P ids of the result.
In an id map 0 is background.
"""

import math
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.008
"""how far apart two boundaries may lie and still agree: share of the image's diagonal"""
RECALL_THRESHOLD = 0.5
"""a frame counts as recalled where its value is above this"""
DECAY_BINS = 4
"""parts of a sequence, of which decay compares the first and the last"""
IDS = 256

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """An object's values over its frames in three numbers.

    Attributes:
        mean: mean over the frames.
        recall: share of the frames above 0.5.
        decay: mean of the first quarter of the frames less the mean of the last.
    """

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True)
class Boundary:
    """The boundary pixels of all ids of a map; a pixel is listed once for each id it bounds.

    Attributes:
        y: int64 (N,), rows.
        x: int64 (N,), columns.
        ids: integers (N,), 1 or more.
    """

    y: np.ndarray
    x: np.ndarray
    ids: np.ndarray

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns of one id's boundary."""
        own = self.ids == number
        return self.y[own], self.x[own]


def region_similarity(
    truth: np.ndarray, result: np.ndarray, void: np.ndarray | None = None
) -> float:
    """Return J, the intersection over the union of two masks; 1 where both are empty.

    Args:
        truth: bool (H, W).
        result: bool (H, W).
        void: bool (H, W), pixels that do not count.
    """
    return float(_mask_scores(truth, result, void)[0])


def contour_accuracy(
    truth: np.ndarray, result: np.ndarray, void: np.ndarray | None = None
) -> float:
    """Return F, the harmonic mean of the boundaries' precision and recall.

    Args:
        truth: bool (H, W).
        result: bool (H, W).
        void: bool (H, W), pixels that are taken out of both masks.
    """
    return float(_mask_scores(truth, result, void)[1])


def _mask_scores(
    truth: np.ndarray, result: np.ndarray, void: np.ndarray | None
) -> tuple[float, float]:
    counted = np.ones(truth.shape, bool) if void is None else ~void
    ids = [(mask & counted).astype(np.uint8) for mask in (truth, result)]
    J, F = frame_scores(ids[0], ids[1], num_objects=1, num_results=1)
    return J[0, 0], F[0, 0]


def frame_scores(
    truth: np.ndarray, result: np.ndarray, num_objects: int, num_results: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return J and F of every id of the result with every object, in one frame.

    Pixels that do not count (void) are to be 0 in both maps.

    Args:
        truth: uint8 (H, W); ids above ``num_objects`` are background.
        result: uint8 (H, W); ids above ``num_results`` are background.
        num_objects: O.
        num_results: P.

    Returns:
        J and F, float64 (P, O) each.
    """
    return (
        _region_scores(truth, result, num_objects, num_results),
        _agreement(boundaries(truth), num_objects, boundaries(result), num_results, truth.shape),
    )


def overlapping_scores(
    truth: np.ndarray, masks: np.ndarray, num_objects: int, void: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return J and F of masks that may overlap with every object, in one frame.

    Args:
        truth: uint8 (H, W); ids above ``num_objects`` are background.
        masks: bool (P, H, W), any number of them.
        num_objects: O.
        void: bool (H, W), pixels that are taken out of all masks.

    Returns:
        J and F, float64 (P, O) each.
    """
    if void is not None:
        truth, masks = np.where(void, 0, truth), masks & ~void
    objects = truth == np.arange(1, num_objects + 1)[:, None, None]
    pairs = [[np.count_nonzero(mask & object_) for object_ in objects] for mask in masks]
    intersection = np.array(pairs, np.int64).reshape(len(masks), num_objects)
    area_result = np.count_nonzero(masks, axis=(1, 2))[:, None]
    area_truth = np.count_nonzero(objects, axis=(1, 2))[None]
    J = _overlap(intersection, area_result, area_truth)
    true, found = boundaries(truth), _stack_boundaries(masks)
    return J, _agreement(true, num_objects, found, len(masks), truth.shape)


def _region_scores(
    truth: np.ndarray, result: np.ndarray, num_objects: int, num_results: int
) -> np.ndarray:
    pairs = result.ravel() * np.uint16(IDS) + truth.ravel()
    joint = np.bincount(pairs, minlength=IDS * IDS).reshape(IDS, IDS)
    results, objects = slice(1, num_results + 1), slice(1, num_objects + 1)
    intersection = joint[results, objects]
    area_result = joint.sum(1)[results, None]
    area_truth = joint.sum(0)[None, objects]
    return _overlap(intersection, area_result, area_truth)


def _overlap(
    intersection: np.ndarray, area_result: np.ndarray, area_truth: np.ndarray
) -> np.ndarray:
    union = area_result + area_truth - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def _agreement(
    true: Boundary, num_objects: int, found: Boundary, num_results: int, shape: Shape
) -> np.ndarray:
    """Return F of every result's boundary with every object's, (P, O)."""
    radius = boundary_radius(shape)
    in_result = _lengths(found.ids, num_results)[:, None]
    in_truth = _lengths(true.ids, num_objects)[None, :]
    matched_result = _near(true, num_objects, found, num_results, shape, radius).T
    matched_truth = _near(found, num_results, true, num_objects, shape, radius)
    precision = matched_result / np.maximum(in_result, 1)
    recall = matched_truth / np.maximum(in_truth, 1)
    both = precision + recall
    F = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
    return np.where((in_result == 0) & (in_truth == 0), 1.0, F)


def _lengths(ids: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(ids, minlength=count + 1)[1 : count + 1]


def _near(
    grown: Boundary, num_grown: int, asked: Boundary, num_asked: int, shape: Shape, radius: int
) -> np.ndarray:
    """Count the pixels of each asked id within the radius of each grown id, (grown, asked)."""
    counts = np.zeros((num_grown, num_asked), np.int64)
    height, width = shape[0] + 2 * radius, shape[1] + 2 * radius
    near = np.zeros((height, width), bool)
    places = (asked.y + radius) * width + asked.x + radius
    for number in range(1, num_grown + 1):
        y, x = grown.of(number)
        if len(y) == 0:
            continue
        cover = _cover(y, x, radius)
        box = near[y.min() :, x.min() :][: cover.shape[0], : cover.shape[1]]
        box[:] = cover
        counts[number - 1] = _lengths(asked.ids[near.ravel()[places]], num_asked)
        box[:] = False
    return counts


def boundary_radius(shape: Shape, tolerance: float = TOLERANCE) -> int:
    """Return how many pixels apart two boundaries in an image (H, W) may lie and still agree.

    Args:
        shape: (H, W).
        tolerance: share of the image's diagonal; from 1 on, pixels.
    """
    diagonal = math.sqrt(shape[0] ** 2 + shape[1] ** 2)
    return math.ceil(tolerance if tolerance >= 1 else tolerance * diagonal)


def boundaries(ids: np.ndarray) -> Boundary:
    """Return the boundary pixels of every id of a map, uint8 (H, W).

    A pixel bounds an id if that id holds some, not all, of the pixel, its right, its lower and its
    lower right neighbour. Neighbours outside the image repeat the edge, so that an object has no
    boundary along it.
    """
    height, width = ids.shape
    differ = np.zeros(ids.shape, bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=differ[:, :-1])
    differ[:-1] |= ids[1:] != ids[:-1]
    differ[:-1, :-1] |= ids[1:, 1:] != ids[:-1, :-1]
    places = np.flatnonzero(differ)
    y, x = np.divmod(places, width)
    right, down = x < width - 1, width * (y < height - 1)
    flat = ids.ravel()
    a, b, c, d = (flat[places + step] for step in (0, right, down, right + down))
    new = [a > 0, (b > 0) & (b != a), (c > 0) & (c != a) & (c != b)]
    new.append((d > 0) & (d != a) & (d != b) & (d != c))
    chosen = [np.flatnonzero(mask) for mask in new]
    listed = np.concatenate(chosen)
    held = np.concatenate([near[at] for near, at in zip((a, b, c, d), chosen, strict=True)])
    return Boundary(y[listed], x[listed], held)


def _stack_boundaries(masks: np.ndarray) -> Boundary:
    """Return the boundary pixels of masks, bool (P, H, W); the first mask has the id 1."""
    differ = np.zeros_like(masks)
    np.not_equal(masks[:, :, 1:], masks[:, :, :-1], out=differ[:, :, :-1])
    differ[:, :-1] |= masks[:, 1:] != masks[:, :-1]
    differ[:, :-1, :-1] |= masks[:, 1:, 1:] != masks[:, :-1, :-1]
    ids, y, x = np.unravel_index(np.flatnonzero(differ), masks.shape)
    return Boundary(y, x, ids + 1)


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Return the boundary of a mask, both bool (H, W); it is one pixel wide."""
    found = boundaries(mask.astype(np.uint8))
    drawn = np.zeros(mask.shape, bool)
    drawn[found.y, found.x] = True
    return drawn


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels within ``radius`` of a mask, bool (H, W) both; outside counts as nothing.

    Exactly the dilation by the disk of all (dy, dx) with dy^2 + dx^2 <= radius^2.
    """
    near = np.zeros((mask.shape[0] + 2 * radius, mask.shape[1] + 2 * radius), bool)
    y, x = np.nonzero(mask)
    if len(y):
        cover = _cover(y, x, radius)
        near[y.min() :, x.min() :][: cover.shape[0], : cover.shape[1]] = cover
    return near[radius : radius + mask.shape[0], radius : radius + mask.shape[1]]


def _cover(y: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
    """Draw disks around pixels in their bounding box, larger by the radius on every side."""
    y, x = y - y.min() + radius, x - x.min() + radius
    height, width = int(y.max()) + radius + 1, int(x.max()) + radius + 1
    pixels = np.zeros(height * width, bool)
    pixels[y * width + x] = True
    # A disk is a stack of runs. The margin keeps a flat shift from reaching another row's pixels.
    run, cover = pixels.copy(), np.zeros_like(pixels)
    rows: dict[int, list[int]] = {}
    for dy in range(radius + 1):
        rows.setdefault(math.isqrt(radius**2 - dy**2), []).append(dy * width)
    for half in range(radius + 1):
        if half:
            _or_shifted(run, pixels, half)
        for shift in rows.get(half, []):
            _or_shifted(cover, run, shift)
    return cover.reshape(height, width)


def _or_shifted(target: np.ndarray, source: np.ndarray, shift: int) -> None:
    """Add a flat image to another, shifted both ways."""
    target[shift:] |= source[: len(source) - shift]
    if shift:
        target[:-shift] |= source[shift:]


def statistics(series: np.ndarray, *, eight_bit_edges: bool = False) -> Statistics:
    """Return mean, recall and decay of an object's values over its frames.

    Args:
        series: (T,) values, T at least 1; NaN counts in no mean and is not above the threshold.
        eight_bit_edges: cut the bins' edges to 8 bits as the official tool does; from 257 frames
            on its decay is then of other frames, or NaN.
    """
    edges = (np.round(np.linspace(1, len(series), DECAY_BINS + 1) + 1e-10) - 1).astype(np.int64)
    if eight_bit_edges:
        edges %= 256
    # Both ends are included: neighbouring bins share a frame.
    first, last = series[edges[0] : edges[1] + 1], series[edges[-2] : edges[-1] + 1]
    return Statistics(
        mean=_mean(series),
        recall=float(np.mean(series > RECALL_THRESHOLD)),
        decay=_mean(first) - _mean(last),
    )


def _mean(values: np.ndarray) -> float:
    if np.isnan(values).all():
        return math.nan
    return float(np.nanmean(values))


def match(J: np.ndarray, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each object one proposal so that the sum of their scores is largest.

    The score of a pair is the mean of its J and its F, each a mean over the frames.

    Args:
        J: (P, O, T), P at least O.
        F: likewise.

    Returns:
        proposals and objects, int64 (O,) each, counted from 0, by rising proposal.
    """
    # Here, because it takes longer to import than to score a sequence.
    from scipy.optimize import linear_sum_assignment

    score = (np.mean(J, axis=2) + np.mean(F, axis=2)) / 2
    proposals, objects = linear_sum_assignment(-score)
    return proposals, objects


def match_frame(J: np.ndarray, F: np.ndarray) -> np.ndarray:
    """Give each object one proposal in one frame so that the sum of J and F is largest.

    As SMTC's release scores object discovery: identities over time do not count, and the truth
    picks the proposals of each frame.

    Args:
        J: (P, O), P at least O.
        F: likewise.

    Returns:
        the proposal of each object, int64 (O,), counted from 0.
    """
    from scipy.optimize import linear_sum_assignment

    proposals, objects = linear_sum_assignment(-(J + F))
    chosen: np.ndarray = proposals[np.argsort(objects)]
    return chosen
