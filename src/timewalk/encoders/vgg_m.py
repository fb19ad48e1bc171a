"""VGG-M, TCC's base network without published weights.

Source: TCC's released code.

Patches: the map of `conv4`, at stride 16. Summary: its mean.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.encoders import keras_init
from timewalk.encoders.base import Encoder, Features, Triple, triple
from timewalk.encoders.resnet_v2 import HALF

NAME = "vgg_m"
BLOCKS = {"conv2": (64, 128), "conv3": (128, 256), "conv4": (256, 512)}
"""channels that enter and leave"""


class VGGM(Encoder):
    """The network with fresh weights (He-normal kernels, biases 0).

    Args:
        mean: of the images it expects.
        std: likewise.
    """

    channels_last = True
    stride = 16

    def __init__(self, mean: Triple = HALF, std: Triple = HALF) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = _normalisation(64)
        for name, (inputs, outputs) in BLOCKS.items():
            self.add_module(name, _block(inputs, outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                keras_init.convolution(module)
        self.width = self.patch_width = BLOCKS["conv4"][1]
        self.mean, self.std = triple(mean), triple(std)
        self.spec = {"family": NAME, "mean": self.mean, "std": self.std}

    def regions(self) -> list[nn.Module]:
        """Return the three blocks."""
        return [self.get_submodule(name) for name in BLOCKS]

    def regularised(self) -> list[nn.Parameter]:
        """Return kernels and biases of the blocks' convolutions: `conv1` is not among them."""
        return [
            parameter
            for block in self.regions()
            for layer in block.modules()
            if isinstance(layer, nn.Conv2d)
            for parameter in layer.parameters()
        ]

    def forward(self, images: Tensor) -> Features:
        """Return the map of `conv4` and its mean."""
        patches = self.dense(images)
        return Features(patches.mean(dim=(2, 3)), patches)

    def dense(self, images: Tensor) -> Tensor:
        """Return the map of `conv4`, (B, 512, ceil(H / 16), ceil(W / 16))."""
        return self._blocks(images)[-1]

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Strides of the three blocks, the last one twice."""
        return (4, 8, 16, 16)

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of these."""
        widths = [outputs for _, outputs in BLOCKS.values()]
        return (*widths, widths[-1])

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return the three blocks' maps before pooling, the last one twice; no norm applies."""
        maps = self._blocks(images)
        return [*maps, maps[-1]]

    def _blocks(self, images: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        first, *others = self.regions()
        maps = [first(x)]
        for block in others:
            maps.append(block(F.max_pool2d(maps[-1], 2, stride=2, ceil_mode=True)))
        return maps


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), _normalisation(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _normalisation(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
