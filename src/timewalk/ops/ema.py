"""Exponential moving average of parameters: a teacher that follows its student."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_update_(targets: Iterable[Tensor], sources: Iterable[Tensor], momentum: float) -> None:
    """Set each target t to m t + (1 - m) s, in order; one fused pass over all of them.

    Args:
        targets: tensors that are changed (the teacher's parameters).
        sources: tensors of equal number and shapes (the student's).
        momentum: m, 1 leaves the targets as they are.
    """
    ours, theirs = list(targets), list(sources)
    if [t.shape for t in ours] != [s.shape for s in theirs]:
        raise ValueError("teacher and student differ in the number or shapes of parameters")
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
