"""Heads from patch features to classes of pixels.

Source: TimeT's two releases.

Shapes: B images, D width, C classes, h and w cells, M side of the maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FCN_WIDTH = 512
DROPOUT = 0.1


class LinearHead(nn.Module):
    """A 1x1 convolution, then the logits are enlarged: as if the features had been."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Tensor, size: int) -> Tensor:
        """Return logits (B, C, M, M) of features (B, D, h, w)."""
        return enlarged(self.classifier(features), size)


class FCNHead(nn.Module):
    """Two 3x3 convolutions, a third over their result and the input, dropout of whole channels, and
    a 1x1 convolution, on enlarged features."""

    def __init__(self, width: int, classes: int, channels: int = FCN_WIDTH) -> None:
        super().__init__()
        self.first = _convolution(width, channels)
        self.second = _convolution(channels, channels)
        self.joint = _convolution(width + channels, channels)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Tensor, size: int) -> Tensor:
        """Return logits (B, C, M, M) of features (B, D, h, w)."""
        x = enlarged(features, size)
        y = self.second(self.first(x).relu()).relu()
        return self.classifier(self.dropout(self.joint(torch.cat([x, y], dim=1)).relu()))


def _convolution(width: int, channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, channels, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def enlarged(maps: Tensor, size: int) -> Tensor:
    """Resize (B, D, h, w) to (B, D, M, M) bilinearly."""
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)
