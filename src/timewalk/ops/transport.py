"""Optimal transport with an entropy term: how much of each row's mass goes to which column.

Source: SMTC's semantic term as released: the scalings of Sinkhorn distances in the plain domain,
and few of them. With costs up to 2 and epsilon 0.05 the smallest entry of the kernel is exp(-40),
far above what float32 loses. `sinkhorn.py` is another problem: equal masses, and scores that need
the log domain.

Shapes: n rows, m columns, any leading dimensions.
"""

import torch
from torch import Tensor

from timewalk.ops.distillation import full


@torch.no_grad()
def transport_plan(
    cost: Tensor, a: Tensor, b: Tensor, *, epsilon: float = 0.05, iterations: int = 3
) -> Tensor:
    """Return the mass that goes from each row to each column, (..., n, m), in float32 at least.

    The columns' masses are met exactly, the rows' the better the more iterations there are.

    Args:
        cost: (..., n, m), at least 0. Beyond about 80 epsilon float32 exponentials vanish, and
            where all of a column do, the plan is NaN.
        a: (..., n) masses of the rows, brought to sum 1.
        b: (..., m) masses of the columns, brought to sum 1.
        epsilon: weight of the entropy: small gives a sharp plan.
        iterations: scalings of rows, then columns, at least 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, but at least 1 is needed")
    with torch.autocast(cost.device.type, enabled=False):
        a, b = full(a).unsqueeze(-1), full(b).unsqueeze(-1)
        a, b = a / a.sum(dim=-2, keepdim=True), b / b.sum(dim=-2, keepdim=True)
        kernel = (full(cost) / -epsilon).exp_()
        column = torch.ones_like(b)
        for _ in range(iterations):
            row = a / (kernel @ column)
            column = b / (kernel.mT @ row)
        return kernel.mul_(row).mul_(column.mT)
