"""Clips of several videos: the contract ClipSource and its one implementation.

A clip of F frames, S frames apart, starts at any frame that leaves room as the data set of DoRA
(ICLR 2024) counts it: a video of T frames has T - F*S clips, and clip i of a video begins at its
frame i. The videos' ranges follow one another; a clip never crosses videos.
"""

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timewalk.data.folder import FrameStore
from timewalk.data.images import ImageStore, to_rgb
from timewalk.data.shards import open_store
from timewalk.errors import UserError


@dataclass
class Clip:
    """Some frames of one video.

    Attributes:
        frames: uint8 (T, 3, H, W), RGB.
        times: float64 (T,), seconds from the video's first frame.
        video: the video's name.
        start: number of the first frame within the video.
    """

    frames: Tensor
    times: Tensor
    video: str
    start: int


class ClipSource(Protocol):
    """Clips by number, whatever the storage. Safe in forked and spawned loader workers."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def clip(self, index: int) -> Clip:
        """Return a clip; damaged data is a :class:`UserError` with file and offset."""


class VideoClips:
    """Clips of ``num_frames`` frames, ``step`` frames apart, of videos laid end to end."""

    def __init__(self, stores: Sequence[FrameStore], num_frames: int, step: int) -> None:
        self.stores, self.num_frames, self.step = list(stores), num_frames, step
        self.ends = list(accumulate(len(store) - num_frames * step for store in stores))

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the video, first frame within it) of a clip."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        video = bisect_right(self.ends, index)
        return video, index - (self.ends[video - 1] if video else 0)

    def clip(self, index: int) -> Clip:
        """Return a clip, decoded."""
        video, start = self.locate(index)
        store = self.stores[video]
        numbers = [start + frame * self.step for frame in range(self.num_frames)]
        return Clip(
            frames=decode_frames(store, numbers),
            times=torch.from_numpy(store.times[numbers]),
            video=store.video,
            start=start,
        )


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


def open_clips(manifests: Sequence[Path], num_frames: int, step: int) -> ClipSource:
    """Open the shards of some videos as one source of clips.

    Args:
        manifests: ``<video>.json`` of the shards stage, in the order of the clips.
        num_frames: F, frames of a clip.
        step: S, frames between them.

    Raises:
        UserError: no video, damaged shards, or a video shorter than a clip.
    """
    if not manifests:
        raise UserError("no videos: name at least one under the data set's key 'videos'.")
    stores = [open_store(Path(path)) for path in manifests]
    stills = [store.video for store in stores if isinstance(store, ImageStore)]
    if stills and num_frames > 1:
        raise UserError(
            f"the data set '{stills[0]}' holds still images, but a clip of this run has "
            f"{num_frames} frames; choose a data set of videos, or a method that learns from "
            "images (dino)."
        )
    short = [store for store in stores if len(store) <= num_frames * step]
    if short:
        found = ", ".join(f"'{store.video}' has {len(store)} frames" for store in short)
        raise UserError(
            f"{found}, but a clip of {num_frames} frames with step {step} needs at least "
            f"{num_frames * step + 1}: lower the run's frames_per_clip or step_between_clips, "
            "raise the data set's frames.fps, or leave the video out."
        )
    return VideoClips(stores, num_frames, step)
