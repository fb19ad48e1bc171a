"""Augmentations of clips and frames, with PIL's 8-bit arithmetic, as the published code has it.

Source: the released code of DoRA and DINO, whose building blocks are the same. Every step of the
colour chain rounds to 8 bits, so views leave as uint8: a quarter of the memory and of the way to
the device, where they become the same floats.

Every draw comes from the generator that is passed in. The colour chain is PIL's to the last bit,
with tables where they are faster; the local views' bicubic is torch's port of PIL's, five times
faster and at most one level away in less than 1 % of the values.

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
_SOLARISED = np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8)


@dataclass(frozen=True)
class Window:
    """A crop in pixels: first row, first column, rows, columns."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ColourChain:
    """Colour jitter, grey, blur and solarisation of one image, in this order, each by chance.

    Attributes:
        jitter_prob: of the jitter.
        brightness: half-width of the factor's range around 1.
        contrast: likewise.
        saturation: likewise.
        hue: half-width of the shift, in turns of the colour circle.
        grey_prob: of turning grey.
        blur_prob: of the blur.
        blur_radius: range of the Gaussian's standard deviation in pixels.
        solarise_prob: of turning the levels from 128 on upside down.
    """

    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_prob: float = 0.2
    blur_prob: float = 0.5
    blur_radius: Pair = (0.1, 2.0)
    solarise_prob: float = 0.0

    @property
    def draws(self) -> int:
        """Uniform numbers that one image takes; the last one only where solarisation can occur."""
        return 13 if self.solarise_prob > 0 else 12

    def apply(self, image: Image.Image, uniform: Sequence[float]) -> Image.Image:
        """Return the changed image.

        Args:
            image: RGB.
            uniform: ``draws`` numbers in 0..1: whether jitter, grey, blur; four factors; radius;
                four keys whose order is that of the jitter's operations; whether solarise.
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
        if self.solarise_prob > 0 and uniform[12] < self.solarise_prob:
            image = _map_levels(image, _SOLARISED)
        return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Return the image times ``factor``, as PIL's enhancer does."""
    return _map_levels(image, _blend_table(0, factor))


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Return the image drawn from or towards its mean grey, as PIL's enhancer does."""
    counts = np.asarray(image.convert("L").histogram(), dtype=np.float64)
    mean = int((counts @ np.arange(256)) / counts.sum() + 0.5)
    return _map_levels(image, _blend_table(mean, factor))


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Return the image drawn from or towards its grey, as PIL's enhancer does."""
    return Image.blend(image.convert("L").convert("RGB"), image, factor)


def hue(image: Image.Image, shift: float) -> Image.Image:
    """Return the image with its hue turned by ``shift`` of the colour circle, in 8-bit HSV."""
    hue_HW, saturation_HW, value_HW = (np.asarray(band) for band in image.convert("HSV").split())
    value = value_HW.astype(np.float32)
    chroma = saturation_HW * value
    chroma *= np.float32(1 / 255)
    value += np.float32(0.5)  # rounds where the cast below truncates
    turned = np.roll(_HUE_WEIGHTS, -int(shift * 255), axis=1)
    pixels = np.empty((*hue_HW.shape, 3), np.uint8)
    for channel in range(3):
        weight = turned[channel].take(hue_HW)
        weight *= chroma
        pixels[..., channel] = np.subtract(value, weight, out=weight)
    return Image.fromarray(pixels)


def _hue_weights() -> NDArray[np.float32]:
    """(3, 256): how much of the chroma red, green and blue lack at each 8-bit hue."""
    sector, part = np.divmod(_LEVELS * np.float32(6 / 255), 1)
    none, whole = np.zeros(256), np.ones(256)
    rising, falling = 1 - part, part
    red = (none, falling, whole, whole, rising, none)
    green = (rising, none, none, falling, whole, whole)
    blue = (whole, whole, rising, none, none, falling)
    number = sector.astype(int) % 6
    return np.stack([np.choose(number, x) for x in (red, green, blue)]).astype(np.float32)


_HUE_WEIGHTS = _hue_weights()
_ENHANCEMENTS = (brightness, contrast, saturation, hue)


def _map_levels(image: Image.Image, table: NDArray[np.uint8]) -> Image.Image:
    # Image.point first rounds its 768 entries in Python, which takes longer than the mapping.
    return Image.fromarray(table.take(np.asarray(image)))


def _blend_table(base: int, factor: float) -> NDArray[np.uint8]:
    """PIL's blend of a constant with each level: float32, cut to 0..255, truncated."""
    levels = np.float32(base) + np.float32(factor) * (_LEVELS - np.float32(base))
    return np.clip(levels, 0, 255).astype(np.uint8)


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


def to_bytes(frames: Tensor) -> Tensor:
    """Return float frames (F, 3, H, W) on 0..255 as uint8, truncated, channels last in memory."""
    return frames.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def resize_window(frames: Tensor, window: Window, size: int) -> Tensor:
    """Cut a window out of uint8 frames and resize it to a square, antialiased bicubic as PIL's.

    Columns first, then rows, rounded to 8 bits between: Pillow 13 chooses the order by the shape,
    which can move values at hard edges by a few levels.

    Args:
        frames: (F, 3, H, W), channels last in memory.
        window: of all frames.
        size: side of the result.
    """
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    return F.interpolate(
        frames[..., rows, columns], size=(size, size), mode="bicubic", antialias=True
    )


def global_view(
    frames: Tensor, scale: Pair, size: int, chain: ColourChain, rng: torch.Generator
) -> Tensor:
    """Return DoRA's global view of a clip, (F, 3, size, size): :func:`global_crop`, coloured."""
    return coloured(*global_crop(frames, scale, size, chain, rng), chain)


def global_crop(
    frames: Tensor, scale: Pair, size: int, chain: ColourChain, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return DoRA's global view before its colours: one window and flip for all frames.

    Args:
        frames: float (F, 3, H, W) on 0..255.
        scale: share of the area that the window covers.
        size: side of the view.
        chain: colours, drawn anew for each frame.
        rng: source of all draws.

    Returns:
        uint8 (F, 3, size, size), and the colours' draws (F, chain.draws).
    """
    view = crop_resize(frames, random_window(frames.shape[-2], frames.shape[-1], scale, rng), size)
    if float(torch.rand((), generator=rng)) < 0.5:
        view = view.flip(-1)
    draws = colour_draws(len(view), chain, rng)
    return to_bytes(view), draws


def local_views(
    frames: Tensor, count: int, scale: Pair, size: int, chain: ColourChain, rng: torch.Generator
) -> Tensor:
    """Return DoRA's local views, (L, F, 3, size, size): :func:`local_crops`, coloured."""
    views = coloured(*local_crops(frames, count, scale, size, chain, rng), chain)
    return views.unflatten(0, (count, len(frames)))


def local_crops(
    frames: Tensor, count: int, scale: Pair, size: int, chain: ColourChain, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return DoRA's local views before their colours: a window of its own for every view and frame,
    no flip.

    Returns:
        uint8 (L F, 3, size, size), view by view, and the colours' draws (L F, chain.draws).
    """
    height, width = frames.shape[-2:]
    draws = colour_draws(count * len(frames), chain, rng)
    images = to_bytes(frames).split(1) * count
    views = [
        resize_window(image, random_window(height, width, scale, rng), size) for image in images
    ]
    return torch.cat(views), draws


def image_crops(frame: Tensor, count: int, scale: Pair, size: int, rng: torch.Generator) -> Tensor:
    """Return DINO's crops of an image before their colours, each its own window and flip.

    Args:
        frame: uint8 (1, 3, H, W), channels last in memory.
        count: C, may be 0.
        scale: share of the area that a window covers.
        size: side of a crop.
        rng: source of all draws.

    Returns:
        uint8 (C, 3, size, size), channels last in memory.
    """
    crops = torch.empty(
        (count, 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last
    )
    for crop in crops:
        window = random_window(frame.shape[-2], frame.shape[-1], scale, rng)
        view = resize_window(frame, window, size)[0]
        flip = float(torch.rand((), generator=rng)) < 0.5
        crop.copy_(view.flip(-1) if flip else view)
    return crops


def colour_draws(images: int, chain: ColourChain, rng: torch.Generator) -> Tensor:
    """Return the numbers that the colours of some images take, float64 (images, chain.draws)."""
    return torch.rand(images, chain.draws, generator=rng, dtype=torch.float64)


def coloured(frames: Tensor, draws: Tensor, chain: ColourChain) -> Tensor:
    """Send each of some uint8 frames (N, 3, H, W) through the chain, by its row of ``draws``."""
    pixels = frames.permute(0, 2, 3, 1).numpy()
    changed = np.empty(pixels.shape, np.uint8)
    for before, after, uniform in zip(pixels, changed, draws.tolist(), strict=True):
        after[:] = np.asarray(chain.apply(Image.fromarray(before), uniform))
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def normalise(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 frames (..., 3, H, W) as float32 (x / 255 - mean) / std, on their device."""
    shape = (3, 1, 1)
    means = torch.tensor(mean, device=frames.device).view(shape)
    stds = torch.tensor(std, device=frames.device).view(shape)
    return (frames.float() / 255 - means) / stds
