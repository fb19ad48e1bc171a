"""Maps of an encoder as a pyramid with strides near 4, 8, 16 and 32.

Source: iBOT's fine-tuning. A ViT's maps all have the stride of its patches; from patch 16 the
levels come by x4, x2, x1 and x1/2, from patch 8 by x2, x1, x1/2 and x1/4.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

NOMINAL = (4, 8, 16, 32)
"""strides of the levels where the encoder's are powers of two; else the nearest by doubling"""


class FeaturePyramid(nn.Module):
    """One level from each of an encoder's maps, widths unchanged.

    Args:
        widths: channels of the maps.
        strides: of the maps, in pixels of the image.
        normed: whether BatchNorm stands between two enlargements.

    Attributes:
        widths: channels of the levels.
        strides: of the levels, in pixels.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], normed: bool = True) -> None:
        super().__init__()
        doublings = [
            round(math.log2(stride / nominal))
            for stride, nominal in zip(strides, NOMINAL, strict=True)
        ]
        self.widths = tuple(widths)
        self.strides = tuple(s / 2**n for s, n in zip(strides, doublings, strict=True))
        self.levels = nn.ModuleList(
            _level(width, n, normed) for width, n in zip(widths, doublings, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels of maps (B, widths[k], h, w), the first with the smallest stride."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _level(width: int, doublings: int, normed: bool) -> nn.Module:
    """Return what makes a map 2^doublings times as large."""
    if doublings < 0:
        # A last row or column that fills no cell must not be lost, nor a map of one cell.
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)
    layers: list[nn.Module] = []
    for number in range(doublings):
        if number > 0:
            layers += [nn.BatchNorm2d(width), nn.GELU()] if normed else [nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width, 2, stride=2))
    return nn.Sequential(*layers)
