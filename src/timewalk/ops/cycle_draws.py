"""Random cycles of videos, and where they start.

Source: TCC's released code, whose own draws are all the same cycle (docs/deviations.md).

Shapes: N videos, T frames, R cycles of L videos.
"""

import numpy as np
import torch
from torch import Tensor


def draw_cycles(
    batch_size: int,
    num_cycles: int,
    cycle_length: int,
    rng: np.random.Generator,
    *,
    published: bool = False,
) -> Tensor:
    """Return random cycles of videos, int64 (R, L + 1), the first again at the end.

    Each cycle is drawn for itself: L different videos in random order.

    Args:
        batch_size: N, videos to draw from.
        num_cycles: R.
        cycle_length: L, at least 2 and at most N.
        rng: draws.
        published: draw as the published code does. It writes down 0 to N - 1 over and over, R
            times, folds that into N rows of R, shuffles the rows and folds it into R rows of N. If
            R is a multiple of N, as in the published training always, the rows are equal, shuffling
            them does nothing, and EVERY cycle is 0, 1, ..., L - 1, 0. Otherwise a cycle may name a
            video twice.

    Raises:
        ValueError: a cycle length that cannot be, or no cycle.
    """
    if not 2 <= cycle_length <= batch_size:
        raise ValueError(
            f"cycle_length is {cycle_length}; it must be at least 2 and at most the number of "
            f"videos, {batch_size}"
        )
    _at_least_one("num_cycles", num_cycles)
    videos = np.arange(batch_size)
    if published:
        rows = np.tile(videos, num_cycles).reshape(batch_size, num_cycles)
        rng.shuffle(rows, axis=0)
        orders = rows.reshape(num_cycles, batch_size)
    else:
        orders = rng.permuted(np.tile(videos, (num_cycles, 1)), axis=1)
    chosen = orders[:, :cycle_length]
    return torch.from_numpy(np.concatenate([chosen, chosen[:, :1]], axis=1).astype(np.int64))


def draw_starts(frames: int, num_cycles: int, rng: np.random.Generator) -> Tensor:
    """Return where cycles start: R uniform entries of 0 to T - 1, int64 (R,)."""
    _at_least_one("frames", frames)
    return torch.from_numpy(rng.integers(frames, size=num_cycles, dtype=np.int64))


def _at_least_one(argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{argument} is {value}; it must be at least 1")
