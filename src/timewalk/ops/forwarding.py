"""Feature-forwarding: the first frame's soft labels carried through many short clips at once.

Each cell takes the labels of its ``top_k`` most similar cells in the first frame and the most
recent propagated ones, as :mod:`timewalk.ops.propagation` does for one long video. Clips of a batch
are few frames of a coarse grid, so here whole affinities are formed, of some clips at a time.
Source: TimeT's feature-forwarder, as released.

Shapes: B clips, F frames, S source frames, D features, K labels, h and w rows and columns, N = h w.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

AFFINITIES = 2**24
"""affinities, 4 bytes each, that are held at once"""


@dataclass(frozen=True)
class Forwarding:
    """How labels are forwarded.

    Attributes:
        context: propagated frames that a frame looks at, beside the first.
        radius: largest difference of rows and of columns between a cell and its neighbours; 0: no
            limit.
        top_k: neighbours of a cell, over all source frames together; those equal to the k-th count
            too.
        temperature: of the softmax over the neighbours' cosine similarities.
    """

    context: int = 7
    radius: int = 6
    top_k: int = 5
    temperature: float = 0.1


@torch.no_grad()
def forward_labels(
    features_BFDhw: Tensor, first_BKhw: Tensor, settings: Forwarding, affinities: int = AFFINITIES
) -> Tensor:
    """Return the labels of frames 1 to F - 1 of each clip.

    Args:
        features_BFDhw: (B, F, D, h, w), of any length: each cell's vector is normalised here.
        first_BKhw: (B, K, h, w) labels of frame 0, soft or hard.
        settings: the protocol.
        affinities: most that are held at once; one clip's are held whatever they are.

    Returns:
        (B, F - 1, K, h, w), of the labels' dtype; a cell's labels sum to 1 where those of the first
        frame do.
    """
    frames, height, width = features_BFDhw.shape[1], *features_BFDhw.shape[3:]
    cells = height * width
    sources = min(frames - 1, settings.context + 1)
    clips = max(1, affinities // (sources * cells**2))
    window_NN = _window(height, width, settings.radius, features_BFDhw.device)
    with torch.autocast(features_BFDhw.device.type, enabled=False):
        unit_BFND = F.normalize(features_BFDhw.float().flatten(3).mT, dim=-1)
        first_BNK = first_BKhw.flatten(2).mT
        parts = [
            _forward(unit, first, window_NN, settings)
            for unit, first in zip(unit_BFND.split(clips), first_BNK.split(clips), strict=True)
        ]
    return torch.cat(parts).mT.unflatten(-1, (height, width))


def _forward(
    unit_BFND: Tensor, first_BNK: Tensor, window_NN: Tensor | None, settings: Forwarding
) -> Tensor:
    """Return (B, F - 1, N, K)."""
    labels = [first_BNK]
    for time in range(1, unit_BFND.shape[1]):
        recent = range(max(1, time - settings.context), time)
        sources = [0, *recent]
        queries = unit_BFND[:, time]
        # By slices: a list of numbers would be copied to the device, and waited for.
        keys = torch.cat([unit_BFND[:, source] for source in sources], dim=1)
        weights_BNM = _weights(queries @ keys.mT, len(sources), window_NN, settings)
        bank_BMK = torch.cat([labels[source] for source in sources], dim=1)
        labels.append(weights_BNM.to(bank_BMK.dtype) @ bank_BMK)
    return torch.stack(labels[1:], dim=1)


def _weights(
    sims_BNM: Tensor, sources: int, window_NN: Tensor | None, settings: Forwarding
) -> Tensor:
    """Return the weights of all cells of all source frames, (B, N, S N): 0 but for neighbours."""
    if window_NN is not None:
        sims_BNM = (sims_BNM.unflatten(2, (sources, -1)) + window_NN[:, None]).flatten(2)
    k = min(settings.top_k, sims_BNM.shape[2])
    top_BNk = sims_BNM.topk(k, dim=2).values
    kept = sims_BNM.masked_fill(sims_BNM < top_BNk[..., -1:], -torch.inf)
    return (kept / settings.temperature).softmax(dim=2)


def _window(height: int, width: int, radius: int, device: torch.device) -> Tensor | None:
    """Return 0 where a cell (row) may look at another (column) and -inf elsewhere, (N, N)."""
    if radius == 0:
        return None
    cells = torch.arange(height * width, device=device)
    rows, columns = cells // width, cells % width
    near_rows = (rows - rows[:, None]).abs() <= radius
    near_columns = (columns - columns[:, None]).abs() <= radius
    return torch.zeros(len(cells), len(cells), device=device).masked_fill_(
        ~(near_rows & near_columns), -torch.inf
    )
