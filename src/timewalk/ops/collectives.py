"""Statistics of the joint batch, written as if there were one process.

A method that needs the whole batch of all processes inside its loss calls these and nothing else
of ``torch.distributed``; with one process nothing happens. What can wait for the end of the step
is named in ``Losses.means`` and ``Losses.rows`` instead.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Return how many processes train together."""
    joined = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if joined else 1


def process_number() -> int:
    """Return which of the processes that train together this is, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of ``x`` over all processes, each holding an equal share of the batch.

    Not differentiable: for centres, thresholds and what is logged.
    """
    if num_processes() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / num_processes()


def rows_of_processes(x: Tensor) -> Tensor:
    """Return the rows (R, ...) of all processes, (P R, ...), in the order of the batch.

    Not differentiable: for queues and joint assignments.
    """
    if num_processes() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(num_processes())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gathered(x: Tensor) -> Tensor:
    """Return the rows (R, ...) of all processes, (P R, ...), in the order of the batch, with a way
    back for the gradient.

    For losses that compare all clips of the batch with each other: every process computes the loss
    of the whole batch, and what goes back to its own rows is multiplied by P, so that the mean of
    the processes' gradients is that of one process.
    """
    if num_processes() == 1:
        return x
    rows: Tensor = _Gathered.apply(x)
    return rows


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return rows_of_processes(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        own = gradients[0].narrow(0, process_number() * ctx.rows, ctx.rows)
        return own * num_processes()
