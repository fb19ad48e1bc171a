"""Masks that a detector predicts inside boxes, as runs in COCO's form.

Source: Mask R-CNN for the masks, COCO for their form. A pixel belongs to an object where the
probability at its centre, interpolated bilinearly with zeros around the predicted cells, is at
least one half: never outside the box, so only boxes are computed, of all masks together and on
their device; the CPU gets the ends of runs alone, not pixels.

Shapes: N masks of S x S cells, H and W rows and columns of the image, n masks of a part with boxes
of at most h x w pixels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timewalk.metrics.detection import faster_coco_eval

THRESHOLD = 0.5
MOST_PIXELS = {"cuda": 2**26, "cpu": 2**17}
"""of the boxes of a part, all as large as its largest: memory on a GPU, the cache of a CPU"""
SMALLEST = 1e-6
"""pixels of a box's side, at least"""


def mask_runs(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    """Return each mask in the image, as the compressed text of its runs (`counts`).

    Args:
        masks: (N, S, S) probabilities.
        boxes: (N, 4) left, top, right, bottom in pixels of the image, on the same device.
        size: H and W.
    """
    library = faster_coco_eval().mask
    runs = [{"size": list(size), "counts": counts} for counts in run_lengths(masks, boxes, size)]
    return [found["counts"].decode() for found in library.frPyObjects(runs, *size)] if runs else []


def run_lengths(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[list[int]]:
    """Return the lengths of each mask's runs, down the columns, absent pixels first; arguments as
    of :func:`mask_runs`."""
    height, width = size
    top, bottom = (_first_centre(boxes[:, place], height) for place in (1, 3))
    left, right = (_first_centre(boxes[:, place], width) for place in (0, 2))
    found: list[list[int]] = [[height * width]] * len(boxes)
    for part in _parts(bottom - top, right - left, MOST_PIXELS[boxes.device.type]):
        place = part.to(boxes.device)
        cells = masks[place].float()
        across = _weights(boxes[place][:, 0::2], left[place], right[place], cells.shape[2])
        down = _weights(boxes[place][:, 1::2], top[place], bottom[place], cells.shape[1])
        inside = across @ cells.transpose(1, 2) @ down.transpose(1, 2) >= THRESHOLD
        mask, column, row = _changes(inside)
        ends = (left[place][mask] + column) * height + top[place][mask] + row
        lengths = _lengths(mask.cpu().numpy(), ends.cpu().numpy(), len(part), height * width)
        for number, own in zip(part.tolist(), lengths, strict=True):
            found[number] = own
    return found


def _first_centre(edges: Tensor, length: int) -> Tensor:
    """Return the first pixel whose centre is not before an edge, int64, within 0..length."""
    return (edges - 0.5).ceil().clamp(0, length).long()


def _parts(rows: Tensor, columns: Tensor, most: int) -> Iterator[Tensor]:
    """Yield the numbers of boxes in parts of alike size, on the CPU; empty boxes are left out.

    Args:
        rows: (N,) pixels.
        columns: (N,) pixels.
        most: pixels of a part, where it has more than one box.
    """
    rows, columns = rows.cpu(), columns.cpu()
    order = (rows * columns).sort(stable=True).indices
    part: list[int] = []
    high = wide = 0
    for number in order[(rows * columns)[order] > 0].tolist():
        tall, broad = max(high, int(rows[number])), max(wide, int(columns[number]))
        if part and (len(part) + 1) * tall * broad > most:
            yield torch.tensor(part)
            part, tall, broad = [], int(rows[number]), int(columns[number])
        part.append(number)
        high, wide = tall, broad
    if part:
        yield torch.tensor(part)


def _weights(sides: Tensor, first: Tensor, last: Tensor, cells: int) -> Tensor:
    """Return what each cell weighs in each pixel along an axis; 0 from pixel ``last`` on.

    Args:
        sides: (n, 2) where the boxes begin and end.
        first: (n,) the first pixel of each.
        last: (n,) the one after its last.
        cells: S.

    Returns:
        (n, the most pixels, S).
    """
    longest = int((last - first).max())
    pixels = first[:, None] + torch.arange(longest, device=sides.device)
    low, high = sides[:, :1].float(), sides[:, 1:].float()
    places = (pixels + 0.5 - low) / (high - low).clamp(min=SMALLEST) * cells - 0.5
    centres = torch.arange(cells, device=sides.device)
    weights = (1 - (places[:, :, None] - centres).abs()).clamp(min=0)
    return weights * (pixels < last[:, None])[:, :, None]


def _changes(inside: Tensor) -> tuple[Tensor, ...]:
    """Return where runs begin and end down each column of bool (n, w, h): mask, column, row."""
    edge = inside.new_zeros(*inside.shape[:2], 1)
    before, after = torch.cat([edge, inside], 2), torch.cat([inside, edge], 2)
    return (before != after).nonzero(as_tuple=True)


def _lengths(mask: np.ndarray, ends: np.ndarray, masks: int, pixels: int) -> list[list[int]]:
    """Return the lengths of the runs of each mask.

    Args:
        mask: whose, in order.
        ends: pixels where its runs begin and end, in turns.
        masks: n.
        pixels: of the image.
    """
    # A run that ends with its column may go on with the next one.
    joined = (ends[1:-1:2] == ends[2::2]) & (mask[1:-1:2] == mask[2::2])
    kept = np.ones(len(ends), bool)
    kept[1:-1:2], kept[2::2] = ~joined, ~joined
    mask, ends = mask[kept], ends[kept]
    bounds = np.searchsorted(mask, np.arange(1, masks))
    lengths = np.diff(ends, prepend=0)
    starts = np.concatenate([[0], bounds])
    starts = starts[starts < len(ends)]
    lengths[starts] = ends[starts]
    found = []
    for own in np.split(lengths, bounds):
        rest = pixels - int(own.sum())
        found.append([*own.tolist(), rest] if rest else own.tolist())
    return found


def rle(counts: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as the official results have it."""
    return {"size": list(size), "counts": counts}


def decoded(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Return a mask, uint8 (H, W), of the compressed text of its runs."""
    library = faster_coco_eval().mask
    mask: np.ndarray = library.decode(rle(counts, size))
    return mask
