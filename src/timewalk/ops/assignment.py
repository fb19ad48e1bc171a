"""Many small assignment problems at once: which column each row takes so that the sum is largest.

Source: SMTC's instance term as released, where each semantic of each pair of frames is a problem of
P instances.

Shapes: P rows and as many columns, any leading dimensions.
"""

from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ENUMERATED = 6
"""largest P whose permutations are all tried: 720; larger problems are solved one after another"""


@torch.no_grad()
def best_permutations(scores: Tensor) -> Tensor:
    """Return the column of each row in the assignment of the largest sum, int64 (..., P).

    Args:
        scores: (..., P, P). With P above 6 they are solved on the CPU and must be finite.
    """
    count = scores.shape[-1]
    if scores.ndim < 2 or scores.shape[-2] != count:
        raise ValueError(f"scores of shape {tuple(scores.shape)}, but (..., P, P) is needed")
    if count > ENUMERATED:
        return _solved(scores)
    columns = torch.tensor(list(permutations(range(count))), device=scores.device)
    # Where in the flattened table each permutation finds its P entries.
    entries = columns + count * torch.arange(count, device=scores.device)
    sums = scores.flatten(-2)[..., entries].sum(dim=-1)
    return columns[sums.argmax(dim=-1)]


def _solved(scores: Tensor) -> Tensor:
    tables = scores.reshape(-1, *scores.shape[-2:]).double().cpu().numpy()
    columns = [linear_sum_assignment(table, maximize=True)[1] for table in tables]
    found = np.array(columns, dtype=np.int64).reshape(scores.shape[:-1])
    return torch.from_numpy(found).to(scores.device)
