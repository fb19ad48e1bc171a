"""What an attention map keeps: the smallest set of patches that holds a share of its mass."""

from torch import Tensor


def keep_mass(attention: Tensor, share: float) -> Tensor:
    """Return a mask of the largest values that together hold at least ``share`` of the sum.

    As in DINO's released tool for its figures of attention: values sorted upwards, those whose
    cumulative share is strictly greater than 1 - ``share`` are kept.

    Args:
        attention: (..., N), not negative.
        share: between 0 and 1.

    Returns:
        (..., N) bool.
    """
    values, order = attention.sort(dim=-1)
    mass = (values / values.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    kept = mass > 1.0 - share
    return kept.gather(-1, order.argsort(dim=-1))
