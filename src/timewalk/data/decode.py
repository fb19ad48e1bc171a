"""Frames of one video, decoded from the JPEGs of a store."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timewalk.data.folder import FrameStore
from timewalk.data.images import to_rgb
from timewalk.errors import UserError


def decode_frames(store: FrameStore, numbers: Sequence[int]) -> Tensor:
    """Return frames of one video, uint8 (T, 3, H, W) RGB.

    Pillow, written straight into the clip, is as fast as the other decoders on libjpeg-turbo
    (`benchmarks/decode.py`) and always there; torchvision's is deprecated since 0.29.
    """
    clip: np.ndarray | None = None
    for place, number in enumerate(numbers):
        pixels = _decode(store, number)
        if clip is None:
            height, width = pixels.shape[:2]
            clip = np.empty((len(numbers), 3, height, width), np.uint8)
        clip[place] = pixels.transpose(2, 0, 1)
    assert clip is not None, "a clip has at least one frame"
    return torch.from_numpy(clip)


def _decode(store: FrameStore, number: int) -> np.ndarray:
    """Return one frame, uint8 (H, W, 3)."""
    data = store.jpeg(number)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if image.mode == "RGB" else to_rgb(image))
    except (OSError, SyntaxError) as error:  # Pillow reports damage as either
        reason = str(error).split("<")[0].strip()
        raise UserError(
            f"{store.where(number)}: frame {number} cannot be decoded ({reason}); "
            "run the frames stage again."
        ) from None
