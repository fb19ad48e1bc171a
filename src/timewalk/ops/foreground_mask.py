"""Foreground of an image from where its class token looks: the mask of the attention's top mass.

Source: Leopart's cluster-based foreground, in the form of TimeT's released code. The attention, a
mean over heads, is blurred a little; the patches of its largest values that hold a share of the
mass are kept, without small specks.

Shapes: B images, h and w rows and columns of patches.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from timewalk.ops.attention import keep_mass

BLUR = 7
"""side in patches of the Gaussian's window"""
SIGMA = 0.6
"""the Gaussian's deviation in patches"""
SPECK = 2
"""a connected part of no more patches is dropped"""


def attention_masks(attention: Tensor, keep: float = 0.65) -> Tensor:
    """Return the patches where an image's class token looks.

    Args:
        attention: (B, h, w), the mean over heads, not negative; h and w at least 4.
        keep: share of the mass that the mask holds, between 0 and 1, before specks are dropped.

    Returns:
        bool (B, h, w), on the attention's device.
    """
    kept = keep_mass(blurred(attention.float()).flatten(1), keep).view_as(attention)
    cleaned = np.stack([without_specks(mask) for mask in kept.cpu().numpy()])
    return torch.from_numpy(cleaned).to(attention.device)


def blurred(maps: Tensor) -> Tensor:
    """Return maps (B, h, w) after a Gaussian blur; beyond the edge they go on mirrored."""
    offsets = torch.arange(BLUR, device=maps.device, dtype=maps.dtype) - BLUR // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(maps[:, None], [BLUR // 2] * 4, mode="reflect")
    return F.conv2d(padded, torch.outer(weights, weights)[None, None])[:, 0]


def without_specks(mask: np.ndarray, size: int = SPECK) -> np.ndarray:
    """Drop the connected parts of at most ``size`` pixels, 8 neighbours each, of a mask (h, w)."""
    # Here, because it takes longer to import than to use.
    from scipy.ndimage import label

    parts, _ = label(mask, structure=np.ones((3, 3)))
    large = np.bincount(parts.ravel()) > size
    large[0] = False
    return large[parts]
