"""Shuffle and Learn (SaL, ECCV 2016): are three frames of a video in the order of time?

Source: SaL, in the form of TCC's released code. Rows of three frames, some of them out of order,
are told apart by a small head on their embeddings. From embeddings to a scalar, in float32 at
least.

Shapes: N videos, T frames, D embedding size, R rows (triplets); row r is of video r mod N.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.ops.distillation import full

FRAMES_OF_A_ROW = 5
"""frames drawn for each row, of which three are used"""


@dataclass
class Triplets:
    """Three frames a row.

    Attributes:
        indices: (R, 3) int64, entries of the video's frames.
        labels: (R,) int64, 1 for a row out of order, 0 for one in order (or exactly reversed).
    """

    indices: Tensor
    labels: Tensor


def draw_triplets(
    videos: int,
    frames: int,
    rng: np.random.Generator,
    *,
    samples: int = 8,
    shuffle_fraction: float = 0.75,
) -> Triplets:
    """Return random triplets.

    Args:
        videos: N.
        frames: T, at least 5.
        rng: draws.
        samples: rows a video; R is N times that.
        shuffle_fraction: share of the rows that is out of order, rounded down to whole rows.

    Raises:
        ValueError: fewer than 5 frames.
    """
    rows = videos * samples
    shuffled = np.arange(rows) < int(shuffle_fraction * rows)
    labels = torch.from_numpy(rng.permutation(shuffled).astype(np.int64))
    permutations = torch.from_numpy(rng.permuted(np.tile(np.arange(frames), (rows, 1)), axis=1))
    choices = torch.from_numpy(rng.random(rows, dtype=np.float32))
    reverse = bool(rng.integers(2))
    return Triplets(triplets_of(permutations, choices, labels, reverse), labels)


def triplets_of(permutations: Tensor, choices: Tensor, labels: Tensor, reverse: bool) -> Tensor:
    """Return the frames of each row, int64 (R, 3).

    Of five frames in the order of time, the second, third and fourth are a row in order. Out of
    order, the first or the fifth stands in the middle in place of the third.

    Args:
        permutations: (R, T) orders of 0 to T - 1, of which the first five entries are used.
        choices: (R,) numbers in 0..1: to one half the first frame, above it the fifth.
        labels: (R,) 1 for a row out of order.
        reverse: turn all rows round, as a video played backwards.

    Raises:
        ValueError: fewer than 5 frames.
    """
    if permutations.shape[1] < FRAMES_OF_A_ROW:
        raise ValueError(
            f"a video has {permutations.shape[1]} frames; the order of frames is learned from at "
            f"least {FRAMES_OF_A_ROW}"
        )
    chosen = permutations[:, :FRAMES_OF_A_ROW].long().sort(dim=1).values
    if reverse:
        chosen = chosen.flip(1)
    strangers = torch.where(choices.float() <= 0.5, chosen[:, 0], chosen[:, 4])
    middles = torch.where(labels == 1, strangers, chosen[:, 2])
    return torch.stack([chosen[:, 1], middles, chosen[:, 3]], dim=1)


class OrderHead(nn.Module):
    """Tells rows in order from rows out of order.

    Args:
        width: D.
        layers: (width, whether a ReLU follows) of each; the last must be (2, False).
        dropout: rate, before each layer.

    Raises:
        ValueError: another last layer.
    """

    def __init__(
        self,
        width: int,
        layers: Sequence[tuple[int, bool]] = ((128, True), (64, True), (2, False)),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not layers or tuple(layers[-1]) != (2, False):
            raise ValueError(
                "the last layer of an order head must be (2, False): one logit for each of in and "
                "out of order"
            )
        widths = [3 * width, *(size for size, _ in layers)]
        self.layers = nn.ModuleList(map(_dense, widths, widths[1:]))
        self.relus = [relu for _, relu in layers]
        self.dropout = dropout

    def forward(self, x_RC: Tensor, seed: int | None = None) -> Tensor:
        """Return the logits (R, 2) of in and out of order.

        Args:
            x_RC: (R, 3D), the embeddings of three frames beside one another.
            seed: of the dropout, so that every process draws the same; None: no dropout.
        """
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        for layer, relu in zip(self.layers, self.relus, strict=True):
            if rng is not None and self.dropout > 0:
                x_RC = x_RC * self._kept(x_RC, rng)
            x_RC = layer(x_RC)
            x_RC = F.relu(x_RC) if relu else x_RC
        return x_RC

    def _kept(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return what dropout multiplies by: 0, or what keeps the expectation."""
        kept = torch.rand(x.shape, generator=rng) >= self.dropout
        return kept.to(x.device, x.dtype) / (1 - self.dropout)


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def embeddings_of_triplets(embs_NTD: Tensor, indices_R3: Tensor) -> Tensor:
    """Return the embeddings of each row's three frames beside one another, (R, 3D)."""
    indices = indices_R3.to(embs_NTD.device)
    videos = torch.arange(len(indices), device=embs_NTD.device) % len(embs_NTD)
    return embs_NTD[videos.unsqueeze(1), indices].flatten(1)


def order_loss(
    embs: Tensor,
    triplets: Triplets,
    head: OrderHead,
    seed: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of the rows, a scalar.

    Args:
        embs: (N, T, D).
        triplets: R rows, row r of video r mod N.
        head: tells the rows apart.
        seed: of the head's dropout; None: no dropout.
        label_smoothing: share of the target spread over both answers.
    """
    with torch.autocast(embs.device.type, enabled=False):
        logits = head(embeddings_of_triplets(full(embs), triplets.indices), seed)
        labels = triplets.labels.long().to(logits.device)
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
