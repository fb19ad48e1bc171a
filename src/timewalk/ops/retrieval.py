"""A memory of labelled patches, and what unlabelled patches take from it.

Source: Hummingbird, in the form of TimeT's second release. The search is exact: products with a
part of the memory at a time, of which the best so far are kept.

Shapes: B images, S their side in pixels, h and w cells, R patches of the memory, Q patches that
look up, K neighbours, C classes, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES = 4096
ROWS = {"cpu": 1 << 15, "cuda": 1 << 18}
"""patches of the memory that are compared at a time"""


@dataclass(frozen=True)
class Memory:
    """Training patches.

    Attributes:
        features: (R, D) of unit length, float32 or float16.
        shares: (R, C) float32, of the classes among a patch's pixels; a row sums to 1.
    """

    features: Tensor
    shares: Tensor


def cell_shares(targets: Tensor, grid: tuple[int, int], classes: int, void: int) -> Tensor:
    """Return the share of each class among each cell's pixels that are not void.

    Args:
        targets: uint8 (B, S, S), S a multiple of h and w.
        grid: (h, w).
        classes: C.
        void: id of the pixels that do not count.

    Returns:
        float32 (B, h * w, C); 0 where all pixels of a cell are void.
    """
    (h, w), (images, rows, columns) = grid, targets.shape
    row, column = torch.arange(rows) // (rows // h), torch.arange(columns) // (columns // w)
    cell = torch.arange(images)[:, None, None] * (h * w) + row[:, None] * w + column
    ids = torch.where(targets == void, classes, targets.long())
    counts = torch.bincount(
        (cell * (classes + 1) + ids).flatten(), minlength=images * h * w * (classes + 1)
    ).reshape(images, h * w, classes + 1)[..., :-1]
    return counts / counts.sum(-1, keepdim=True).clamp_min(1)


def sampled(shares: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Choose cells of an image, those of its rarer classes rather than others.

    Each cell gets a uniform number times the number of cells that show its classes; the smallest
    stay. Cells that are wholly void never do.

    Args:
        shares: (h * w, C).
        most: how many.
        rng: of the draw.

    Returns:
        the cells' numbers, ascending, int64.
    """
    shown = (shares > 0).double()
    draw = torch.rand(len(shown), generator=rng, dtype=torch.float64)
    cells = shown.any(1).nonzero().flatten()
    if len(cells) <= most:
        return cells
    scores = (draw * (shown @ shown.sum(0)))[cells]
    return cells[scores.topk(most, largest=False).indices].sort().values


def nearest(queries: Tensor, features: Tensor, count: int, rows: int | None = None) -> Tensor:
    """Return the most similar rows of a memory, exactly: int64 (Q, K) on the queries' device.

    Args:
        queries: float32 (Q, D).
        features: (R, D), anywhere; on a GPU products are made in their precision.
        count: K, at most R.
        rows: of the memory that are compared at a time; None: as fits the device.
    """
    device = queries.device
    step = rows or ROWS.get(device.type, ROWS["cpu"])
    numbers = features.dtype if device.type == "cuda" else torch.float32
    asked = queries.to(numbers)
    values = torch.empty(len(queries), 0, dtype=numbers, device=device)
    places = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start in range(0, len(features), step):
        part = features[start : start + step].to(device, numbers)
        found = (asked @ part.T).topk(min(count, len(part)), dim=1)
        values = torch.cat([values, found.values], dim=1)
        places = torch.cat([places, found.indices + start], dim=1)
        values, kept = values.topk(min(count, values.shape[1]), dim=1)
        places = places.gather(1, kept)
    return places


def looked_up(queries: Tensor, memory: Memory, count: int, temperature: float) -> Tensor:
    """Return the classes' shares (Q, C) of patches (Q, D) of unit length."""
    found = []
    for part in queries.split(QUERIES):
        places = nearest(part, memory.features, min(count, len(memory.features)))
        places = places.to(memory.features.device)
        keys = memory.features[places].to(part.device, torch.float32)
        shares = memory.shares[places].to(part.device)
        weights = (torch.einsum("qd,qkd->qk", part, keys) / temperature).softmax(1)
        found.append(torch.einsum("qk,qkc->qc", weights, shares))
    return torch.cat(found)
