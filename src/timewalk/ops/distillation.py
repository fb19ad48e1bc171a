"""Self-distillation without labels: cross-entropy of a student with a centred, sharpened teacher.

Shared by DINO and DoRA. Source: DINO, section 3.1, equations 1 to 4, and the released code of both.
All of it in float32 (float64 stays), whatever the networks' precision.

Shapes: R rows, D head width (65536 in earnest), V student views, G teacher views.
"""

from typing import Any

import torch
from torch import Tensor

# Rows times width of what is expanded to float32 at once: 64 MB.
CHUNK_NUMEL = 1 << 24


def full(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def teacher_probabilities(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Return softmax((logits - centre) / temperature) over the last dimension, detached."""
    return ((full(logits) - centre) / temperature).softmax(dim=-1)


@torch.no_grad()
def update_centre_(centre: Tensor, logits: Tensor, momentum: float) -> None:
    """Set centre (1, D) to m centre + (1 - m) mean of the teacher's rows."""
    mean = full(logits).flatten(0, -2).mean(dim=0, keepdim=True)
    centre.lerp_(mean.to(centre.dtype), 1.0 - momentum)


def cross_entropy(target_RD: Tensor, logits_RD: Tensor, temperature: float) -> Tensor:
    """Return (R,): -sum_D target log softmax(logits / temperature), chunk by chunk.

    The logits are kept in the precision they come in; no float32 tensor of their size lives on.

    Args:
        target_RD: constant weights, not necessarily of sum 1.
        logits_RD: what is differentiated.
        temperature: of the student.
    """
    return _CrossEntropy.apply(logits_RD, target_RD, temperature)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.temperature = temperature
        parts = [
            -(t * (full(x) / temperature).log_softmax(dim=-1)).sum(dim=-1)
            for x, t in _chunks(logits, target)
        ]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, target = ctx.saved_tensors
        grad = torch.empty_like(logits)
        scale = (grads[0] / ctx.temperature).unsqueeze(-1)
        rows = _rows(logits)
        for x, t, s, out in zip(
            logits.split(rows), target.split(rows), scale.split(rows), grad.split(rows), strict=True
        ):
            delta = (full(x) / ctx.temperature).softmax(dim=-1)
            delta.mul_(t.sum(dim=-1, keepdim=True)).sub_(t).mul_(s)
            out.copy_(delta)
        return grad, None, None


def _rows(logits: Tensor) -> int:
    return max(1, CHUNK_NUMEL // logits.shape[-1])


def _chunks(logits: Tensor, target: Tensor) -> Any:
    rows = _rows(logits)
    return zip(logits.split(rows), target.split(rows), strict=True)


def cross_view_loss(
    student_VRD: Tensor,
    teacher_GRD: Tensor,
    centre: Tensor,
    teacher_temperature: float,
    student_temperature: float = 0.1,
) -> Tensor:
    """Return DINO's loss of logits.

    Args:
        student_VRD: logits of all views.
        teacher_GRD: logits of the global views.
        centre: (1, D), from before this step.
        teacher_temperature: tau of this epoch.
        student_temperature: tau of the student.
    """
    target_GRD = teacher_probabilities(teacher_GRD, centre, teacher_temperature)
    return view_pairs_loss(student_VRD, target_GRD, student_temperature)


def view_pairs_loss(student_VRD: Tensor, target_GRD: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy over all pairs of different views.

    The first G student views are the teacher's views; a view is never compared with itself.

    Args:
        student_VRD: logits of all views.
        target_GRD: the teacher's probabilities of the global views.
        temperature: of the student.
    """
    views, teachers = len(student_VRD), len(target_GRD)
    everything_RD = target_GRD.sum(dim=0)
    total = student_VRD.new_zeros((), dtype=target_GRD.dtype)
    for view, logits_RD in enumerate(student_VRD):
        # Cross-entropy is linear in its target: one pass serves all teacher views.
        target = everything_RD - target_GRD[view] if view < teachers else everything_RD
        total = total + cross_entropy(target, logits_RD, temperature).mean()
    return total / (teachers * views - min(teachers, views))
