"""Classes of an image's pixels from the logits of windows over it.

Source: iBOT's evaluation on ADE20K. As published, a window's coarse logits are resized (bilinearly)
to its pixels, averaged where windows overlap, and the average is resized to the image's stored
size. All three steps are linear, and the same along rows and along columns: a stored pixel's logit
is a weighted sum of few cells of few windows. So the weights are put together once a side
(:func:`side_weights`), and the classes follow tile by tile: logits of all pixels, 150 classes of
some million pixels, are never in memory.

Shapes: K classes, n windows along one side, h and w cells of a window, H and W pixels of the stored
image, a and b the cells of all windows along rows and columns, repeated where windows overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

TILES = {"cpu": 64, "cuda": 512}
"""side in pixels of what is decided at once: what stays in a CPU's cache, or keeps a GPU busy"""

Tile = tuple[Tensor, Tensor]
"""weights (t, u) of t stored pixels in a row, and the numbers (u,) of the cells that they weigh"""


@dataclass(frozen=True)
class Side:
    """Windows along one side of an image.

    Attributes:
        length: of the side, pixels.
        window: length of a window, at most that of the side.
        starts: first pixel of each window.
    """

    length: int
    window: int
    starts: tuple[int, ...]


def windows_along(length: int, crop: int | None, stride: int) -> Side:
    """Return the windows along a side: the last one is shifted back into the image.

    Args:
        length: pixels of the side.
        crop: pixels of a window; a shorter side is one window, and so is any where it is None.
        stride: from one window to the next, at most ``crop``.
    """
    window = length if crop is None else min(crop, length)
    count = -(-(length - window) // stride) + 1
    return Side(length, window, tuple(min(n * stride, length - window) for n in range(count)))


def cut(image: Tensor, rows: Side, columns: Side) -> Tensor:
    """Return the windows of an image (3, H, W), row by row: (n, 3, window, window)."""
    return torch.stack(
        [
            image[:, top : top + rows.window, left : left + columns.window]
            for top in rows.starts
            for left in columns.starts
        ]
    )


def side_weights(side: Side, covered: int, cells: int, size: int) -> Tensor:
    """Return what each cell of each window weighs in each stored pixel along a side.

    Args:
        side: the windows.
        covered: pixels that a window's cells cover; more than its own where it was padded.
        cells: of a window.
        size: pixels of the stored image's side.

    Returns:
        float32 (size, n * cells); rows sum to 1.
    """
    enlarged = _resize_weights(cells, covered)[: side.window]
    mosaic = torch.zeros(side.length, len(side.starts) * cells, dtype=torch.float64)
    counts = torch.zeros(side.length, 1, dtype=torch.float64)
    for number, start in enumerate(side.starts):
        inside = slice(start, start + side.window)
        mosaic[inside, number * cells : (number + 1) * cells] = enlarged
        counts[inside] += 1
    return (_resize_weights(side.length, size) @ (mosaic / counts)).float()


def _resize_weights(length: int, size: int) -> Tensor:
    """Return bilinear resizing along one side (align_corners False), float64 (size, length)."""
    each = torch.eye(length, dtype=torch.float64)[None]
    return F.interpolate(each, size, mode="linear", align_corners=False)[0].T


# Images of a set have few sizes; the weights of one take longer than what is done with them.
@lru_cache(maxsize=128)
def _tiles(
    side: Side, covered: int, cells: int, size: int, flipped: bool, device: torch.device
) -> tuple[Tile, ...]:
    weights = side_weights(side, covered, cells, size)
    tiles = []
    for part in (weights.flip(0) if flipped else weights).split(TILES[device.type]):
        used = (part != 0).any(0).nonzero().flatten()
        tiles.append((part[:, used].to(device), used.to(device)))
    return tuple(tiles)


@dataclass(frozen=True)
class Pass:
    """One pass of a network over an image.

    Attributes:
        logits: (a, b, K) of all windows side by side.
        rows: weights of the cells along rows, of a tile's stored pixels at a time.
        columns: likewise along columns.
    """

    logits: Tensor
    rows: tuple[Tile, ...]
    columns: tuple[Tile, ...]


def make_pass(
    logits: Tensor,
    sides: tuple[Side, Side],
    covered: tuple[int, int],
    size: tuple[int, int],
    flipped: bool = False,
) -> Pass:
    """Put the logits of an image's windows side by side.

    Args:
        logits: (n, K, h, w) of the windows as :func:`cut` returns them.
        sides: windows along rows and columns.
        covered: rows and columns of pixels that a window's cells cover.
        size: (H, W).
        flipped: whether the network saw the image flipped left to right.
    """
    rows, columns = sides
    grid = logits.unflatten(0, (len(rows.starts), len(columns.starts)))
    # Classes last: the largest of them is found several times faster.
    mosaic = grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    (height, width), where = logits.shape[2:], logits.device
    return Pass(
        mosaic,
        _tiles(rows, covered[0], height, size[0], False, where),
        _tiles(columns, covered[1], width, size[1], flipped, where),
    )


def decide(passes: Sequence[Pass]) -> Tensor:
    """Return the likeliest class of each stored pixel, uint8 (H, W).

    Of one pass it is the class with the largest logit; of several, with the largest mean
    probability.
    """
    lines = []
    for row in zip(*(p.rows for p in passes), strict=True):
        bands = [p.logits[used] for p, (_, used) in zip(passes, row, strict=True)]
        line = []
        for column in zip(*(p.columns for p in passes), strict=True):
            tiles = [
                _weighed(band[:, used], down, across)
                for band, (down, _), (across, used) in zip(bands, row, column, strict=True)
            ]
            alone = len(tiles) == 1
            scores = tiles[0] if alone else torch.stack([t.softmax(-1) for t in tiles]).sum(0)
            line.append(scores.argmax(-1).to(torch.uint8))
        lines.append(torch.cat(line, dim=1))
    return torch.cat(lines)


def _weighed(cells: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return sums of cells (u, v, K), weighed along rows (y, u) and columns (x, v): (y, x, K)."""
    along = across @ cells
    return (down @ along.flatten(1)).unflatten(1, along.shape[1:])
