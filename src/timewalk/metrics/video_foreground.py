"""One foreground mask of a frame from the soft masks of many slots, and its J.

Source: SMTC's release for :func:`oracle_foreground`, which reads the annotation.
:func:`border_foreground` is ours and reads none.

Masks are enlarged to the annotation by nearest neighbour, so that all pixels of a cell are alike.
Everything is therefore computed on cells, with the number of pixels that each holds: the figures
are those of the enlarged masks at a hundredth of the work.

Shapes: V passes, K slots, h and w rows and columns of cells, H and W of pixels.
"""

from dataclasses import dataclass

import numpy as np

from timewalk.errors import UserError

THRESHOLD = 0.5
"""of a foreground's share, and of a slot's mask brought to 0..1"""
EPSILON = 1e-10
"""added to the range by which a mask is divided, as published: constant masks become 0"""


@dataclass(frozen=True)
class Annotation:
    """The pixels of a frame's annotation that each cell of a map stands for.

    Attributes:
        inside: int64 (h, w), of the true foreground.
        outside: int64 (h, w), of the true background; void pixels are in neither.
    """

    inside: np.ndarray
    outside: np.ndarray


def counted(truth: np.ndarray, grid: tuple[int, int], void: np.ndarray | None = None) -> Annotation:
    """Return an annotation as counts on the cells that occur (:func:`occurring`).

    Args:
        truth: bool (H, W), the foreground.
        grid: (rows, columns) of the map.
        void: bool (H, W), pixels that do not count; None: all count.
    """
    count = np.ones(truth.shape, bool) if void is None else ~void
    return Annotation(_sums(truth & count, grid), _sums(~truth & count, grid))


def _sums(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    sums = pixels.astype(np.int64)
    for axis in (0, 1):
        cells = _cells(grid[axis], pixels.shape[axis])
        sums = np.add.reduceat(sums, np.flatnonzero(np.diff(cells, prepend=-1)), axis)
    return sums


def _cells(source: int, target: int) -> np.ndarray:
    """Return the cell that each pixel of an axis takes, int64 (target,), ascending."""
    return np.arange(target) * source // target


def occurring(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps (..., h, w) without the rows and columns that no pixel takes: there are some
    where the annotation, (height, width), is smaller than the map."""
    rows, columns = (np.unique(_cells(*pair)) for pair in zip(maps.shape[-2:], size, strict=True))
    return _taken(maps, rows, columns)


def enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps (..., h, w) at another size, (height, width), by nearest neighbour: a pixel takes
    the cell floor(its place x cells / pixels)."""
    rows, columns = (_cells(*pair) for pair in zip(maps.shape[-2:], size, strict=True))
    return _taken(maps, rows, columns)


def _taken(maps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    # `take`, because indexing would leave pixels in an order that is slow to read.
    return maps.take(columns, axis=-1).take(rows, axis=-2)


def min_max(maps: np.ndarray) -> np.ndarray:
    """Return maps (..., h, w), each brought to 0..1; constant ones become 0."""
    low, high = (end(axis=(-2, -1), keepdims=True) for end in (maps.min, maps.max))
    found: np.ndarray = (maps - low) / (high - low + EPSILON)
    return found


def oracle_foreground(masks: np.ndarray, annotation: Annotation) -> np.ndarray:
    """Return the foreground that slots make which an oracle chooses, floats (h, w) in 0..1.

    Slots whose mask, brought to 0..1 and cut at 0.5, agrees more with the true foreground than with
    the true background are summed as they are; the mean over the passes is brought to 0..1.

    Args:
        masks: floats (V, K, h, w), soft masks on the cells that occur.
        annotation: on the same cells.
    """
    cut = min_max(masks) > THRESHOLD
    flipped = Annotation(annotation.outside, annotation.inside)
    with_object, with_rest = (iou(*overlap(cut, each)) for each in (annotation, flipped))
    chosen = with_object > with_rest
    summed = (masks * chosen[..., None, None]).sum(axis=1)
    return min_max(summed.mean(axis=0))


def border_foreground(masks: np.ndarray) -> np.ndarray:
    """Return the share of slots that keep off the frame's border, floats (h, w).

    A slot is foreground if the mean of its mask over the outermost cells is less than that over the
    others. The sum over these slots is a mean over the passes.

    Args:
        masks: floats (V, K, h, w), which sum to 1 over the slots.

    Raises:
        UserError: the maps have no cell that is not at the border.
    """
    if min(masks.shape[-2:]) < 3:
        raise UserError(
            f"maps of {masks.shape[-2]} x {masks.shape[-1]} cells are all border; raise "
            "image_height and image_width."
        )
    inner = np.zeros(masks.shape[-2:], bool)
    inner[1:-1, 1:-1] = True
    chosen = masks[..., ~inner].mean(axis=-1) < masks[..., inner].mean(axis=-1)
    found: np.ndarray = (masks * chosen[..., None, None]).sum(axis=1).mean(axis=0)
    return found


def overlap(masks: np.ndarray, annotation: Annotation) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of intersection and union of masks with the true foreground, int64 (...).

    Args:
        masks: bool (..., h, w), on the cells that occur.
        annotation: on the same cells.
    """
    both = np.where(masks, annotation.inside, 0).sum(axis=(-2, -1))
    beyond = np.where(masks, annotation.outside, 0).sum(axis=(-2, -1))
    return both, annotation.inside.sum() + beyond


def iou(both: np.ndarray, union: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Return intersections over unions, float64, and ``empty`` where the union has no pixel."""
    return np.where(union > 0, both / np.maximum(union, 1), empty)
