"""Sinkhorn-Knopp: scores of patches for objects to a balanced soft assignment.

Source: DoRA's released code: in turn each object's weights are brought to a sum of 1 / K and each
patch's to 1 / N, and in the end a patch's to 1. In the log domain the result is the published one
to 4e-7 wherever that is finite, and stays finite where float32 exponentials underflow to 0 / 0.

Shapes: B clips, N patches, K objects.
"""

import math

from torch import Tensor

# The smallest float32 above 0 is exp(-103.28): scores further below a clip's maximum become 0.
FLOAT32_UNDERFLOW = -103.28


def sinkhorn(logits_BNK: Tensor, epsilon: float = 0.05, iterations: int = 30) -> Tensor:
    """Return the assignment of patches to objects.

    Each iteration gives every object mass 1/K, then every patch mass 1/N; at the end masses are
    multiplied by N, so that each patch's K weights sum to 1.

    Args:
        logits_BNK: scores, float32 or float64.
        epsilon: entropic regularisation.
        iterations: at least 1.

    Returns:
        (B, N, K), of the dtype of the scores.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, but at least 1 is needed")
    logits = logits_BNK / epsilon
    shift = math.log(logits.shape[2]) - math.log(logits.shape[1])
    for _ in range(iterations):
        # Over patches each object sums to N / K, then over objects each patch to 1.
        # As a sum, since a GPU's softmax takes the rows of a long column one after the other.
        logits = (logits - logits.logsumexp(dim=1, keepdim=True) - shift).log_softmax(dim=2)
    return logits.exp()


def sinkhorn_published(logits_BNK: Tensor, epsilon: float = 0.05, iterations: int = 30) -> Tensor:
    """Return what the published code gives: NaN where a patch underflows (`compat: published`)."""
    scaled = logits_BNK / epsilon
    mass = (scaled - scaled.amax(dim=(1, 2), keepdim=True)).exp()
    mass = mass / mass.sum(dim=(1, 2), keepdim=True)
    _, patches, objects = mass.shape
    for _ in range(iterations):
        mass = mass / mass.sum(dim=1, keepdim=True) / objects
        mass = mass / mass.sum(dim=2, keepdim=True) / patches
    return mass * patches


def underflows(logits_BNK: Tensor, epsilon: float = 0.05) -> Tensor:
    """Return (B,) bool: clips in which float32 exponentials would give a patch no mass at all."""
    scaled = logits_BNK / epsilon
    best_BN = (scaled - scaled.amax(dim=(1, 2), keepdim=True)).amax(dim=2)
    return (best_BN < FLOAT32_UNDERFLOW).any(dim=1)
