"""Augmentations of clips and frames, with PIL's 8-bit arithmetic, as the published code has it.

Sheets: DoRA section 2; DINO "Multi-crop augmentation" shares the building blocks. Every step of the
colour chain rounds to 8 bits, so views leave as uint8: a quarter of the memory and of the way to
the device, where they become the same floats.

Every draw comes from the generator that is passed in. Enhancements that map each value alone
(brightness, contrast, hue shift) are look-up tables here, equal to PIL's to the last bit.

Shapes: F frames, L local views, H and W rows and columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

Pixels = NDArray[np.uint8]
Pair = tuple[float, float]

RATIO: Pair = (3 / 4, 4 / 3)
ATTEMPTS = 10
_LEVELS = np.arange(256, dtype=np.float32)


@dataclass(frozen=True)
class Window:
    """A crop in pixels: first row, first column, rows, columns."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ColourChain:
    """Colour jitter, grey and blur of one image, each by chance.

    Attributes:
        jitter_prob: of the jitter.
        brightness: half-width of the factor's range around 1.
        contrast: likewise.
        saturation: likewise.
        hue: half-width of the shift, in turns of the colour circle.
        grey_prob: of turning grey.
        blur_prob: of the blur.
        blur_radius: range of the Gaussian's standard deviation in pixels.
    """

    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_prob: float = 0.2
    blur_prob: float = 0.5
    blur_radius: Pair = (0.1, 2.0)

    draws: int = 12
    """uniform numbers that one image takes"""

    def apply(self, image: Image.Image, uniform: Sequence[float]) -> Image.Image:
        """Return the changed image.

        Args:
            image: RGB.
            uniform: ``draws`` numbers in 0..1: whether jitter, grey, blur; four factors; radius;
                four keys whose order is that of the jitter's operations.
        """
        if uniform[0] < self.jitter_prob:
            factors = (
                _between(1 - self.brightness, 1 + self.brightness, uniform[3]),
                _between(1 - self.contrast, 1 + self.contrast, uniform[4]),
                _between(1 - self.saturation, 1 + self.saturation, uniform[5]),
                _between(-self.hue, self.hue, uniform[6]),
            )
            for number in sorted(range(4), key=lambda n: uniform[8 + n]):
                image = _ENHANCEMENTS[number](image, factors[number])
        if uniform[1] < self.grey_prob:
            image = image.convert("L").convert("RGB")
        if uniform[2] < self.blur_prob:
            radius = _between(*self.blur_radius, uniform[7])
            image = image.filter(ImageFilter.GaussianBlur(radius))
        return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Return the image times ``factor``, as PIL's enhancer does."""
    return image.point(_blend_table(0, factor) * 3)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Return the image drawn from or towards its mean grey, as PIL's enhancer does."""
    counts = np.asarray(image.convert("L").histogram(), dtype=np.float64)
    mean = int((counts @ np.arange(256)) / counts.sum() + 0.5)
    return image.point(_blend_table(mean, factor) * 3)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Return the image drawn from or towards its grey, as PIL's enhancer does."""
    return Image.blend(image.convert("L").convert("RGB"), image, factor)


def hue(image: Image.Image, shift: float) -> Image.Image:
    """Return the image with its hue turned by ``shift`` of the colour circle, in 8-bit HSV."""
    turn = int(shift * 255)
    table = [(level + turn) % 256 for level in range(256)]
    same = list(range(256))
    return image.convert("HSV").point(table + same + same).convert("RGB")


_ENHANCEMENTS = (brightness, contrast, saturation, hue)


def _blend_table(base: int, factor: float) -> list[int]:
    """PIL's blend of a constant with each level: float32, cut to 0..255, truncated."""
    levels = np.float32(base) + np.float32(factor) * (_LEVELS - np.float32(base))
    return np.clip(levels, 0, 255).astype(np.uint8).tolist()


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def random_window(
    height: int, width: int, scale: Pair, rng: torch.Generator, ratio: Pair = RATIO
) -> Window:
    """Draw the window of a random resized crop, as torchvision does.

    Ten tries at an area (a share of the image, uniform in ``scale``) and an aspect ratio
    (log-uniform in ``ratio``); if none fits, the largest centred window of a permitted ratio.
    """
    draws: list[list[float]] = torch.rand(ATTEMPTS, 4, generator=rng, dtype=torch.float64).tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = height * width * _between(*scale, area_draw)
        aspect = math.exp(_between(low, high, ratio_draw))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1))
            return Window(top, left, h, w)
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Window((height - h) // 2, (width - w) // 2, h, w)


def crop_resize(clip: Tensor, window: Window, size: int) -> Tensor:
    """Cut one window out of all frames and resize it to a square, bilinear without antialias.

    Args:
        clip: (F, 3, H, W), uint8 on 0..255 or float.
        window: of all frames.
        size: side of the result.

    Returns:
        float32 (F, 3, size, size) on the clip's scale.
    """
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    cut = clip[..., rows, columns].float()
    return F.interpolate(cut, size=(size, size), mode="bilinear", align_corners=False)


def to_bytes(frames: Tensor) -> Pixels:
    """Return float frames (F, 3, H, W) on 0..255 as bytes (F, H, W, 3), truncated."""
    return frames.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def resize_window(image: Image.Image, window: Window, size: int) -> Image.Image:
    """Cut a window out of an image and resize it to a square, PIL's antialiased bicubic."""
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def global_view(
    frames: Tensor, scale: Pair, size: int, chain: ColourChain, rng: torch.Generator
) -> Tensor:
    """Return DoRA's global view of a clip: one window and flip for all frames, colours for each.

    Args:
        frames: float (F, 3, H, W) on 0..255.
        scale: share of the area that the window covers.
        size: side of the view.
        chain: colours, drawn anew for each frame.
        rng: source of all draws.

    Returns:
        uint8 (F, 3, size, size).
    """
    view = crop_resize(frames, random_window(frames.shape[-2], frames.shape[-1], scale, rng), size)
    if float(torch.rand((), generator=rng)) < 0.5:
        view = view.flip(-1)
    draws = _draws(len(view), chain, rng)
    images = (Image.fromarray(pixels) for pixels in to_bytes(view))
    return _stack([chain.apply(image, u) for image, u in zip(images, draws, strict=True)])


def local_views(
    frames: Tensor, count: int, scale: Pair, size: int, chain: ColourChain, rng: torch.Generator
) -> Tensor:
    """Return DoRA's local views: a window of its own for every view and frame, no flip.

    Returns:
        uint8 (L, F, 3, size, size).
    """
    height, width = frames.shape[-2:]
    images = [Image.fromarray(pixels) for pixels in to_bytes(frames)]
    draws = _draws(count * len(images), chain, rng)
    views = []
    for number, uniform in enumerate(draws):
        window = random_window(height, width, scale, rng)
        view = resize_window(images[number % len(images)], window, size)
        views.append(chain.apply(view, uniform))
    return _stack(views).unflatten(0, (count, len(images)))


def _draws(images: int, chain: ColourChain, rng: torch.Generator) -> list[list[float]]:
    return torch.rand(images, chain.draws, generator=rng, dtype=torch.float64).tolist()


def _stack(images: Sequence[Image.Image]) -> Tensor:
    """Images to uint8 (., 3, H, W)."""
    pixels = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def normalise(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 frames (..., 3, H, W) as float32 (x / 255 - mean) / std, on their device."""
    shape = (3, 1, 1)
    means = torch.tensor(mean, device=frames.device).view(shape)
    stds = torch.tensor(std, device=frames.device).view(shape)
    return (frames.float() / 255 - means) / stds
