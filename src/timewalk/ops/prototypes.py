"""Prototypes, as TimeT clusters patches: scores, a balanced assignment, a queue of older features.

Source: TimeT and its released code.

Shapes: R rows, C channels, K prototypes, Q length of the queue.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from timewalk.ops.collectives import num_processes, process_number, rows_of_processes
from timewalk.ops.distillation import full
from timewalk.ops.sinkhorn import sinkhorn


def scores(features_RC: Tensor, prototypes_KC: Tensor) -> Tensor:
    """Return the products of the features' directions with the prototypes, (R, K) in float32."""
    with torch.autocast(features_RC.device.type, enabled=False):
        return F.normalize(full(features_RC), dim=-1) @ full(prototypes_KC).T


@torch.no_grad()
def assign(
    scores_RK: Tensor, older_QK: Tensor | None = None, *, epsilon: float, iterations: int
) -> Tensor:
    """Return the balanced soft assignment of the rows of all processes together.

    Args:
        scores_RK: of this process's share of the batch.
        older_QK: scores that take part in the balance and are then dropped: the queue's.
        epsilon: entropic regularisation.
        iterations: of Sinkhorn's algorithm.

    Returns:
        (R P, K) for P processes, in the batch's order; each row sums to 1.
    """
    joint = rows_of_processes(scores_RK)
    rows = len(joint)
    if older_QK is not None:
        joint = torch.cat([joint, older_QK])
    return sinkhorn(joint.unsqueeze(0), epsilon, iterations)[0, :rows]


def own_rows(joint: Tensor) -> Tensor:
    """Return this process's share of rows that all have, (R P, ...) to (R, ...)."""
    share = len(joint) // num_processes()
    return joint[share * process_number() :][:share]


def pushed(queue_QC: Tensor, rows_RC: Tensor) -> Tensor:
    """Return the queue with rows in front; as many leave at its end."""
    return torch.cat([rows_RC.to(queue_QC.dtype), queue_QC])[: len(queue_QC)]


def is_full(queue_QC: Tensor) -> bool:
    """Return whether all rows were pushed: a queue begins as zeros."""
    return bool(queue_QC[-1].any())
