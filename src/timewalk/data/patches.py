"""A frame cut into overlapping patches, each with a random crop of its own: the nodes of CRW.

Source: CRW's released code.

Shapes: N patches, P side of a patch in pixels.
"""

import numpy as np
import torch
from PIL import Image

from timewalk.data.views import RATIO, Pair, random_window

FRAME_SCALE, FRAME_RATIO = (0.8, 0.95), (0.7, 1.3)
PATCH_SCALE = (0.7, 0.9)


def patch_grid(image_size: int, patch_size: int) -> list[tuple[int, int]]:
    """Return first row and column of each patch, half a patch apart, row by row."""
    firsts = range(0, image_size - patch_size + 1, patch_size // 2)
    return [(top, left) for top in firsts for left in firsts]


def random_crop(image: Image.Image, scale: Pair, ratio: Pair, rng: torch.Generator) -> Image.Image:
    """Return a random crop, in its own size. (PIL can resize a box, but looks beyond its edge.)"""
    window = random_window(image.height, image.width, scale, rng, ratio)
    right, bottom = window.left + window.width, window.top + window.height
    return image.crop((window.left, window.top, right, bottom))


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize to a square of ``side`` pixels, bilinearly."""
    return image.resize((side, side), Image.Resampling.BILINEAR)


def frame_view(
    image: Image.Image, image_size: int, crop: bool, rng: torch.Generator
) -> Image.Image:
    """Return a frame as a square, cropped at random if asked."""
    if crop:
        image = random_crop(image, FRAME_SCALE, FRAME_RATIO, rng)
    return square(image, image_size)


def patch_view(
    frame: Image.Image, place: tuple[int, int], patch_size: int, rng: torch.Generator
) -> Image.Image:
    """Return the patch at a place of a square frame, cropped at random and brought to its size."""
    top, left = place
    patch = frame.crop((left, top, left + patch_size, top + patch_size))
    return square(random_crop(patch, PATCH_SCALE, RATIO, rng), patch_size)


def node_patches(
    image: Image.Image, image_size: int, patch_size: int, rng: torch.Generator
) -> np.ndarray:
    """Return the patches of a frame that is cropped at random, uint8 (N, 3, P, P)."""
    frame = frame_view(image, image_size, True, rng)
    places = patch_grid(image_size, patch_size)
    patches = [np.asarray(patch_view(frame, place, patch_size, rng)) for place in places]
    return np.stack(patches).transpose(0, 3, 1, 2)
