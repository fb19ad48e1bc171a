"""The contract of an encoder, and what is known of ViTs before timm is imported.

Shapes: B images, D summary width, C patch width, h and w rows and columns of the patch map.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from timewalk.config import EncoderConfig
from timewalk.errors import UserError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]

TAPS = 4
"""maps that :meth:`Encoder.taps` returns"""

VIT_SHAPES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}
"""width, depth, heads"""

RESNETS = ("resnet18_s8", "resnet50_s8")
"""our own ResNets with stride 8 (`resnet.py`)"""

BASE_NETWORKS = ("resnet50v2_conv4c", "resnet50_conv4c", "vgg_m")
"""the base networks of TCC with stride 16 (`resnet_v2.py`, `resnet_conv4c.py`, `vgg_m.py`)"""


def triple(values: Any) -> Triple:
    """Return three numbers, one for each colour."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def chain(x: Tensor, parts: Iterable[nn.Module]) -> list[Tensor]:
    """Return what each of the parts makes of the output of the one before it."""
    outputs = []
    for part in parts:
        x = part(x)
        outputs.append(x)
    return outputs


@dataclass
class Features:
    """What an encoder says of images.

    Attributes:
        summary: (B, D), one vector an image.
        patches: (B, C, h, w), a map of vectors.
    """

    summary: Tensor
    patches: Tensor


class Encoder(nn.Module):
    """Images to :class:`Features`; all that an evaluation sees.

    ``forward`` takes (B, 3, H, W) in 0..1, already normalised by ``mean`` and ``std``.

    Attributes:
        stride: pixels of the image per cell of the patch map.
        width: D, length of the summary.
        patch_width: C, channels of the patch map.
        mean: of each colour, on 0..1.
        std: of each colour, on 0..1.
        spec: plain data from which :func:`timewalk.encoders.from_spec` builds the network again.
        channels_last: whether images and weights are faster with their channels last in memory.
        multiple: both sides of an image must be multiples of this many pixels.
    """

    stride: int
    width: int
    patch_width: int
    mean: Triple
    std: Triple
    spec: dict[str, Any]
    channels_last: bool = False
    multiple: int = 1

    @property
    def deepest_width(self) -> int:
        """Channels of the map that :meth:`deepest` returns."""
        return self.patch_width

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Pixels of the image per cell of each map of :meth:`taps`."""
        return (self.stride,) * TAPS

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of each map of :meth:`taps`."""
        return (self.patch_width,) * TAPS

    def normalise_by(self, mean: Triple, std: Triple) -> None:
        """Set the images' mean and standard deviation that the loaded weights expect."""
        self.mean, self.std = triple(mean), triple(std)
        self.spec |= {"mean": self.mean, "std": self.std}

    def regions(self) -> list[nn.Module]:
        """Return the parts that follow each other: each is compiled and recomputed by itself."""
        return []

    def stages(self) -> list[nn.Module]:
        """Return the parts between which a learning rate may fall, from the image on."""
        return self.regions()

    def regularised(self) -> list[nn.Parameter]:
        """Return kernels and biases that an L2 term of the loss counts."""
        return []

    def summary(self, images: Tensor) -> Tensor:
        """Return the summary alone, (B, D): for losses that need no map."""
        return self(images).summary

    def dense(self, images: Tensor) -> Tensor:
        """Return the patch map alone, (B, C, h, w), without what only a summary needs."""
        return self(images).patches

    def deepest(self, images: Tensor) -> Tensor:
        """Return the last layer's map, (B, deepest_width, h, w): what a loss on maps trains."""
        return self(images).patches

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return four maps from shallow to deep, for networks that segment or detect.

        Where the maps inside are not at hand, the patch map stands for all of them.

        Args:
            images: (B, 3, H, W), normalised, sides multiples of ``multiple``.
            norm: whether a ViT's final norm is applied to each.

        Returns:
            map k: (B, tap_widths[k], ceil(H / tap_strides[k]), ceil(W / tap_strides[k])).
        """
        return [self.dense(images)] * TAPS

    def __call__(self, images: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W)."""
        return super().__call__(images)


def is_vit(config: EncoderConfig) -> bool:
    """Return whether the name is one of our ViTs; a misspelt ViT is a :class:`UserError`."""
    if config.name.startswith("vit_") and config.name not in VIT_SHAPES:
        raise UserError(
            f"encoder.name: unknown ViT '{config.name}'{nearest(config.name, VIT_SHAPES)}"
        )
    return config.name in VIT_SHAPES


def vit_shape(config: EncoderConfig) -> tuple[int, int, int]:
    """Return (width, depth, heads) of a ViT: as its name says, or as the keys beside it say."""
    width, depth, heads = VIT_SHAPES[config.name]
    return config.width or width, config.depth or depth, config.heads or heads
