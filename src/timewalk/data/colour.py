"""The colour chain of :mod:`timewalk.data.views` for a whole batch of images on any device.

The same draws give the picture that :meth:`ColourChain.apply` makes of each image with PIL, but for
floats rounded otherwise. Every step ends in whole levels, as PIL's 8-bit images do. No loop runs
over images and nothing waits for the device: each step is taken by all images and kept by those
that drew it.

Shapes: N images, H and W rows and columns. Pixels within are float32 holding whole levels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from timewalk.data.views import ColourChain

_BRIGHTNESS, _CONTRAST, _HUE = 0, 1, 3
_PASSES = 3


def apply_chain(images: Tensor, draws: Tensor, chain: ColourChain) -> Tensor:
    """Send each image through the chain by its row of ``draws``.

    Args:
        images: uint8 (N, 3, H, W), RGB.
        draws: (N, chain.draws) in 0..1, on the images' device, as ``ColourChain.apply`` reads them.
        chain: the chances and ranges.

    Returns:
        uint8 (N, 3, H, W).
    """
    pixels = images.float()
    if chain.jitter_prob > 0:
        pixels = _where(draws[:, 0] < chain.jitter_prob, _jittered(pixels, draws, chain), pixels)
    if chain.grey_prob > 0:
        pixels = _where(draws[:, 1] < chain.grey_prob, grey(pixels).expand_as(pixels), pixels)
    if chain.blur_prob > 0:
        low, high = chain.blur_radius
        blurred = gaussian_blur(pixels, low + (high - low) * draws[:, 7], high)
        pixels = _where(draws[:, 2] < chain.blur_prob, blurred, pixels)
    if chain.solarise_prob > 0:
        pixels = _where(draws[:, 12] < chain.solarise_prob, solarise(pixels), pixels)
    return pixels.to(torch.uint8)


def grey(pixels: Tensor) -> Tensor:
    """Return the luminance (N, 1, H, W), in PIL's 16-bit fixed point."""
    red, green, blue = pixels.to(torch.int32).split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).float()


def blend(base: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """Return ``base`` plus ``factor`` (N,) times the way to ``pixels``, cut and truncated."""
    return (base + _each(factor) * (pixels - base)).clamp(0, 255).floor()


def mean_grey(luminance: Tensor) -> Tensor:
    """Return the rounded mean (N, 1, 1, 1) of a luminance, the base of PIL's contrast."""
    return (luminance.double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor().float()


def hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Return the pixels with their hue turned by ``shift`` (N,) of the circle, in 8-bit HSV."""
    red, green, _ = pixels.split(1, dim=1)
    value = pixels.amax(dim=1, keepdim=True)
    span = value - pixels.amin(dim=1, keepdim=True)
    lack_red, lack_green, lack_blue = ((value - pixels) / span.clamp(min=1)).split(1, dim=1)
    turn = torch.where(green == value, 2 + lack_red - lack_blue, 4 + lack_green - lack_red)
    turn = torch.where(red == value, lack_blue - lack_green, turn)
    level = torch.where(span > 0, (torch.remainder(turn / 6 + 1, 1) * 255).floor(), 0.0)
    saturation = (span / value.clamp(min=1) * 255).floor()
    sixths = torch.remainder(level + _each((shift * 255).trunc()), 256) * (6 / 255)
    share = torch.cat(
        [(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()], dim=1
    )
    lack = (1 - share.clamp(0, 1)) * (saturation * value / 255)
    return (value + 0.5 - lack).floor()


def gaussian_blur(pixels: Tensor, radius: Tensor, largest: float) -> Tensor:
    """Return the pixels blurred as PIL does: three box blurs along rows, then three along columns.

    Args:
        pixels: (N, 3, H, W).
        radius: (N,) standard deviation of each image's Gaussian, pixels.
        largest: upper bound of ``radius``, which fixes the kernel's width.
    """
    reach = int(_box_radius(torch.tensor(largest, dtype=torch.float64))) + 1
    half = _box_radius(radius.double())
    whole = half.floor()
    weight = 1 / (2 * half + 1)
    rim = (1 - (2 * whole + 1) * weight) / 2
    taps = []
    for distance in range(reach + 1):
        inside = torch.where(whole >= distance, weight, 0.0)
        taps.append(_each(torch.where(whole + 1 == distance, rim, inside)))
    for axis in (3, 2):
        pad = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        size = pixels.shape[axis]
        for _ in range(_PASSES):
            padded = F.pad(pixels, pad, mode="replicate")
            total = taps[0] * pixels
            for distance in range(1, reach + 1):
                before = padded.narrow(axis, reach - distance, size)
                total = total + taps[distance] * (
                    before + padded.narrow(axis, reach + distance, size)
                )
            pixels = (total + 0.5).floor()
    return pixels


def solarise(pixels: Tensor) -> Tensor:
    """Return the pixels with the levels from 128 on turned upside down."""
    return torch.where(pixels < 128, pixels, 255 - pixels)


def _jittered(pixels: Tensor, draws: Tensor, chain: ColourChain) -> Tensor:
    ranges = (chain.brightness, chain.contrast, chain.saturation)
    factors = [1 - r + 2 * r * draws[:, 3 + n] for n, r in enumerate(ranges)]
    factor_N3, shift = torch.stack(factors, dim=1), chain.hue * (2 * draws[:, 6] - 1)
    order = draws[:, 8:12].argsort(dim=1, stable=True)
    for place in range(4):
        operation = order[:, place]
        # Three of the four are one blend, each from a base of its own.
        luminance = grey(pixels)
        base = _where(operation == _CONTRAST, mean_grey(luminance), luminance)
        base = _where(operation == _BRIGHTNESS, torch.zeros_like(base), base)
        factor = factor_N3.gather(1, operation.clamp(max=2)[:, None])[:, 0]
        blended = blend(base, pixels, factor)
        pixels = _where(operation == _HUE, hue(pixels, shift), blended)
    return pixels


def _box_radius(radius: Tensor) -> Tensor:
    """Half-width of the box that, applied ``_PASSES`` times, has a Gaussian's variance."""
    variance = radius * radius / _PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) ** 2))


def _each(values: Tensor) -> Tensor:
    return values.float()[:, None, None, None]


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], yes, no)
