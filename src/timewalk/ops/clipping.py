"""Gradient clipping by the norm of each parameter tensor, or of all together.

Source: the released code of DINO, which DoRA's shares: it scales each gradient by clip / (norm +
1e-6) where that is below 1, which is not PyTorch's global clipping.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

EPS = 1e-6


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip each gradient by its own norm.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: largest norm; infinity only measures.

    Returns:
        (P,) norms before clipping, of the parameters that have a gradient, in order.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = _norms(gradients)
    if gradients and not math.isinf(max_norm):
        factors = (max_norm / (norms + EPS)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms


@torch.no_grad()
def clip_global_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip all gradients together by the norm of all; see :func:`clip_each_`.

    Returns:
        (P,) norms of the single gradients before clipping; their norm is the global one.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = _norms(gradients)
    if gradients and not math.isinf(max_norm):
        total = torch.linalg.vector_norm(norms)
        torch._foreach_mul_(gradients, (max_norm / (total + EPS)).clamp(max=1.0))
    return norms


def _norms(gradients: list[Tensor]) -> Tensor:
    if not gradients:
        return torch.zeros(0)
    return torch.stack(torch._foreach_norm(gradients))
