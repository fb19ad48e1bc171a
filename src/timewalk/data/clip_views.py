"""Augmentations of a clip that are decided once for all its frames.

TimeT's as released (:func:`clip_view`), in this order: colour jitter, grey, blur, the shorter side
to the view's size, a random resized crop, a flip. Only the blur's radius is each frame's own.
SMTC's as released (:func:`photometric_view`), in this order: both sides to the view's size, grey,
colour jitter, blur; no crop and no flip, so that the patches of two views show the same.

Both by PIL's 8-bit arithmetic, but for SMTC's resize (torch's on bytes) and blur (exact, in
floats). Every draw comes from the generator that is passed in, and as many of them whatever happens
by chance.

Shapes: F frames, V views, S side of the view in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from timewalk.data.views import (
    Pair,
    Window,
    brightness,
    contrast,
    hue,
    random_window,
    saturation,
)

Change = Callable[[Image.Image], Image.Image]

SMALLEST_TAP = 1e-5
"""weight below which a tap of the blur's kernel is left out: all of them together move no value by
a hundredth of a level"""


@dataclass(frozen=True)
class ClipAugmentation:
    """Chances and ranges of the augmentation.

    Attributes:
        jitter_prob: of the jitter.
        brightness: half-width of the factor's range around 1, which ends at 0.
        contrast: likewise.
        saturation: likewise.
        hue: half-width of the shift, in turns of the colour circle.
        last_only: of the jitter's operations, only the last in order takes effect, as published.
        grey_prob: of turning grey.
        blur_prob: of the blur.
        blur_radius: range of the Gaussian's standard deviation in pixels.
        scale: share of the area that the crop covers.
        flip_prob: of mirroring.
    """

    jitter_prob: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    last_only: bool = False
    grey_prob: float = 0.2
    blur_prob: float = 0.5
    blur_radius: Pair = (0.1, 2.0)
    scale: Pair = (0.4, 1.0)
    flip_prob: float = 0.5


PHOTOMETRIC = ClipAugmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
"""of :func:`photometric_view`, which neither crops nor flips"""


def clip_view(
    clip: Tensor, size: int, augmentation: ClipAugmentation, rng: torch.Generator
) -> Tensor:
    """Return the augmented view of a clip.

    Args:
        clip: uint8 (F, 3, H, W).
        size: S.
        augmentation: chances and ranges.
        rng: source of all draws.

    Returns:
        uint8 (F, 3, S, S).
    """
    changes = _jitter(augmentation, rng)
    grey, blur, flip = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
    low, high = augmentation.blur_radius
    shares = torch.rand(len(clip), generator=rng, dtype=torch.float64).tolist()
    height, width = shorter_side(clip.shape[2], clip.shape[3], size)
    window = random_window(height, width, augmentation.scale, rng)
    view = np.empty((len(clip), size, size, 3), np.uint8)
    for place, (pixels, share) in enumerate(zip(_frames(clip), shares, strict=True)):
        image = Image.fromarray(pixels)
        for change in changes:
            image = change(image)
        if grey < augmentation.grey_prob:
            image = image.convert("L").convert("RGB")
        if blur < augmentation.blur_prob:
            image = image.filter(ImageFilter.GaussianBlur(low + (high - low) * share))
        image = crop(_resized(image, (width, height)), window, size)
        view[place] = np.asarray(image)
    if flip < augmentation.flip_prob:
        view = view[:, :, ::-1]
    return _as_clip(view)


def photometric_view(
    clip: Tensor, size: int, rng: torch.Generator, *, count: int = 2, sigma: float | None = None
) -> Tensor:
    """Return independent views of a clip that differ in colours and sharpness only.

    The jitter's order is each view's own; in the published code a batch shares it.

    Args:
        clip: uint8 (F, 3, H, W).
        size: S; the aspect is not kept.
        rng: source of all draws.
        count: V.
        sigma: standard deviation of the blur in pixels; None: drawn for each view. The published
            code draws it once for a whole run.

    Returns:
        uint8 (V, F, 3, S, S).
    """
    # Without antialias, OpenCV's bilinear is torch's. On bytes it is three times faster than on
    # floats and at most one level away.
    resized = F.interpolate(clip, (size, size), mode="bilinear")
    images = [Image.fromarray(pixels) for pixels in _frames(resized)]
    views = torch.empty((count, *resized.shape), dtype=torch.uint8)
    for view in views:
        view.copy_(_photometric(images, rng, sigma))
    return views


def _photometric(images: list[Image.Image], rng: torch.Generator, sigma: float | None) -> Tensor:
    changes = _jitter(PHOTOMETRIC, rng)
    grey, blur, share = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
    if grey < PHOTOMETRIC.grey_prob:
        changes = [lambda image: image.convert("L").convert("RGB"), *changes]
    for change in changes:
        images = [change(image) for image in images]
    view = _as_clip(np.stack([np.asarray(image) for image in images]))
    if blur < PHOTOMETRIC.blur_prob:
        low, high = PHOTOMETRIC.blur_radius
        view = gaussian_blur(view, low + (high - low) * share if sigma is None else sigma)
    return view


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Blur square frames with SMTC's kernel: a tenth of the side wide, the border mirrored.

    As weighted sums of shifted images. At 256 x 256 this takes a third to a half of the time of
    PIL's three box blurs, and is exact, where theirs are levels away at edges: they round a small
    ``sigma`` to other shapes, and repeat the border.

    Args:
        frames: uint8 (F, 3, S, S).
        sigma: standard deviation in pixels.
    """
    taps = gaussian_kernel(frames.shape[-1], sigma)
    blurred = frames.float()
    for axis in (-2, -1):
        blurred = _along(blurred, taps, axis)
    return blurred.round_().to(torch.uint8)


def gaussian_kernel(side: int, sigma: float) -> list[float]:
    """Return the kernel's middle tap and those on one side of it, of sum 1 with the other side."""
    reach = int(0.1 * side) // 2
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    taps: list[float] = weights[weights > SMALLEST_TAP].tolist()
    return taps


def _along(frames: Tensor, taps: list[float], axis: int) -> Tensor:
    """Convolve along the rows' (-2) or the columns' axis (-1)."""
    reach, side = len(taps) - 1, frames.shape[axis]
    if not reach:
        return frames
    border = (0, 0, reach, reach) if axis == -2 else (reach, reach, 0, 0)
    padded = F.pad(frames, border, mode="reflect")
    result = padded.narrow(axis, reach, side) * taps[0]
    for distance, weight in enumerate(taps[1:], start=1):
        result.add_(padded.narrow(axis, reach - distance, side), alpha=weight)
        result.add_(padded.narrow(axis, reach + distance, side), alpha=weight)
    return result


def plain_view(clip: Tensor, size: int) -> Tensor:
    """Return the centred square of each frame at the view's size, (F, 3, S, S): for pictures."""
    height, width = shorter_side(clip.shape[2], clip.shape[3], size)
    top, left = (height - size) // 2, (width - size) // 2
    view = np.empty((len(clip), size, size, 3), np.uint8)
    for place, pixels in enumerate(_frames(clip)):
        image = _resized(Image.fromarray(pixels), (width, height))
        view[place] = np.asarray(image.crop((left, top, left + size, top + size)))
    return _as_clip(view)


def shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Return rows and columns after the shorter side has become ``size``; the other is cut to a
    whole number."""
    short = min(height, width)
    return size * height // short, size * width // short


def crop(image: Image.Image, window: Window, size: int) -> Image.Image:
    """Cut a window out and resize it to a square, bilinearly as PIL does."""
    right, bottom = window.left + window.width, window.top + window.height
    return _resized(image.crop((window.left, window.top, right, bottom)), (size, size))


def _jitter(augmentation: ClipAugmentation, rng: torch.Generator) -> list[Change]:
    """Draw the jitter: the changes in their order."""
    uniform = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
    order = torch.randperm(4, generator=rng).tolist()
    if uniform[0] >= augmentation.jitter_prob:
        return []
    widths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    ranges = [(max(0.0, 1 - width), 1 + width) for width in widths]
    ranges.append((-augmentation.hue, augmentation.hue))
    operations = (brightness, contrast, saturation, hue)
    changes = [_with(operations[number], ranges[number], uniform[1 + number]) for number in order]
    return changes[-1:] if augmentation.last_only else changes


def _with(
    operation: Callable[[Image.Image, float], Image.Image], span: Pair, share: float
) -> Change:
    factor = span[0] + (span[1] - span[0]) * share
    return lambda image: operation(image, factor)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR)


def _frames(clip: Tensor) -> np.ndarray:
    """(F, H, W, 3), a view of the clip."""
    frames: np.ndarray = clip.permute(0, 2, 3, 1).cpu().numpy()
    return frames


def _as_clip(view_FSSC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(view_FSSC.transpose(0, 3, 1, 2)))
