"""Sinkhorn-Knopp: scores of patches for objects to a balanced soft assignment.

Source: DoRA's released code: in turn each object's weights are brought to a sum of 1 / K and each
patch's to 1 / N, and in the end a patch's to 1. In the log domain the result is the published one
to 4e-7 wherever that is finite, and stays finite where float32 exponentials underflow to 0 / 0.

Shapes: B clips, N patches, K objects.
"""

import math

from torch import Tensor

from timewalk.ops.distillation import full


def sinkhorn(logits_BNK: Tensor, epsilon: float = 0.05, iterations: int = 30) -> Tensor:
    """Return the assignment of patches to objects.

    Each iteration gives every object mass 1/K, then every patch mass 1/N; at the end masses are
    multiplied by N, so that each patch's K weights sum to 1.

    Args:
        logits_BNK: scores; below float32 they are raised to it.
        epsilon: entropic regularisation.
        iterations: at least 1.

    Returns:
        (B, N, K), float32 or float64.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, but at least 1 is needed")
    logits = full(logits_BNK) / epsilon
    shift = math.log(logits.shape[2]) - math.log(logits.shape[1])
    for _ in range(iterations):
        # Over patches each object sums to N / K, then over objects each patch to 1.
        # As a sum, since a GPU's softmax takes the rows of a long column one after the other.
        logits = (logits - logits.logsumexp(dim=1, keepdim=True) - shift).log_softmax(dim=2)
    return logits.exp()


def sinkhorn_published(logits_BNK: Tensor, epsilon: float = 0.05, iterations: int = 30) -> Tensor:
    """Return what the published code gives: NaN where all of a patch's or of an object's mass
    underflows (`compat: published`)."""
    scaled = full(logits_BNK) / epsilon
    mass = (scaled - scaled.amax(dim=(1, 2), keepdim=True)).exp()
    mass = mass / mass.sum(dim=(1, 2), keepdim=True)
    _, patches, objects = mass.shape
    for _ in range(iterations):
        mass = mass / mass.sum(dim=1, keepdim=True) / objects
        mass = mass / mass.sum(dim=2, keepdim=True) / patches
    return mass * patches


def underflows(logits_BNK: Tensor, epsilon: float = 0.05) -> Tensor:
    """Return (B,) bool: clips in which the published code, in float32, gives NaN.

    A patch, or an object, without any mass is divided by 0 in the first iteration; after that each
    holds at least 1 / (N K) of all.
    """
    return sinkhorn_published(logits_BNK.float(), epsilon, 1).isnan().flatten(1).any(dim=1)
