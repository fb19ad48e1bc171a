"""Semantic segmentation: an encoder with a linear head, or with UperNet.

Source: UperNet, with the settings of iBOT's fine-tuning on ADE20K. UperNet pools the deepest level
of the feature pyramid at four scales, adds what is deep to what is shallow level by level, and
decides from all levels side by side. The linear head is one 1x1 convolution of the frozen encoder's
maps side by side.

Shapes: B images, K classes, H and W rows and columns of the image, h and w of a map.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.encoders.base import Encoder
from timewalk.encoders.dense.pyramid import FeaturePyramid

Head = Literal["linear", "upernet"]
POOL_SCALES = (1, 2, 3, 6)
AUXILIARY_LEVEL = 2
"""of the pyramid, from 0"""


class Segmenter(nn.Module):
    """Images to logits of their cells.

    Args:
        encoder: any; the linear head freezes it.
        classes: K.
        head: `linear` or `upernet`.
        channels: of UperNet's maps.
        out_norm: whether a ViT's final norm is applied to each of its maps.
        aux_channels: of the auxiliary head on UperNet's third level; None: no such head.
        dropout: share of UperNet's channels that are dropped before each classifier.

    Attributes:
        stride: pixels of the image per cell of the logits.
        multiple: to multiples of this many pixels images are filled up with zeros, right and
            below, so that the maps of all strides cover the same pixels.
    """

    encoder: Encoder

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        head: Head,
        channels: int = 384,
        out_norm: bool = True,
        aux_channels: int | None = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.frozen = head == "linear"
        self.out_norm = out_norm
        self.keys: dict[str, Any] = {
            "classes": classes,
            "head": head,
            "channels": channels,
            "out_norm": out_norm,
            "aux_channels": aux_channels,
            "dropout": dropout,
        }
        widths, strides = encoder.tap_widths, encoder.tap_strides
        self.pyramid: FeaturePyramid | None = None
        self.auxiliary: FCNHead | None = None
        self.head: LinearHead | UperNetHead
        if self.frozen:
            encoder.requires_grad_(False)
            self.head = LinearHead(widths, classes)
            self.stride, largest = float(strides[0]), max(strides)
        else:
            self.pyramid = FeaturePyramid(widths, strides)
            self.head = UperNetHead(widths, channels, classes, dropout)
            self.stride, largest = self.pyramid.strides[0], int(max(self.pyramid.strides))
            if aux_channels is not None:
                width = widths[AUXILIARY_LEVEL]
                self.auxiliary = FCNHead(width, aux_channels, classes, dropout)
        self.multiple = math.lcm(encoder.multiple, *strides, largest)
        self.train(self.training)

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data from which :func:`timewalk.encoders.dense.from_spec` builds it again."""
        return {"kind": "segmenter", "encoder": self.encoder.spec, **self.keys}

    def train(self, mode: bool = True) -> "Segmenter":
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the maps that the head sees of images (B, 3, H, W), filled up to `multiple`."""
        height, width = images.shape[-2:]
        filled = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.encoder.taps(filled, norm=self.out_norm)
        return maps if self.pyramid is None else self.pyramid(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images.

        Args:
            images: (B, 3, H, W) of any size.

        Returns:
            (B, K, ceil(H / stride), ceil(W / stride)): at the stride of the shallowest map; see
            :meth:`resize`.
        """
        return self._crop(self.head(self.levels(images)), images)

    def training_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what :meth:`forward` does, and the auxiliary head's logits if there is one.

        Returns:
            logits as above; (B, K, h, w) at stride 16 or what is near it.
        """
        levels = self.levels(images)
        logits = self._crop(self.head(levels), images)
        if self.auxiliary is None:
            return logits, None
        return logits, self.auxiliary(levels[AUXILIARY_LEVEL])

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits of cells as logits of pixels (bilinear).

        Args:
            logits: (B, K, h, w) of :meth:`forward`.
            size: (H, W) of its images; cells reach over the edge where the stride does not divide
                these.

        Returns:
            (B, K, H, W).
        """
        rows, columns = (math.ceil(cells * self.stride) for cells in logits.shape[-2:])
        return _resized(logits, (rows, columns))[..., : size[0], : size[1]]

    def _crop(self, logits: Tensor, images: Tensor) -> Tensor:
        height, width = (math.ceil(side / self.stride) for side in images.shape[-2:])
        return logits[..., :height, :width]


class LinearHead(nn.Module):
    """One 1x1 convolution of all maps, resized to the first one's size and put side by side.

    Computed map by map and resized afterwards, which is the same: there are fewer classes than
    channels.

    Args:
        widths: channels of the maps.
        classes: K.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.classifier = _classifier(sum(widths), classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, K, h, w) of maps, of which the first has h x w cells."""
        weights = self.classifier.weight.split(self.widths, dim=1)
        sums: dict[tuple[int, int], Tensor] = {}
        for x, weight in zip(maps, weights, strict=True):
            part, size = F.conv2d(x, weight), _size(x)
            sums[size] = sums[size] + part if size in sums else part
        first, *others = sums.values()
        for part in others:
            first = first + _resized(part, _size(first))
        assert self.classifier.bias is not None
        return first + self.classifier.bias[:, None, None]


class UperNetHead(nn.Module):
    """UperNet (Xiao et al. 2018): pooling at four scales, then a feature pyramid network.

    Args:
        widths: channels of the levels, from the finest to the coarsest.
        channels: of all maps inside.
        classes: K.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(self, widths: Sequence[int], channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        *fine, deepest = widths
        self.pooled = nn.ModuleList(ConvNorm(deepest, channels, 1) for _ in POOL_SCALES)
        self.bottleneck = ConvNorm(deepest + len(POOL_SCALES) * channels, channels, 3)
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1) for width in fine)
        self.smooth = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in fine)
        self.fusion = ConvNorm(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return (B, K, h, w) of levels, of which the first has h x w cells."""
        *fine, deepest = levels
        maps = [lateral(x) for lateral, x in zip(self.lateral, fine, strict=True)]
        maps.append(self._pool(deepest))
        for finer in reversed(range(len(fine))):
            maps[finer] = maps[finer] + _resized(maps[finer + 1], _size(maps[finer]))
        for number, smooth in enumerate(self.smooth):
            maps[number] = smooth(maps[number])
        fused = self.fusion(torch.cat([_resized(x, _size(maps[0])) for x in maps], dim=1))
        logits: Tensor = self.classifier(self.dropout(fused))
        return logits

    def _pool(self, deepest: Tensor) -> Tensor:
        pooled = [
            _resized(convolution(F.adaptive_avg_pool2d(deepest, scale)), _size(deepest))
            for scale, convolution in zip(POOL_SCALES, self.pooled, strict=True)
        ]
        together: Tensor = self.bottleneck(torch.cat([deepest, *pooled], dim=1))
        return together


class FCNHead(nn.Module):
    """A 3x3 convolution and a classifier, for an auxiliary loss.

    Args:
        width: channels that enter.
        channels: inside.
        classes: K.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(self, width: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.convolution = ConvNorm(width, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, classes)

    def forward(self, level: Tensor) -> Tensor:
        """Return (B, K, h, w) of (B, width, h, w)."""
        logits: Tensor = self.classifier(self.dropout(self.convolution(level)))
        return logits


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; the map keeps its size.

    A map of one cell of one image has nothing to be normalised over: in training it is then
    normalised as in evaluation, by the running statistics (pooling to one cell, one image at a
    time, one process).

    Args:
        inputs: channels that enter.
        outputs: channels that leave.
        kernel: side of the kernel, odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h, w) of (B, inputs, h, w)."""
        x, norm = self.conv(x), self.norm
        # Joint normalisations of several processes are of other classes, and see all their values.
        if self.training and type(norm) is nn.BatchNorm2d and x.numel() == x.shape[1]:
            mean, variance = norm.running_mean, norm.running_var
            return F.relu(F.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps))
        return F.relu(norm(x))


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if _size(x) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
