"""Masks over their frames, as videos to look at.

What writes videos is imported when it is asked for: a node that only trains and evaluates may be
without ffmpeg and PyAV.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from timewalk.data.generated import davis_palette
from timewalk.data.sequences import Sequence as Video
from timewalk.data.sequences import read_frame, read_ids, read_joints
from timewalk.errors import UserError

FPS = 24.0
"""of DAVIS"""
POSE_FPS = 15.0
"""of JHMDB"""
OPACITY = 0.5
WHITE = 255


def check_ffmpeg() -> None:
    """Say so if videos cannot be written.

    Raises:
        UserError: ffmpeg or PyAV is missing.
    """
    try:
        from timewalk.video.probe import executable
    except ImportError:
        raise UserError(
            "overlays: true needs PyAV and ffmpeg: pip install 'timewalk[video]', or set it to "
            "false."
        ) from None
    executable("ffmpeg")


def write_overlay(target: Path, video: Video, masks: Sequence[np.ndarray]) -> None:
    """Write a sequence with predicted ids, uint8 (H, W) each, in DAVIS's colours, and the outlines
    of the true ones in white where there are any."""
    from timewalk.video.write import write_mp4

    write_mp4(target, _frames(video, masks), FPS)


def _frames(video: Video, masks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for path, truth, mask in zip(video.frames, video.masks, masks, strict=True):
        picture = coloured(read_frame(path, video.size), mask)
        if truth is not None:
            picture[edges(read_ids(truth, video.size))] = WHITE
        yield picture


def write_pose_overlay(target: Path, video: Video, joints: np.ndarray) -> None:
    """Write a JHMDB sequence with predicted joints (2, J, T) in pixels as coloured discs and the
    true ones as white rings."""
    from timewalk.video.write import write_mp4

    truth = None if video.joints is None else read_joints(video.joints)
    write_mp4(target, _poses(video, joints, truth), POSE_FPS)


def _poses(video: Video, joints: np.ndarray, truth: np.ndarray | None) -> Iterator[np.ndarray]:
    radius = max(2, round(min(video.size) / 80))
    palette = np.array(davis_palette()).reshape(-1, 3)
    for index, path in enumerate(video.frames):
        picture = Image.fromarray(read_frame(path, video.size))
        draw = ImageDraw.Draw(picture)
        for number, (x, y) in enumerate(joints[:, :, index].T, start=1):
            if x >= 0:
                draw.circle((x, y), radius, fill=tuple(palette[number]))
        if truth is not None:
            for x, y in truth[:, :, index].T:
                draw.circle((x, y), radius, outline="white")
        yield np.asarray(picture)


def coloured(pixels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return pixels, uint8 (H, W, 3), with each object of ids (H, W) in its colour."""
    palette = np.array(davis_palette(), np.float32).reshape(-1, 3)
    mixed = (1 - OPACITY) * pixels + OPACITY * palette[ids]
    return np.where(ids[..., None] > 0, mixed, pixels).round().astype(np.uint8)


def edges(ids: np.ndarray) -> np.ndarray:
    """Return where ids (H, W) differ from the pixel to the right or below, bool (H, W)."""
    found = np.zeros(ids.shape, bool)
    found[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    found[:-1] |= ids[:-1] != ids[1:]
    return found
