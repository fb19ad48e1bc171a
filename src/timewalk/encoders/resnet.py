"""ResNets with stride 8, as dense correspondence uses them.

Source: CRW's released code. torchvision's network without pooling and classifier; every convolution
of the third and fourth layer has stride 1 (no dilation instead), so all maps from the second layer
on have stride 8. Names and shapes of the tensors are torchvision's, with either padding.

Patches: the third layer's map, which label propagation uses. Summary: the fourth layer's, averaged.
"""

from typing import Literal

import torchvision
from torch import Tensor, nn

from timewalk.encoders.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoder,
    Features,
    Triple,
    chain,
    triple,
)


class ResNet(Encoder):
    """A ResNet of torchvision at stride 8, with fresh weights.

    Args:
        name: `resnet18_s8` or `resnet50_s8`.
        padding: around the maps: their reflection, or zeros. Max-pooling pads as ever.
        mean: of the images it expects.
        std: likewise.
    """

    channels_last = True
    stride = 8
    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    relu: nn.ReLU
    maxpool: nn.MaxPool2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        name: str,
        padding: Literal["reflect", "zeros"] = "reflect",
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ) -> None:
        super().__init__()
        make = getattr(torchvision.models, name.removesuffix("_s8"))
        for part, module in make(weights=None).named_children():
            if part not in ("avgpool", "fc"):
                self.add_module(part, module)
        for layer in (self.layer3, self.layer4):
            for convolution in _convolutions(layer):
                convolution.stride = (1, 1)
        for convolution in _convolutions(self):
            if convolution.padding != (0, 0):
                convolution.padding_mode = padding
        # A block ends with as many channels as its last normalisation has.
        self.patch_width, self.width = (
            [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features
            for layer in (self.layer3, self.layer4)
        )
        self.mean, self.std = triple(mean), triple(std)
        self.spec = {
            "family": "resnet",
            "name": name,
            "padding": padding,
            "mean": self.mean,
            "std": self.std,
        }

    @property
    def deepest_width(self) -> int:
        """Channels of the fourth layer's map."""
        return self.width

    def regions(self) -> list[nn.Module]:
        """Return the four layers."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, images: Tensor) -> Features:
        """Return the averaged map of layer 4 and the map of layer 3."""
        patches = self.dense(images)
        return Features(self.layer4(patches).mean(dim=(2, 3)), patches)

    def dense(self, images: Tensor) -> Tensor:
        """Return the map of layer 3, (B, C, ceil(H / 8), ceil(W / 8)); layer 4 is not computed."""
        patches: Tensor = self.layer3(self.layer2(self.layer1(self._stem(images))))
        return patches

    def _stem(self, images: Tensor) -> Tensor:
        stem: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return stem

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Strides of the four layers."""
        return (4, 8, 8, 8)

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of the four layers, each twice those before it."""
        return tuple(self.width // factor for factor in (8, 4, 2, 1))

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return the maps of the four layers; there is no norm to apply."""
        return chain(self._stem(images), self.regions())

    def deepest(self, images: Tensor) -> Tensor:
        """Return the map of layer 4, (B, D, ceil(H / 8), ceil(W / 8))."""
        deepest: Tensor = self.layer4(self.dense(images))
        return deepest


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]
