"""Generated videos: textured shapes that move over a texture, with exact masks.

Every shape is an ellipse with a texture of its own and keeps a constant velocity in whole pixels a
frame, turning round at the image's edge; the later object lies in front. The light may fall and
rise. Written in the layout of DAVIS 2017, so that everything that reads DAVIS reads them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from timewalk.artefacts import atomic_path

GREY = np.float32(128)
PERIOD = (6.0, 12.0)
"""frames from one darkest moment to the next"""
SMALLEST_CELL = 4
"""pixels between the values that a texture is interpolated from, at least"""

PALETTE_START = (
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (191, 0, 0),
    (64, 128, 0),
    (191, 128, 0),
    (64, 0, 128),
    (191, 0, 128),
    (64, 128, 128),
    (191, 128, 128),
    (0, 64, 0),
    (128, 64, 0),
    (0, 191, 0),
    (128, 191, 0),
    (0, 64, 128),
    (128, 64, 128),
)
"""DAVIS's palette; from entry 22 on, entry i is the gray (i, i, i)"""


SHAPES = ("red", "green", "yellow", "blue")
"""what the skin of object 1, 2, ... is tinted with"""


def davis_palette() -> list[int]:
    """Return DAVIS's palette as 768 numbers, for ``Image.putpalette``."""
    grays = [(i, i, i) for i in range(len(PALETTE_START), 256)]
    return [value for colour in (*PALETTE_START, *grays) for value in colour]


def save_ids(path: Path, ids: np.ndarray) -> None:
    """Write ids, uint8 (H, W), as a PNG with DAVIS's palette."""
    image = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8), "P")
    image.putpalette(davis_palette())
    image.save(path, "PNG")


@dataclass(frozen=True)
class Moving:
    """A video of moving shapes.

    Attributes:
        frames: uint8 (T, H, W, 3).
        ids: uint8 (T, H, W): 0, or the number of the object in front, from 1.
        centres: int (T, objects, 2): x and y of each shape's centre in pixels.
        radii: int (objects, 2): half axes along x and y.
    """

    frames: np.ndarray
    ids: np.ndarray
    centres: np.ndarray
    radii: np.ndarray


def moving_shapes(
    frames: int,
    size: tuple[int, int],
    objects: int,
    rng: np.random.Generator,
    clutter: float = 1.0,
    shade: float = 0.0,
) -> Moving:
    """Draw a video.

    Args:
        frames: how many.
        size: (height, width) in pixels, at least 16 each.
        objects: how many shapes, at most 4; all are within the image in every frame, and all are
            seen in the first.
        rng: of textures, shapes and motion.
        clutter: contrast of the background, as a share of the shapes'.
        shade: share of the light that is lost at the darkest moment; it falls and rises again.
    """
    height, width = size
    half = np.array([width, height]) // 6
    radii = np.stack([rng.integers(half * 2 // 3, half + 1) for _ in range(objects)])
    centres = _paths(frames, np.array([width, height]), radii, rng)
    background = texture(size, rng)
    if clutter < 1:
        background = (GREY + clutter * (background - GREY)).astype(np.uint8)
    video = np.repeat(background[None], frames, axis=0)
    ids = np.zeros((frames, height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for k in range(objects):
        skin = _skin(tuple(2 * radii[k][::-1] + 1), k, rng)
        for t in range(frames):
            x, y = columns - centres[t, k, 0], rows - centres[t, k, 1]
            inside = (x / radii[k, 0]) ** 2 + (y / radii[k, 1]) ** 2 <= 1
            ids[t][inside] = k + 1
            video[t][inside] = skin[y[inside] + radii[k, 1], x[inside] + radii[k, 0]]
    if shade > 0:
        video = lit(video, shade, rng)
    return Moving(video, ids, centres, radii)


def lit(video: np.ndarray, shade: float, rng: np.random.Generator) -> np.ndarray:
    """Return a video under light that falls and rises as a sine."""
    turns = rng.uniform() + np.arange(len(video)) / rng.uniform(*PERIOD)
    light = 1 - shade * (1 + np.sin(2 * np.pi * turns)) / 2
    return (light[:, None, None, None] * video).astype(np.uint8)


def _paths(
    frames: int, extent: np.ndarray, radii: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return each shape's centre in each frame, (frames, objects, 2) in whole pixels."""
    paths: list[np.ndarray] = []
    for radius in radii:
        span = extent - 2 * radius - 1  # of the positions from edge to edge
        start = rng.integers(0, span + 1)
        while any(_hides(radius + start, path[0], extent) for path in paths):
            start = rng.integers(0, span + 1)
        speed = rng.integers(1, 4, 2) * rng.choice([-1, 1], 2)
        position = (start + speed * np.arange(frames)[:, None]) % (2 * span)
        paths.append(radius + np.where(position > span, 2 * span - position, position))
    return np.stack(paths, axis=1)


def _hides(centre: np.ndarray, other: np.ndarray, extent: np.ndarray) -> bool:
    """Return whether two shapes are so near that the one in front may hide the other."""
    return bool(np.square((centre - other) / (extent / 6)).sum() < 1.5)


def texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise of two scales, uint8 (H, W, 3)."""
    total = np.zeros((*size, 3), np.float32)
    for cell, share in ((24, 0.6), (SMALLEST_CELL, 0.4)):
        grid = rng.integers(0, 256, (size[0] // cell + 2, size[1] // cell + 2, 3), dtype=np.uint8)
        image = Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        total += share * np.asarray(image, np.float32)
    return total.astype(np.uint8)


def _skin(size: tuple[int, int], number: int, rng: np.random.Generator) -> np.ndarray:
    """Return a texture under the colour of an object's number, so that objects differ."""
    colour = np.array(PALETTE_START[1 + number % 6], np.float32) * 1.9
    return (0.5 * colour + 0.5 * texture(size, rng)).astype(np.uint8)


def write_davis(
    root: Path,
    sequences: dict[str, Moving],
    *,
    subset: str = "val",
    resolution: str = "480p",
) -> None:
    """Write videos in the layout of DAVIS 2017, into ``root`` (which appears when all is there).

    Masks are written for both tasks, semi-supervised and unsupervised.
    """
    with atomic_path(root) as folder:
        lists = folder / "ImageSets" / "2017"
        lists.mkdir(parents=True)
        (lists / f"{subset}.txt").write_text("".join(f"{name}\n" for name in sequences))
        for name, video in sequences.items():
            images = folder / "JPEGImages" / resolution / name
            write_frames(images, video.frames)
            for masks in ("Annotations", "Annotations_unsupervised"):
                write_masks(folder / masks / resolution / name, video.ids)


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Write frames, uint8 (T, H, W, 3), as ``00000.jpg`` and so on."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.jpg", quality=95)


def write_masks(folder: Path, ids: np.ndarray) -> None:
    """Write ids, uint8 (T, H, W), as ``00000.png`` and so on."""
    folder.mkdir(parents=True)
    for number, mask in enumerate(ids):
        save_ids(folder / f"{number:05d}.png", mask)
