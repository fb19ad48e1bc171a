"""Views of the clips that TCC and its kin learn from: one draw for all frames of a clip.

Source: TCC's released code. The loader's worker crops, resizes and mirrors (:func:`phase_view`),
and what leaves it is uint8; the device changes colours (:func:`coloured`) in floats: brightness,
contrast, hue, saturation, in this order, then everything is cut to 0..1.

Shapes: B clips, F frames, S side of the view in pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from timewalk.data.views import Pair, Window, crop_resize

SMALLEST_CROP = 0.8
"""of the shorter side"""


@dataclass(frozen=True)
class PhaseAugmentation:
    """Chances and ranges of the augmentation.

    Attributes:
        flip: mirror half of the clips.
        crop: cut out a random square.
        brightness: largest shift, on 0..1; 0: none.
        contrast: range of the factor; None: none.
        hue: largest shift, in turns of the colour circle; 0: none.
        saturation: range of the factor; None: none.
    """

    flip: bool = True
    crop: bool = False
    brightness: float = 32 / 255
    contrast: Pair | None = (0.5, 1.5)
    hue: float = 0.0
    saturation: Pair | None = None


def phase_view(
    frames: Tensor, size: int, augmentation: PhaseAugmentation, rng: torch.Generator
) -> Tensor:
    """Crop, resize and mirror all frames of a clip alike.

    Args:
        frames: uint8 (F, 3, H, W).
        size: S.
        augmentation: whether to crop and to mirror.
        rng: source of the draws, as many of them whatever is asked for.

    Returns:
        uint8 (F, 3, S, S), rounded.
    """
    share, top, left, flip = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
    window = Window(0, 0, frames.shape[-2], frames.shape[-1])
    if augmentation.crop:
        window = square(frames.shape[-2], frames.shape[-1], share, top, left)
    view = _resized(frames, window, size)
    return view.flip(-1) if augmentation.flip and flip < 0.5 else view


def still_view(frames: Tensor, size: int, crop: bool) -> Tensor:
    """Return frames without augmentation: whole, or with ``crop`` their largest central square,
    resized to uint8 (F, 3, S, S)."""
    return _resized(frames, still_window(frames.shape[-2], frames.shape[-1], crop), size)


def still_window(height: int, width: int, crop: bool) -> Window:
    """Return what is seen of a frame without augmentation: all, or with ``crop`` its largest
    central square."""
    if not crop:
        return Window(0, 0, height, width)
    side = min(height, width)
    return Window((height - side) // 2, (width - side) // 2, side, side)


def square(height: int, width: int, share: float, top: float, left: float) -> Window:
    """Return a square of 0.8 to 1 of the shorter side, from three numbers in 0..1."""
    side = int((SMALLEST_CROP + (1 - SMALLEST_CROP) * share) * min(height, width))
    return Window(int(top * (height - side + 1)), int(left * (width - side + 1)), side, side)


def _resized(frames: Tensor, window: Window, size: int) -> Tensor:
    return crop_resize(frames, window, size).round().clamp(0, 255).to(torch.uint8)


def draw_colours(augmentation: PhaseAugmentation, rng: torch.Generator) -> Tensor:
    """Return a clip's shift of brightness, factor of contrast, shift of hue, and factor of
    saturation: float32 (4,), those that are not asked for without effect."""
    uniform = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
    ranges = (
        (-augmentation.brightness, augmentation.brightness),
        augmentation.contrast or (1.0, 1.0),
        (-augmentation.hue, augmentation.hue),
        augmentation.saturation or (1.0, 1.0),
    )
    pairs = zip(ranges, uniform, strict=True)
    return torch.tensor([low + (high - low) * share for (low, high), share in pairs])


def coloured(images: Tensor, colours_B4: Tensor, augmentation: PhaseAugmentation) -> Tensor:
    """Change the colours of clips.

    Args:
        images: uint8 (B, F, 3, S, S).
        colours_B4: of each clip (:func:`draw_colours`).
        augmentation: which changes there are.

    Returns:
        float32 (B, F, 3, S, S) on 0..1.
    """
    shift, contrast, turn, saturation = colours_B4.float()[..., None, None, None, None].unbind(1)
    x = images.float() / 255
    if augmentation.brightness > 0:
        x = x + shift
    if augmentation.contrast is not None:
        mean = x.mean(dim=(-2, -1), keepdim=True)
        x = (x - mean) * contrast + mean
    if augmentation.hue > 0:
        hue, low, high = _hue_and_range(x)
        x = _from_hue(hue + 6 * turn, high - low, high)
    if augmentation.saturation is not None:
        hue, low, high = _hue_and_range(x)
        bright = high > 0
        share = ((high - low) / high.where(bright, torch.ones_like(high))).where(bright, 0 * high)
        x = _from_hue(hue, (share * saturation).clamp(0, 1) * high, high)
    return x.clamp(0, 1)


def _hue_and_range(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue on 0..6 (0 of greys), smallest and largest channel, each (B, F, 1, S, S)."""
    red, green, blue = x.split(1, dim=-3)
    low, high = x.amin(dim=-3, keepdim=True), x.amax(dim=-3, keepdim=True)
    chroma = high - low
    safe = chroma.where(chroma > 0, torch.ones_like(chroma))
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return sector % 6, low, high


def _from_hue(hue: Tensor, chroma: Tensor, high: Tensor) -> Tensor:
    """Return red, green and blue of a hue on 0..6, of a chroma and a largest channel."""
    channels = []
    for number in (5, 3, 1):
        place = (hue + number) % 6
        channels.append(high - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.cat(channels, dim=-3)
