"""Statistics of the joint batch, written as if there were one process.

A method that needs the whole batch of all processes inside its loss calls these and nothing else
of ``torch.distributed``; with one process nothing happens. What can wait for the end of the step
is named in ``Losses.means`` and ``Losses.rows`` instead.
"""

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
