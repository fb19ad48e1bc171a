"""Frames of a clip for learning from the phases of an action.

Source: TCC's released code: T frames of a video, each perhaps with a positive shortly before it
(TCN), and each with its context of earlier frames.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from timewalk.data.sampling import Drawn

Strategy = Literal["offset_uniform", "stride"]
"""T frames anywhere but before the offset, in order; or one every `stride` frames"""


@dataclass(frozen=True)
class PhaseSampler:
    """Draws T frames of a video, and C frames for each that is embedded.

    Attributes:
        frames: T.
        strategy: how the T frames lie in the video.
        offset: `offset_uniform`: frames at the video's beginning that are never drawn.
        stride: `stride`: frames from one drawn frame to the next; a video that is too short shows
            its last frame again.
        context: C, frames embedded together, the drawn one last.
        context_step: frames between those.
        positive_window: TCN: each drawn frame is preceded by a positive, up to so many frames
            earlier, perhaps before the video's beginning; None: no positives.
    """

    frames: int = 20
    strategy: Strategy = "offset_uniform"
    offset: int = 1
    stride: int = 16
    context: int = 2
    context_step: int = 15
    positive_window: int | None = None

    @property
    def shortest(self) -> int:
        """Return the least frames that a video may have."""
        return max(self.offset, 1) if self.strategy == "offset_uniform" else 1

    def draw(self, length: int, rng: torch.Generator | None) -> Drawn:
        """Return steps, (S,) with S = T or 2T (p0, s0, p1, s1, ...), and S*C frames, clamped.

        Args:
            length: L, frames of the video, at least ``shortest``.
            rng: what is drawn from; None: spread evenly, for pictures.
        """
        pick = self._strided if self.strategy == "stride" else self._uniform
        chosen = pick(length, rng)
        if self.positive_window is not None:
            chosen = torch.stack([self._positives(chosen, rng), chosen], dim=1).flatten()
        back = self.context_step * torch.arange(self.context - 1, -1, -1)
        frames = (chosen[:, None] - back).clamp(0, length - 1)
        return Drawn(frames.flatten().tolist(), chosen.tolist())

    def _uniform(self, length: int, rng: torch.Generator | None) -> torch.Tensor:
        room = length - self.offset
        places = torch.arange(self.frames)
        if self.frames > room:  # as published, not clamped: only where pixels are looked up
            return places
        if rng is None:
            return self.offset + (2 * places + 1) * room // (2 * self.frames)
        return self.offset + torch.randperm(room, generator=rng)[: self.frames].sort().values

    def _strided(self, length: int, rng: torch.Generator | None) -> torch.Tensor:
        room = max(1, length - self.stride * self.frames)
        start = room // 2 if rng is None else int(torch.randint(room, (), generator=rng))
        return (start + self.stride * torch.arange(self.frames)).clamp(max=length - 1)

    def _positives(self, chosen: torch.Tensor, rng: torch.Generator | None) -> torch.Tensor:
        assert self.positive_window is not None
        if rng is None:
            return chosen - (self.positive_window + 1) // 2
        shape = (len(chosen),)
        return chosen - torch.randint(1, self.positive_window + 1, shape, generator=rng)
