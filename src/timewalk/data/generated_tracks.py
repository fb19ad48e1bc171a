"""Generated videos of one moving shape with a box a frame, in the layout of GOT-10k.

A textured ellipse moves over a texture, grows and shrinks, is cut by the image's edge for some
frames, and is gone for a few in the middle. Source: GOT-10k, for the layout.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from timewalk.artefacts import atomic_path
from timewalk.data.generated import texture
from timewalk.data.tracks import FIRST, frame_name

CLASSES = {
    "red ellipse": (230, 40, 40),
    "green ellipse": (40, 200, 40),
    "blue ellipse": (60, 60, 240),
    "yellow ellipse": (230, 210, 40),
}
"""object classes and the colours of their skins"""
ALL_SEEN = 8
"""cover label of an object of which everything is seen"""
COVER_STEP = 0.15
"""share of the object between two cover labels"""
SMALLEST_SKIN = 4
"""pixels"""
GROWTH = 0.2
"""share by which the half axes grow and shrink"""


@dataclass(frozen=True)
class MovingObject:
    """A video of one shape, T frames.

    Attributes:
        frames: uint8 (T, H, W, 3).
        boxes: float64 (T, 4): x, y, w, h in pixels, of what lies outside the image too; zeros
            where the object is gone.
        shares: float64 (T,), how much of the object is seen.
        object_class: name of what it is.
    """

    frames: np.ndarray
    boxes: np.ndarray
    shares: np.ndarray
    object_class: str


def moving_object(
    frames: int, size: tuple[int, int], number: int, rng: np.random.Generator
) -> MovingObject:
    """Draw a video; all of the object is seen in its first frame.

    Args:
        frames: how many, at least 3.
        size: (height, width) in pixels, at least 32 each.
        number: of the object, which decides its class.
        rng: of textures, shape and motion.
    """
    height, width = size
    extent = np.array([width, height], float)
    name = list(CLASSES)[number % len(CLASSES)]
    half = extent * rng.uniform(0.1, 0.16, 2)
    skin = _skin(half, CLASSES[name], rng)
    centres, gone = _path(frames, extent, half, rng), _gone(frames)
    scales = 1 + GROWTH * np.sin(2 * np.pi * np.arange(frames) / max(frames, 12))
    video = np.repeat(texture(size, rng)[None], frames, axis=0)
    boxes, shares = np.zeros((frames, 4)), np.zeros(frames)
    for t in np.flatnonzero(~gone):
        boxes[t], shares[t] = _draw(video[t], skin, centres[t], scales[t] * half)
    return MovingObject(video, boxes, shares, name)


def cover_label(share: float) -> int:
    """Return the label of a share that is seen: 0 of nothing, 8 of all, steps of 15 % between."""
    if share >= 1:
        return ALL_SEEN
    return min(ALL_SEEN - 1, math.ceil(round(share / COVER_STEP, 6)))


def write_got10k(
    root: Path, videos: Mapping[str, MovingObject], *, subset: str = "val", fps: int = 10
) -> None:
    """Write videos in the layout of GOT-10k, into ``root`` (which appears when all is there).

    Of the subset `test` only the first box is written and no label, as in the published set.
    """
    with atomic_path(root) as folder:
        for name, video in videos.items():
            _write_video(folder / subset / name, video, subset, fps)
        (folder / subset / "list.txt").write_text("".join(f"{name}\n" for name in videos))


def _write_video(place: Path, video: MovingObject, subset: str, fps: int) -> None:
    place.mkdir(parents=True)
    for number, frame in enumerate(video.frames, start=FIRST):
        Image.fromarray(frame).save(place / frame_name(number), quality=95)
    shown = video.boxes[:1] if subset == "test" else video.boxes
    lines = (",".join(f"{value:.4f}" for value in box) for box in shown)
    (place / "groundtruth.txt").write_text("".join(f"{line}\n" for line in lines))
    if subset == "test":
        return
    height, width = video.frames.shape[1:3]
    labels = {
        "cover": [cover_label(share) for share in video.shares],
        "absence": (video.shares == 0).astype(int).tolist(),
        "cut_by_image": _cut(video.boxes, (height, width)).astype(int).tolist(),
    }
    for label, values in labels.items():
        (place / f"{label}.label").write_text("".join(f"{value}\n" for value in values))
    about = {
        "url": "generated",
        "begin": "00:00:00",
        "end": f"00:00:{len(video.frames) // fps:02d}",
        "anno_fps": f"{fps}Hz",
        "object_class": video.object_class,
        "motion_class": "moving",
        "major_class": "ellipse",
        "root_class": "shape",
        "motion_adverb": "smoothly",
        "resolution": f"({width}, {height})",
    }
    rows = "".join(f"{key}: {value}\n" for key, value in about.items())
    (place / "meta_info.ini").write_text(f"[METAINFO]\n{rows}")


def _cut(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which boxes lie partly outside the image, bool (T,)."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return np.asarray((low < 0).any(axis=1) | (high > (size[1], size[0])).any(axis=1))


def _gone(frames: int) -> np.ndarray:
    """Return in which frames the object is gone, bool (T,): an eighth, from the middle on."""
    gone = np.zeros(frames, bool)
    gone[frames // 2 : frames // 2 + max(1, frames // 8)] = True
    return gone


def _path(
    frames: int, extent: np.ndarray, half: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the centre in each frame, (T, 2): from inside to the farther of the image's left and
    right edges, which it reaches after three quarters of the video, and back."""
    start = rng.uniform(half + 1, extent - half - 1)
    edge = extent[0] if start[0] < extent[0] / 2 else 0.0
    end = np.array([edge, rng.uniform(half[1], extent[1] - half[1])])
    reached = max(1, 3 * frames // 4)
    share = np.arange(frames) / reached
    share = np.where(share > 1, 2 - share, share)
    return start + share[:, None] * (end - start)


def _skin(half: np.ndarray, colour: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    width, height = (max(SMALLEST_SKIN, math.ceil(2 * side)) for side in half)
    tinted = 0.5 * np.array(colour, np.float32) + 0.5 * texture((height, width), rng)
    return tinted.astype(np.uint8)


def _draw(
    image: np.ndarray, skin: np.ndarray, centre: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, float]:
    """Draw the object into an image; return its box (x, y, w, h), and how much of it is seen.

    The box is the tight one around its pixels, those outside the image among them.
    """
    low, high = np.floor(centre - half).astype(int), np.ceil(centre + half).astype(int)
    columns, rows = (np.arange(a, b + 1) for a, b in zip(low, high, strict=True))
    x, y = (columns + 0.5 - centre[0]) / half[0], (rows + 0.5 - centre[1]) / half[1]
    inside = x**2 + y[:, None] ** 2 <= 1
    height, width = image.shape[:2]
    within = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    seen = inside & within
    at, across = np.nonzero(seen)
    v = ((y[at] + 1) / 2 * skin.shape[0]).astype(int).clip(0, skin.shape[0] - 1)
    u = ((x[across] + 1) / 2 * skin.shape[1]).astype(int).clip(0, skin.shape[1] - 1)
    image[rows[at], columns[across]] = skin[v, u]
    wide, tall = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    box = [columns[wide[0]], rows[tall[0]], wide[-1] - wide[0] + 1, tall[-1] - tall[0] + 1]
    return np.array(box, float), float(seen.sum() / inside.sum())
