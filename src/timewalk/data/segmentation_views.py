"""What semantic segmentation is trained on: images and their classes, scaled, cropped, distorted.

Source: iBOT's fine-tuning on ADE20K, with mmsegmentation's order and chances: scale, crop, flip,
photometric distortion, padding. Hue and saturation change in floats, where mmsegmentation goes
through OpenCV's bytes, whose hue has steps of two degrees.

Shapes: H and W rows and columns of an image, S side of a crop, N images of a batch. Images are
RGB; classes are uint8 with 255 for void.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from timewalk.data.sequences import VOID

SCALE = (2048, 512)
"""pixels of the longer and of the shorter side that an image is fitted into"""
TRIES = 10
"""crops drawn anew while one class covers too much"""
HUE_CIRCLE = 180
"""OpenCV's steps of hue around the circle"""

Size = tuple[int, int]
Range = tuple[float, float]


@dataclass(frozen=True)
class Distortion:
    """Ranges of the photometric distortion; each part has the chance ``chance``.

    Attributes:
        brightness: most levels (of 255) that are added or taken.
        contrast: factors of all levels.
        saturation: factors of the saturation.
        hue: steps of two degrees; -hue up to hue - 1 are drawn, as mmsegmentation does.
        chance: of each of the four.
    """

    brightness: float = 32.0
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: int = 18
    chance: float = 0.5


@dataclass(frozen=True)
class SegmentationViews:
    """The training pipeline of one image.

    Attributes:
        crop: S in pixels.
        scale: longer and shorter side that an image is fitted into at ratio 1, pixels.
        ratios: smallest and largest factor of ``scale``.
        cat_max_ratio: share of a crop's labelled pixels above which one class is too much, and the
            crop is drawn again, up to :data:`TRIES` times.
        flip: chance of a horizontal flip.
        distortion: of the colours; None: they stay.
    """

    crop: int = 512
    scale: Size = SCALE
    ratios: Range = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distortion: Distortion | None = Distortion()

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw one crop.

        Args:
            image: uint8 (H, W, 3).
            label: classes, uint8 (H, W).
            rng: source of all draws.

        Returns:
            `image` uint8 (3, S, S); `label` uint8 (S, S), 255 beside the image; `valid` int64 (2,),
            rows and columns that the image fills from the top left corner, for :func:`normalised`.
        """
        if image.shape[:2] != label.shape:
            raise ValueError(f"image {image.shape[:2]} and label {label.shape} differ in size")
        ratio = _uniform(self.ratios, rng)
        size = kept_size(label.shape, (int(self.scale[0] * ratio), int(self.scale[1] * ratio)))
        (top, left), labels = self._crop(label, size, rng)
        rows, columns = labels.shape
        # Resizing it all costs less than what a cut-out that falls between pixels would.
        pixels = _resized(_planes(image), size)[:, top : top + rows, left : left + columns]
        if flipped := _chance(self.flip, rng):
            labels = labels[:, ::-1]
        if self.distortion is not None:
            pixels = distorted(pixels, self.distortion, rng)
        padded = torch.zeros((3, self.crop, self.crop), dtype=torch.uint8)
        padded[:, :rows, :columns] = pixels.flip(2) if flipped else pixels
        classes = np.full((self.crop, self.crop), VOID, np.uint8)
        classes[:rows, :columns] = labels
        return {
            "image": padded,
            "label": torch.from_numpy(classes),
            "valid": torch.tensor([rows, columns]),
        }

    def _crop(
        self, label: np.ndarray, size: Size, rng: torch.Generator
    ) -> tuple[tuple[int, int], np.ndarray]:
        """Return a crop's corner in the resized image, and its classes."""
        margins = [max(side - self.crop, 0) for side in size]
        rows, columns = (
            _nearest(side, length) for side, length in zip(size, label.shape, strict=True)
        )
        for attempt in range(TRIES + 1):
            top, left = (_integer(0, margin, rng) for margin in margins)
            cut = label[rows[top : top + self.crop]][:, columns[left : left + self.crop]]
            if not any(margins) or attempt == TRIES or self._is_mixed(cut):
                break
        return (top, left), cut

    def _is_mixed(self, cut: np.ndarray) -> bool:
        """Return whether a crop has labelled pixels, and no class covers too many of them."""
        if self.cat_max_ratio >= 1:
            return True
        counts = np.bincount(cut.reshape(-1), minlength=VOID + 1)[:VOID]
        return bool(counts.max() < self.cat_max_ratio * counts.sum())


def kept_size(size: Size, scale: Size = SCALE, least: int | None = None) -> Size:
    """Return (height, width) of an image that is fitted into a scale, its aspect kept.

    Args:
        size: height and width of the image.
        scale: most pixels of the longer and of the shorter side, in either order.
        least: pixels of the shorter side at least; with it the longer side has no bound.
    """
    longer, shorter = max(scale), min(scale)
    factor = min(longer / max(size), shorter / min(size))
    if least is not None:
        factor = max(shorter, least) / min(size)
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def resize_keep(image: np.ndarray, scale: Size = SCALE, least: int | None = None) -> Tensor:
    """Return an image fitted into a scale, bilinear, uint8 (3, h, w); arguments of
    :func:`kept_size`, the image uint8 (H, W, 3)."""
    height, width = image.shape[:2]
    return _resized(_planes(image), kept_size((height, width), scale, least))


def normalised(images: Tensor, valid: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return a batch in the network's units, 0 beside the images.

    Args:
        images: uint8 (N, 3, S, S).
        valid: int (N, 2), rows and columns that each image fills.
        mean: (3,) on 0..1.
        std: likewise.
    """
    scaled = (images / 255 - mean[:, None, None]) / std[:, None, None]
    line = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (line < valid[:, axis, None] for axis in (0, 1))
    return scaled * (rows[:, None, :, None] & columns[:, None, None, :])


def distorted(image: Tensor, ranges: Distortion, rng: torch.Generator) -> Tensor:
    """Return an image uint8 (3, H, W) with other brightness, contrast, saturation and hue.

    Contrast comes before or after the two others, at even odds; brightness is first.
    """
    brightness = _chance(ranges.chance, rng)
    added = _uniform((-ranges.brightness, ranges.brightness), rng) if brightness else 0.0
    first = _chance(0.5, rng)
    contrast = _uniform(ranges.contrast, rng) if _chance(ranges.chance, rng) else 1.0
    saturation = _uniform(ranges.saturation, rng) if _chance(ranges.chance, rng) else 1.0
    last = max(ranges.hue - 1, -ranges.hue)
    turn = _integer(-ranges.hue, last, rng) if _chance(ranges.chance, rng) else 0
    pixels = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if added:
        _levels(pixels.add_(added))
    if first and contrast != 1:
        _levels(pixels.mul_(contrast))
    if saturation != 1 or turn:
        pixels = coloured(pixels, saturation, turn).round_()
    if not first and contrast != 1:
        _levels(pixels.mul_(contrast))
    return pixels.to(torch.uint8)


def coloured(pixels: Tensor, saturation: float, turn: float) -> Tensor:
    """Return pixels, float (3, H, W), with another saturation and hue, their HSV value kept.

    Args:
        pixels: RGB of any range from 0.
        saturation: factor, as far as the largest of a pixel's three allows.
        turn: of the hue, in steps of two degrees.
    """
    value = torch.maximum(torch.maximum(pixels[0], pixels[1]), pixels[2])
    span = value - torch.minimum(torch.minimum(pixels[0], pixels[1]), pixels[2])
    if not turn:
        factor = (value / span).clamp_(max=saturation) if saturation > 1 else saturation
        return value - (value - pixels).mul_(factor).nan_to_num_()
    wide = torch.minimum(span * saturation, value) if saturation != 1 else span
    hue = _hue(pixels, value, span).add_(6 * turn / HUE_CIRCLE)
    hue -= (hue / 6).floor_().mul_(6)  # into 0..6; `remainder` takes many times longer
    least = value - wide
    shares = [(hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()]
    return torch.stack([share.clamp_(0, 1).mul_(wide).add_(least) for share in shares])


def _hue(pixels: Tensor, value: Tensor, span: Tensor) -> Tensor:
    """Return the hue (H, W) in sixths of the circle from red, -1 to 5."""
    red, green, blue = pixels
    scale = 1 / span.clamp(min=1e-6)
    hue = torch.where(
        green == value, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4)
    )
    return torch.where(red == value, (green - blue).mul_(scale), hue)


def _levels(pixels: Tensor) -> Tensor:
    """Cut pixels to whole levels in place, as a conversion to bytes does."""
    return pixels.clamp_(0, 255).floor_()


def _planes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def _resized(planes: Tensor, size: Size) -> Tensor:
    """Resize uint8 (3, H, W) without antialias, which is OpenCV's bilinear but for one level."""
    if planes.shape[1:] == size:
        return planes
    return F.interpolate(planes[None], size, mode="bilinear", antialias=False)[0]


def _nearest(side: int, length: int) -> np.ndarray:
    """Return which of ``length`` pixels each of ``side`` is nearest to, by their centres."""
    return (2 * np.arange(side) + 1) * length // (2 * side)


def _uniform(bounds: Range, rng: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def _integer(low: int, high: int, rng: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def _chance(chance: float, rng: torch.Generator) -> bool:
    return float(torch.rand((), generator=rng, dtype=torch.float64)) < chance
