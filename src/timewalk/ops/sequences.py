"""Embedded videos of a batch, as objectives take them.

Shapes: N videos, T sampled frames a video, S = T, or 2 T where every frame comes with a positive
one before it (p0, s0, p1, s1, ...), D embedding size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sequences:
    """Embedded videos.

    Attributes:
        embeddings: (N, S, D).
        steps: (N, S), numbers of the frames in their videos, as drawn.
        lengths: (N,), frames of each video.
        labels: (N, S), phase of each frame; None where the objective needs none.
    """

    embeddings: Tensor
    steps: Tensor
    lengths: Tensor
    labels: Tensor | None = None

    def taken(self, frames: slice) -> "Sequences":
        """Return some of the S frames of every video."""
        labels = None if self.labels is None else self.labels[:, frames]
        return Sequences(self.embeddings[:, frames], self.steps[:, frames], self.lengths, labels)

    def of_pairs(self, parity_N: Tensor) -> "Sequences":
        """Return of each video all even entries (its parity 0) or all odd ones, (N, T)."""
        even, odd = self.taken(slice(0, None, 2)), self.taken(slice(1, None, 2))
        is_odd_N1 = parity_N.bool().unsqueeze(1)
        return Sequences(
            torch.where(is_odd_N1.unsqueeze(2), odd.embeddings, even.embeddings),
            torch.where(is_odd_N1, odd.steps, even.steps),
            self.lengths,
        )
