"""Keras's ResNet50V2 up to `conv4_block3_out`, the base network of TCC.

Source: TCC's released code. Pre-activation blocks; a stack's stride is in its last block; the map
is the raw sum of that block, without normalisation or ReLU behind it. PyTorch's usual "resnetv2_50"
has its strides elsewhere, so the published weights fit this network alone
(`weights/keras_resnet_v2.py`).

Patches: that map, at stride 16. Summary: its mean.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.encoders.base import Encoder, Features, Triple, chain, triple

NAME = "resnet50v2_conv4c"
HALF = (0.5, 0.5, 0.5)
"""mean and standard deviation that bring 0..1 to -1..1"""
EXPANSION = 4
STACKS = {"conv2": (64, 3, 2), "conv3": (128, 4, 2), "conv4": (256, 3, 1)}
"""narrow channels, blocks, stride of the last block (conv4 ends before its own)"""


class PreActivationBlock(nn.Module):
    """A bottleneck whose normalisation stands before its convolutions.

    Args:
        inputs: channels that enter.
        narrow: channels of the 3 x 3 convolution; four times as many leave.
        stride: of the 3 x 3 convolution.
        projects: whether a 1 x 1 convolution stands in the shortcut.
    """

    def __init__(self, inputs: int, narrow: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        outputs = EXPANSION * narrow
        self.stride = stride
        self.preact_bn = _normalisation(inputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 1) if projects else None
        self.conv1 = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.bn1 = _normalisation(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, padding=1, bias=False)
        self.bn2 = _normalisation(narrow)
        self.conv3 = nn.Conv2d(narrow, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 4 narrow, ceil(h / stride), ceil(w / stride)) of (B, inputs, h, w)."""
        active = F.relu(self.preact_bn(x))
        shortcut = x if self.conv0 is None else self.conv0(active)
        hidden = F.relu(self.bn1(self.conv1(active)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        residual: Tensor = self.conv3(hidden)
        return shortcut[..., :: self.stride, :: self.stride] + residual


class ResNet50V2(Encoder):
    """The network with fresh weights (Glorot-uniform kernels, biases 0, as Keras makes it).

    Args:
        mean: of the images it expects.
        std: likewise.
    """

    channels_last = True
    stride = 16

    def __init__(self, mean: Triple = HALF, std: Triple = HALF) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        inputs = 64
        for stack, (narrow, blocks, stride) in STACKS.items():
            self.add_module(stack, _stack(inputs, narrow, blocks, stride))
            inputs = EXPANSION * narrow
        self.width = self.patch_width = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.mean, self.std = triple(mean), triple(std)
        self.spec = {"family": NAME, "mean": self.mean, "std": self.std}

    def regions(self) -> list[nn.Module]:
        """Return the three stacks."""
        return [self.get_submodule(stack) for stack in STACKS]

    def forward(self, images: Tensor) -> Features:
        """Return the map of `conv4_block3_out` and its mean."""
        patches = self.dense(images)
        return Features(patches.mean(dim=(2, 3)), patches)

    def dense(self, images: Tensor) -> Tensor:
        """Return the map of `conv4_block3_out`, (B, 1024, ceil(H / 16), ceil(W / 16))."""
        return chain(self.stem(images), self.regions())[-1]

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Strides of `pool1_pool` and of the three stacks."""
        return (4, 8, 16, 16)

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of these."""
        return (64, *(EXPANSION * narrow for narrow, _, _ in STACKS.values()))

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return `pool1_pool` and the maps of the three stacks; there is no norm to apply."""
        stem = self.stem(images)
        return [stem, *chain(stem, self.regions())]

    def stem(self, images: Tensor) -> Tensor:
        """Return `pool1_pool`, (B, 64, ceil(H / 4), ceil(W / 4))."""
        # What enters may be negative: padding with 0 is not padding with minus infinity.
        return F.max_pool2d(F.pad(self.conv1(images), (1, 1, 1, 1)), 3, stride=2)


def _stack(inputs: int, narrow: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = EXPANSION * narrow
    return nn.Sequential(
        *(
            PreActivationBlock(
                inputs if index == 0 else outputs,
                narrow,
                stride if index == blocks - 1 else 1,
                projects=index == 0,
            )
            for index in range(blocks)
        )
    )


def _normalisation(channels: int) -> nn.BatchNorm2d:
    # Keras's momentum 0.99 is what torch calls 0.01.
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)
