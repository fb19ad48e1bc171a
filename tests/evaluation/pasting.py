"""Masks that a detector predicts inside boxes, as masks of the image.

A pixel takes the value that bilinear interpolation gives at its centre, with zeros around the
predicted cells. Only pixels inside the box are computed, one mask after the other.

Shapes: n masks of S x S cells, H and W rows and columns of the image.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def paste(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[Tensor]:
    """Yield each mask in the image, bool (H, W) on the CPU, its columns contiguous in memory: the
    order in which runs are counted.

    Args:
        masks: (n, S, S) probabilities.
        boxes: (n, 4) left, top, right, bottom, in pixels of the image; may reach beyond it.
        size: H and W.
        threshold: least probability of a pixel that belongs to the object.
    """
    for mask, box in zip(masks.float().cpu(), boxes.float().cpu().tolist(), strict=True):
        pasted = torch.zeros(size[::-1], dtype=torch.bool)
        columns, across = _axis(box[0], box[2], size[1], len(mask))
        rows, down = _axis(box[1], box[3], size[0], len(mask))
        pasted[columns, rows] = across @ mask.T @ down.T >= threshold
        yield pasted.T


def _axis(low: float, high: float, length: int, cells: int) -> tuple[slice, Tensor]:
    """Return the pixels whose centres lie inside, and how much of each cell each of them takes,
    (pixels, cells)."""
    first = min(max(math.ceil(low - 0.5), 0), length)
    last = min(max(math.ceil(high - 0.5), first), length)
    centres = torch.arange(first, last) + 0.5
    places = (centres - low) / max(high - low, 1e-6) * cells - 0.5
    weights = 1 - (places[:, None] - torch.arange(cells)).abs()
    return slice(first, last), weights.clamp(min=0)
