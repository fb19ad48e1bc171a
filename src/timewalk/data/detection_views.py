"""Images and their objects as a detector trains on and is tested on them; batches of any sizes.

Source: iBOT's fine-tuning on COCO. Training: mirrored or not; then either one resize to a random
short side, or a resize to a smaller one, a random crop, and the resize of that. Boxes follow by
their own geometry, masks by their outlines, which are filled at the final size only. Crowds, and
objects of which less than a pixel is left, are not trained on. Masks travel to the device as bits,
eight pixels of a row in a byte.

The original resizes the cropped images twice; here the crop is cut out of the stored image and
resized once, to the same sizes.

Shapes: B images of a batch, H and W rows and columns, N objects of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timewalk.data.object_masks import Outline, Placement, outlines_to_masks
from timewalk.data.objects import SMALLEST_SIDE, ObjectImage

MIRRORED = 0.5
"""share of images that are mirrored"""
CROPPED = 0.5
"""share of images that are cropped"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of images, in pixels.

    Attributes:
        short_sides: one is drawn for the shorter side of an image in training.
        long_side: most that the longer side comes to, in training and test.
        test_short_side: shorter side in test.
        crop_short_sides: one is drawn for the shorter side before a crop.
        crop: least and greatest side of a crop.
    """

    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    test_short_side: int = 800
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        smallest = min(*self.short_sides, *self.crop_short_sides, *self.crop, self.test_short_side)
        if smallest < 1 or self.crop[0] > self.crop[1]:
            raise ValueError("sizes are at least a pixel, the least crop at most the greatest")

    def scaled(self, factor: float) -> "Sizes":
        """Return all sizes times a factor, rounded, at least a pixel."""

        def scale(side: int) -> int:
            return max(round(side * factor), 1)

        return Sizes(
            tuple(scale(side) for side in self.short_sides),
            scale(self.long_side),
            scale(self.test_short_side),
            tuple(scale(side) for side in self.crop_short_sides),
            (scale(self.crop[0]), scale(self.crop[1])),
        )


@dataclass(frozen=True)
class Window:
    """Which part of a stored image is seen, and as what.

    Attributes:
        left, top, right, bottom: in stored pixels.
        height, width: of the image that it becomes.
        mirrored: whether left and right are exchanged in it.
    """

    left: float
    top: float
    right: float
    bottom: float
    height: int
    width: int
    mirrored: bool = False

    @property
    def placement(self) -> Placement:
        """Where stored pixels come to lie in it."""
        x = self.width / (self.right - self.left)
        y = self.height / (self.bottom - self.top)
        if self.mirrored:
            return Placement(self.height, self.width, -x, y, self.right * x, -self.top * y)
        return Placement(self.height, self.width, x, y, -self.left * x, -self.top * y)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Return it of an image, uint8 (H, W, 3), bilinear."""
        box = (self.left, self.top, self.right, self.bottom)
        size = (self.width, self.height)
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box)
        if self.mirrored:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(resized)


def resized(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Return (height, width) after a resize that keeps the ratio and both limits."""
    scale = min(short_side / min(size), long_side / max(size))
    height, width = (max(int(side * scale + 0.5), 1) for side in size)
    return height, width


def draw_window(size: tuple[int, int], sizes: Sizes, rng: torch.Generator) -> Window:
    """Draw what is seen in training of an image of (height, width) pixels."""
    mirrored = bool(torch.rand((), generator=rng) < MIRRORED)
    part, before = (0, 0, *size), size
    if torch.rand((), generator=rng) < CROPPED:
        before = resized(size, _one_of(sizes.crop_short_sides, rng), sizes.long_side)
        height, width = (
            _between(min(side, sizes.crop[0]), min(side, sizes.crop[1]), rng) for side in before
        )
        top, left = _between(0, before[0] - height, rng), _between(0, before[1] - width, rng)
        part = (top, left, top + height, left + width)
    cropped = (part[2] - part[0], part[3] - part[1])
    height, width = resized(cropped, _one_of(sizes.short_sides, rng), sizes.long_side)
    y, x = size[0] / before[0], size[1] / before[1]
    return Window(part[1] * x, part[0] * y, part[3] * x, part[2] * y, height, width, mirrored)


def _one_of(values: Sequence[int], rng: torch.Generator) -> int:
    return values[_between(0, len(values) - 1, rng)]


def _between(low: int, high: int, rng: torch.Generator) -> int:
    """Draw a whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def training_sample(image: ObjectImage, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
    """Return an image as it is trained on.

    Args:
        image: as it is stored.
        sizes: of what it becomes.
        rng: of every draw.

    Returns:
        `image` uint8 (3, H, W); `boxes` float32 (N, 4), x0 y0 x1 y1 in its pixels; `classes` int64
        (N,); `masks` of bits, uint8 (N, H, ceil(W / 8)). N may be 0; a mask may be empty where an
        outline leaves out what its box holds.

    Raises:
        UserError: the image cannot be read, or has another size than its set states.
    """
    window = draw_window((image.height, image.width), sizes, rng)
    return window_sample(image, window)


def window_sample(image: ObjectImage, window: Window) -> dict[str, Tensor]:
    """Return what a window shows of an image; returns and errors of :func:`training_sample`."""
    placement = window.placement
    boxes = placement.boxes(image.boxes)
    left = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= SMALLEST_SIDE
    kept = np.flatnonzero(image.trainable & left)
    outlines = [image.outlines[number] for number in kept]
    masks = packed_masks(outlines, (image.height, image.width), placement)
    return {
        "image": _planes(window.pixels(image.read())),
        "boxes": torch.from_numpy(boxes[kept].astype(np.float32)),
        "classes": torch.from_numpy(image.classes[kept]),
        "masks": torch.from_numpy(masks),
    }


def packed_masks(
    outlines: Sequence[Outline], stored: tuple[int, int], placement: Placement
) -> np.ndarray:
    """Return the masks of objects as bits, the leftmost pixel highest: uint8 (N, H, ceil(W / 8)).

    Arguments as of :func:`timewalk.data.object_masks.outlines_to_masks`.
    """
    packed = np.zeros((len(outlines), placement.height, -(-placement.width // 8)), np.uint8)
    for place, outline in zip(packed, outlines, strict=True):
        place[:] = np.packbits(outlines_to_masks([outline], stored, placement)[0], axis=-1)
    return packed


def unpacked_masks(packed: Tensor, width: int) -> Tensor:
    """Return masks, uint8 (N, H, W) of 0 and 1, from their bits and W, on their device."""
    shifts = 7 - torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[..., None] >> shifts).bitwise_and_(1)
    return bits.flatten(-2)[..., :width]


def whole_image(image: ObjectImage, sizes: Sizes) -> Tensor:
    """Return the whole image at the size of the test, uint8 (3, H, W); errors as in training."""
    size = resized((image.height, image.width), sizes.test_short_side, sizes.long_side)
    whole = Window(0, 0, image.width, image.height, *size)
    return _planes(whole.pixels(image.read()))


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def collate_images(images: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor]:
    """Pack images of different sizes, zeros to their right and below.

    Args:
        images: uint8 (3, H, W) each.
        multiple: what both sides of the batch are whole multiples of.

    Returns:
        Images (B, 3, H, W), and int64 (B, 2) height and width of each.
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-int(side) // multiple) * multiple for side in sizes.amax(dim=0))
    packed = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(packed, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return packed, sizes


def collate(samples: Sequence[dict[str, Tensor]], multiple: int) -> dict[str, Tensor]:
    """Pack what :func:`training_sample` returned.

    Args:
        samples: B of them.
        multiple: what both sides of the batch are whole multiples of.

    Returns:
        `images` uint8 (B, 3, H, W) and `sizes` int64 (B, 2), as of :func:`collate_images`; `counts`
        int64 (B,) objects of each; `boxes` (sum N, 4), `classes` (sum N,) and `masks` of bits
        (sum N, H, ceil(W / 8)) of all images in order.
    """
    images, sizes = collate_images([sample["image"] for sample in samples], multiple)
    counts = torch.tensor([len(sample["classes"]) for sample in samples])
    height, width = images.shape[2:]
    masks = torch.zeros(int(counts.sum()), height, -(-width // 8), dtype=torch.uint8)
    for place, sample in zip(masks.split(counts.tolist()), samples, strict=True):
        place[:, : sample["masks"].shape[1], : sample["masks"].shape[2]] = sample["masks"]
    return {
        "images": images,
        "sizes": sizes,
        "counts": counts,
        "boxes": torch.cat([sample["boxes"] for sample in samples]),
        "classes": torch.cat([sample["classes"] for sample in samples]),
        "masks": masks,
    }
