"""Outlines of objects to masks: polygons, and COCO's runs, whose pixels go down the columns.

A pixel belongs to a polygon where its centre does (even-odd rule), so coordinates are pixel edges:
the square (0, 0)-(10, 10) has 100 pixels. Polygons are scaled before they are filled, and filled
inside a window only, which costs what the part that is seen costs. Source: COCO's formats; the
evaluation's truth is decoded by the official library, which differs at single edge pixels.

Shapes: H and W rows and columns of a mask, n corners.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_NUMBERS = 6
"""of a polygon: three corners"""


@dataclass(frozen=True)
class Placement:
    """Where stored pixels come to lie: ``x * x_scale + x_shift`` in an image of another size.

    Attributes:
        height, width: of the image that they come to lie in, in pixels.
        x_scale, y_scale: of coordinates; negative: mirrored.
        x_shift, y_shift: pixels of that image.
    """

    height: int
    width: int
    x_scale: float = 1.0
    y_scale: float = 1.0
    x_shift: float = 0.0
    y_shift: float = 0.0

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return coordinates (..., 2), x and y, in the new image, float64."""
        return points * (self.x_scale, self.y_scale) + (self.x_shift, self.y_shift)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (N, 4), x0 y0 x1 y1, in the new image and cut to it, float64."""
        corners = self.points(boxes.reshape(-1, 2, 2))
        corners = np.clip(corners, 0, (self.width, self.height))
        return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    def sources(self, stored: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored row and column nearest to each row and column, for a stored size."""
        rows = (np.arange(self.height) + 0.5 - self.y_shift) / self.y_scale
        columns = (np.arange(self.width) + 0.5 - self.x_shift) / self.x_scale
        return (
            np.clip(np.floor(rows).astype(np.int64), 0, stored[0] - 1),
            np.clip(np.floor(columns).astype(np.int64), 0, stored[1] - 1),
        )


@dataclass(frozen=True)
class Outline:
    """Which pixels an object has: those of any of its polygons, or of its runs.

    Attributes:
        polygons: float (n, 2) corners, x and y in pixels of the stored image.
        runs: lengths of runs, down the columns, absent pixels first; None: there are polygons.
    """

    polygons: tuple[np.ndarray, ...] = ()
    runs: np.ndarray | None = None

    @property
    def known(self) -> bool:
        """Whether there is anything to fill."""
        return bool(self.polygons) or self.runs is not None

    def fill(self, mask: np.ndarray, stored: tuple[int, int], placement: Placement) -> None:
        """Set the object's pixels in a mask, uint8 (H, W), to 1.

        Args:
            mask: of the placement's size.
            stored: height and width of the stored image.
            placement: where stored pixels come to lie.
        """
        if self.runs is not None:
            rows, columns = placement.sources(stored)
            mask |= runs_to_mask(self.runs, stored)[np.ix_(rows, columns)]
        for polygon in self.polygons:
            fill_polygon(mask, placement.points(polygon))


def fill_polygon(mask: np.ndarray, points: np.ndarray) -> None:
    """Set the pixels of one polygon in a mask, uint8 (H, W), to 1.

    Args:
        mask: where; the polygon may reach beyond it.
        points: (n, 2) corners, x and y.
    """
    height, width = mask.shape
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    # Half-open, so that a corner on a row of centres is crossed once.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    counts = last - first
    total = int(counts.sum())
    if not total:
        return
    edge = np.repeat(np.arange(len(points)), counts)
    starts = np.cumsum(counts) - counts
    row = np.arange(total) - np.repeat(starts - first, counts)
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    top, left = int(row.min()), int(column.min())
    size = (int(row.max()) - top + 1, int(column.max()) - left + 1)
    inside = np.zeros(size, np.uint8)
    np.bitwise_xor.at(inside.reshape(-1), (row - top) * size[1] + column - left, np.uint8(1))
    # The last column only closes runs.
    inside = np.bitwise_xor.accumulate(inside, axis=1)[:, :-1]
    mask[top : top + size[0], left : left + size[1] - 1] |= inside


def runs_to_mask(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask, uint8 (H, W), of runs that count down the columns, absent pixels first."""
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(size[::-1]).T


def mask_to_runs(mask: np.ndarray) -> list[int]:
    """Return the runs of a mask (H, W): the inverse of :func:`runs_to_mask`."""
    flat = np.concatenate([[0], mask.astype(bool).T.reshape(-1)])
    changes = np.flatnonzero(np.diff(flat))
    runs: list[int] = np.diff([0, *changes.tolist(), mask.size]).tolist()
    return runs


def text_to_runs(text: str) -> list[int]:
    """Return the runs of COCO's compressed text.

    Six bits a character from "0" on: five of the number, lowest first, and whether more follow;
    from the fourth run on, the difference to the run before the last is stored.

    Raises:
        ValueError: a character that the text cannot have, or it breaks off.
    """
    runs: list[int] = []
    number, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the character {character!r}")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise ValueError("it breaks off")
    return runs


def outlines_to_masks(
    outlines: Sequence[Outline], stored: tuple[int, int], placement: Placement
) -> np.ndarray:
    """Return the masks of objects, uint8 (N, H, W); arguments as of :meth:`Outline.fill`."""
    masks = np.zeros((len(outlines), placement.height, placement.width), np.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        outline.fill(mask, stored, placement)
    return masks
