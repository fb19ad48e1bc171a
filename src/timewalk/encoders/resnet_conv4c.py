"""torchvision's ResNet-50 up to the third block of its third layer ("Conv4c").

Source: TCC, the variant of its code's first public revision: post-activation blocks, so the map is
behind a ReLU. Names and shapes of the tensors are torchvision's.

Patches: that map, at stride 16. Summary: its mean.
"""

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

NAME = "resnet50_conv4c"
BLOCKS = 3


class ResNet50Conv4c(Encoder):
    """The network with fresh weights.

    Args:
        mean: of the images it expects.
        std: likewise.
    """

    channels_last = True
    stride = 16
    width = patch_width = 1024

    def __init__(self, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> None:
        super().__init__()
        whole = torchvision.models.resnet50(weights=None)
        self.conv1, self.bn1, self.maxpool = whole.conv1, whole.bn1, whole.maxpool
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.layer3 = whole.layer3[:BLOCKS]
        self.mean, self.std = triple(mean), triple(std)
        self.spec = {"family": NAME, "mean": self.mean, "std": self.std}

    def regions(self) -> list[nn.Module]:
        """Return the three layers."""
        return [self.layer1, self.layer2, self.layer3]

    def forward(self, images: Tensor) -> Features:
        """Return the map of the third layer's third block and its mean."""
        patches = self.dense(images)
        return Features(patches.mean(dim=(2, 3)), patches)

    def dense(self, images: Tensor) -> Tensor:
        """Return that map, (B, 1024, ceil(H / 16), ceil(W / 16))."""
        return self._layers(images)[-1]

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Strides of the three layers, the last one twice."""
        return (4, 8, 16, 16)

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of these."""
        return (256, 512, 1024, 1024)

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return the maps of the three layers, the last one twice; there is no norm to apply."""
        maps = self._layers(images)
        return [*maps, maps[-1]]

    def _layers(self, images: Tensor) -> list[Tensor]:
        return chain(self.maxpool(self.bn1(self.conv1(images)).relu()), self.regions())
