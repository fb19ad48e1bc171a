"""Which frames of a video a sampled clip takes."""

from typing import NamedTuple, Protocol

import torch


class Drawn(NamedTuple):
    """The frames of one sampled clip.

    Attributes:
        frames: numbers of the frames to decode, each in the video; a frame may come again.
        steps: the sampled frames as drawn, S of them; may lie outside the video.
    """

    frames: list[int]
    steps: list[int]


class FrameSampler(Protocol):
    """Draws which frames of a video make a clip.

    Attributes:
        shortest: the least frames that a video may have.
    """

    @property
    def shortest(self) -> int:
        """Return the least frames that a video may have."""

    def draw(self, length: int, rng: torch.Generator | None) -> Drawn:
        """Return the frames of a clip of a video with ``length`` frames.

        Args:
            length: frames of the video, at least ``shortest``.
            rng: what is drawn from; None: frames spread evenly, for pictures.
        """


def anywhere(length: int, count: int, rng: torch.Generator | None) -> list[int]:
    """Return sorted frames, each at most once if there are enough."""
    if rng is None:
        return [(2 * place + 1) * length // (2 * count) for place in range(count)]
    if length < count:
        drawn = torch.randint(length, (count,), generator=rng)
    else:
        drawn = torch.randperm(length, generator=rng)[:count]
    return [int(number) for number in drawn.sort().values]


def window_step(length: int, count: int, step: int) -> int | None:
    """Return the step of a window of ``count`` frames in a video of ``length``; None: none fits.

    As published, the step is lowered by one unless two windows or more fit. From then on one is
    enough; where the published code fails, and where it would show one frame ``count`` times, the
    step is lowered on, down to 1.
    """
    low, high = _anchors(length, count, step)
    if low < high:
        return step
    for lower in range(max(step - 1, 1), 0, -1):
        low, high = _anchors(length, count, lower)
        if low <= high:
            return lower
    return None


def _anchors(length: int, count: int, step: int) -> tuple[int, int]:
    """Return the first and the last frame that can be a window's anchor, its frame count // 2."""
    half = step * count // 2
    return half, length - half - 1


def window(length: int, count: int, step: int, rng: torch.Generator | None) -> list[int]:
    """Return a window's frames; the video is long enough."""
    found = window_step(length, count, step)
    assert found is not None, "videos that are too short are left out when clips are opened"
    low, high = _anchors(length, count, found)
    anchor = (low + high) // 2
    if rng is not None:
        anchor = int(torch.randint(low, high + 1, (), generator=rng))
    return [anchor + found * (place - count // 2) for place in range(count)]
