"""From the first frame's box to soft labels of cells, and from propagated labels to boxes.

A published procedure there is not; this is ours, with what was measured in
docs/evaluations/got10k.md. Boxes are (x, y, w, h) in pixels of the frame, x and y of the upper left
corner; h and w are rows and columns of cells.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Shape = Literal["ellipse", "box"]

FINE = 2
"""factor by which a map is enlarged before the box is sought"""
AT_ONCE = 1 << 18
"""sums that are compared at a time: what stays in a processor's cache"""
SAMPLES = 8
"""points along a cell's side of which those within the shape are counted"""


def first_labels(
    box: np.ndarray, size: tuple[int, int], grid: tuple[int, int], shape: Shape
) -> Tensor:
    """Return the first frame's labels, float32 (2, h, w): background, and the object's share.

    The object's labels are stretched so that the largest is 1: of an object smaller than a cell
    nothing would be left after a few frames.

    Args:
        box: (4,), with an area in the frame.
        size: (height, width) of the frame in pixels.
        grid: (h, w).
        shape: what of the box is the object.
    """
    inside = _box_share(box, size, grid)
    if shape == "ellipse":
        rounded = _ellipse_share(box, size, grid)
        inside = rounded if rounded.any() else inside
    object_hw = torch.from_numpy(inside / inside.max()).float()
    return torch.stack([1 - object_hw, object_hw])


def _box_share(box: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Return the share of each cell that a box covers, (h, w)."""

    def along(start: float, length: float, cells: int, pixels: int) -> np.ndarray:
        low, high = (cells / pixels * end for end in (start, start + length))
        edges = np.arange(cells + 1)
        return np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, 1)

    x, y, width, height = box
    return np.outer(along(y, height, grid[0], size[0]), along(x, width, grid[1], size[1]))


def _ellipse_share(box: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Return the share of each cell that the ellipse within a box covers, (h, w), by samples."""
    x, y, width, height = box
    rows, columns = (
        (np.arange(SAMPLES * cells) + 0.5) * pixels / (SAMPLES * cells)
        for cells, pixels in zip(grid, size, strict=True)
    )
    across, down = (columns - x) / width - 0.5, (rows - y) / height - 0.5
    inside = across**2 + down[:, None] ** 2 <= 0.25
    share: np.ndarray = inside.reshape(grid[0], SAMPLES, grid[1], SAMPLES).mean((1, 3))
    return share


def densest_box(object_hw: np.ndarray, threshold: float) -> np.ndarray | None:
    """Return the box with the greatest sum of (label - threshold) over its cells.

    Scattered cells far from the object do not pay for the background between; holes in it do.

    Args:
        object_hw: (h, w) the object's soft labels, 0 to 1.
        threshold: label above which a cell speaks for being inside.

    Returns:
        (x, y, w, h) in cells; None if no label is above the threshold.
    """
    enlarged = F.interpolate(
        torch.from_numpy(object_hw)[None, None].double(),
        scale_factor=FINE,
        mode="bilinear",
        align_corners=False,
    )
    gain = enlarged[0, 0].numpy() - threshold
    rows, columns = (np.flatnonzero((gain > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, left = rows[0], columns[0]
    gain = gain[top : rows[-1] + 1, left : columns[-1] + 1]
    low, high, first, last = _greatest_rectangle(gain)
    return np.array([left + first, top + low, last - first, high - low], float) / FINE


def _greatest_rectangle(gain: np.ndarray) -> tuple[int, int, int, int]:
    """Return (row, end, column, end) of the rectangle with the greatest sum, ends exclusive."""
    height, width = gain.shape
    down = np.concatenate([np.zeros((1, width)), gain.cumsum(axis=0)])
    lows, highs = np.triu_indices(height + 1, 1)
    best, found = -np.inf, (0, 0, 0, 0)
    for start in range(0, len(lows), step := max(1, AT_ONCE // (width + 1))):
        low, high = lows[start : start + step], highs[start : start + step]
        # All ranges of rows at once; their best columns as in the one-dimensional problem.
        across = np.zeros((len(low), width + 1))
        np.cumsum(down[high] - down[low], axis=1, out=across[:, 1:])
        rise = across - np.minimum.accumulate(across, axis=1)
        place, last = divmod(int(rise.argmax()), width + 1)
        if rise[place, last] > best:
            first = int(across[place, : last + 1].argmin())
            best, found = rise[place, last], (int(low[place]), int(high[place]), first, last)
    return found


def _within(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the part (4,) of a box that lies in a frame of (height, width) pixels."""
    low, high = (np.clip(corner, 0, size[::-1]) for corner in (box[:2], box[:2] + box[2:]))
    return np.concatenate([low, high - low])


class BoxFinder:
    """Boxes of one object, frame after frame.

    What the search gives for the first labels differs from the given box by their shape and the
    coarseness of cells; every later box is corrected by the same shift and stretch, relative to its
    size. Sizes change slowly.

    Args:
        box: (4,) of the first frame; what of it lies in the frame counts.
        object_hw: (h, w) the first frame's soft labels.
        size: (height, width) of the frames in pixels.
        threshold: as of :func:`densest_box`.
        smoothing: share of the previous box's size in a new one's, geometrically, 0 to 1.

    Attributes:
        box: (4,) the last box.
        lost: frames so far in which nothing was left of the object: the box stays.
    """

    def __init__(
        self,
        box: np.ndarray,
        object_hw: np.ndarray,
        size: tuple[int, int],
        threshold: float,
        smoothing: float,
    ) -> None:
        # Labels know nothing of what lies outside: measured by the whole box, they would be
        # stretched for the rest of the video.
        self.box, self.lost = _within(box, size), 0
        self._threshold, self._smoothing = threshold, smoothing
        self._cell = np.array(size[::-1]) / object_hw.shape[::-1]
        self._shift, self._stretch = np.zeros(2), np.ones(2)
        found = self._found(object_hw)
        if found is not None:
            centre, sides = found
            self._shift = (self.box[:2] + self.box[2:] / 2 - centre) / sides
            self._stretch = self.box[2:] / sides

    def __call__(self, object_hw: np.ndarray) -> np.ndarray:
        """Return the box (4,) of a frame's soft labels (h, w)."""
        found = self._found(object_hw)
        if found is None:
            self.lost += 1
            return self.box
        centre, sides = found
        centre = centre + self._shift * sides
        sides = self.box[2:] ** self._smoothing * (self._stretch * sides) ** (1 - self._smoothing)
        self.box = np.concatenate([centre - sides / 2, sides])
        return self.box

    def _found(self, object_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return centre and sides (2,) in pixels, x first."""
        box = densest_box(object_hw, self._threshold)
        if box is None:
            return None
        return (box[:2] + box[2:] / 2) * self._cell, box[2:] * self._cell
