"""Generated phases: one action, pouring, at another speed and with other looks in every video.

A hand reaches for a jug, lifts it, pours what is in it into a glass, sets it down and leaves.
Every video has a time warp, places, sizes, textures and colours of its own. Other textured shapes
move behind the action all the time, so that most of what changes between two frames tells nothing
about the phase.
"""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from timewalk.data.generated import GREY, lit, texture
from timewalk.errors import UserError

PHASES = ("reach", "lift", "pour", "lower", "leave")
"""names of the classes, in the order in which they come"""

FEWEST_FRAMES = 10
SMALLEST_SIDE = 32
PACE = (0.5, 2.0)
"""relative duration of a phase"""
SPEED = (0.5, 1.5)
"""relative speed within a phase"""
STANDSTILL = 0.05
"""relative speed in a pause"""
LONGEST_PAUSE = 0.15
"""of a pause, as a share of the video"""

MOMENTS = (0.0, 1.0, 2.0, 2.25, 2.75, 3.0, 4.0, 5.0)
"""when the actors are at the places below, in phases from the start; lengths are shares of the
image's shorter side, x to the side from which the hand comes, y downwards"""
HAND_X = (0.46, 0.0, -0.06, -0.14, -0.14, -0.06, 0.0, 0.46)
HAND_Y = (-0.22, 0.0, -0.36, -0.38, -0.38, -0.36, 0.0, -0.22)
JUG_X = (0.0, 0.0, -0.06, -0.16, -0.16, -0.06, 0.0, 0.0)
JUG_Y = (0.0, 0.0, -0.36, -0.4, -0.4, -0.36, 0.0, 0.0)
TILT = (0.0, 0.0, 0.0, 1.75, 1.75, 0.0, 0.0, 0.0)
"""of the jug, in radians"""
POURED = (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0)

GLASS = (-0.20, -0.17)
JUG = (0.14, -0.12)
GRIP = (0.24, -0.12)
"""centres of glass and jug, and where the hand takes hold, from the middle of the ground line"""
HALVES = {
    "hand": (0.09, 0.06),
    "arm": (0.40, 0.035),
    "jug": (0.09, 0.12),
    "glass": (0.14, 0.17),
    "hollow": (0.12, 0.15),
    "water": (0.12, 0.15),
}
"""half axes (x, y); the hollow is what the water fills in the glass"""
STREAM_HALF = 0.018
DISTRACTOR_HALF = (0.06, 0.16)
DISTRACTOR_REACH = (0.1, 0.3)
"""how far it swings from its middle"""
DISTRACTOR_PERIOD = (5.0, 12.0)
"""frames of a swing: short, so that it comes by the same places again and again. A distractor that
crosses the image once would tell the time, in each video in its own way, and cycles of frames
between two videos could close over it."""
DISTRACTOR_TURN = 1.0
"""radians to which it turns from its middle"""
COLOURS = {
    "hand": (235, 170, 140),
    "arm": (235, 170, 140),
    "jug": (200, 50, 50),
    "glass": (225, 225, 225),
    "hollow": (120, 120, 120),
    "water": (50, 90, 220),
}


@dataclass(frozen=True)
class PhaseClip:
    """A video of the action.

    Attributes:
        name: of the video.
        frames: uint8 (L, H, W, 3).
        labels: int64 (L,): each frame's phase, an index into PHASES; every phase occurs.
    """

    name: str
    frames: np.ndarray
    labels: np.ndarray


def moving_phases(
    count: int,
    frames: tuple[int, int] = (30, 60),
    size: tuple[int, int] = (96, 96),
    seed: int = 0,
    *,
    clutter: float = 0.35,
    distractors: int = 3,
    variety: float = 0.1,
    shade: float = 0.0,
    sides: int = 2,
) -> list[PhaseClip]:
    """Draw videos; the first ones do not depend on how many are drawn.

    Args:
        count: of videos.
        frames: fewest and most frames of a video.
        size: (height, width) in pixels.
        seed: of everything random.
        clutter: contrast of the background, as a share of the shapes'.
        distractors: how many shapes move behind the action.
        variety: of the actors' colours: 0, the same in all videos; 1, any.
        shade: share of the light that is lost at the darkest moment; it falls and rises again.
        sides: from how many sides the hand comes, 1 or 2.

    Raises:
        UserError: a video would be too short for its phases, or the image too small.
    """
    if not FEWEST_FRAMES <= frames[0] <= frames[1]:
        raise UserError(
            f"frames is {frames[0]} to {frames[1]}; give the fewest and the most frames of a "
            f"video, at least {FEWEST_FRAMES}."
        )
    if min(size) < SMALLEST_SIDE:
        raise UserError(
            f"size is {size[0]} x {size[1]} pixels; give at least {SMALLEST_SIDE} a side."
        )
    rngs = [np.random.default_rng([seed, number]) for number in range(count)]
    clips = []
    for number, rng in enumerate(rngs):
        stage, labels = time_warp(int(rng.integers(frames[0], frames[1] + 1)), rng)
        video = _background(size, len(stage), clutter, distractors, rng)
        _act(video, stage, variety, sides, rng)
        if shade > 0:
            video = lit(video, shade, rng)
        clips.append(PhaseClip(f"pour{number:03d}", video, labels))
    return clips


def time_warp(frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw how fast a video's action goes on.

    Phases have durations of their own, the speed within them varies, and once in the video it
    nearly stands still.

    Returns:
        Phases from the start, float (L,), increasing, in [k, k + 1) in phase k; and k, int64 (L,).
    """
    shares = np.cumsum(rng.uniform(*PACE, len(PHASES)))
    # Two frames of every phase are certain; the others are shared out.
    spare = frames - 2 * len(PHASES)
    ends = np.rint(spare * shares / shares[-1]).astype(int) + 2 * np.arange(1, len(PHASES) + 1)
    labels = np.repeat(np.arange(len(PHASES)), np.diff(ends, prepend=0))
    speed = rng.uniform(*SPEED, frames)
    pause = int(rng.integers(1, max(2, int(LONGEST_PAUSE * frames) + 1)))
    start = int(rng.integers(0, frames - pause + 1))
    speed[start : start + pause] = STANDSTILL
    stage = np.empty(frames)
    for k in range(len(PHASES)):
        steps = speed[labels == k]
        stage[labels == k] = k + (np.cumsum(steps) - steps[0]) / steps.sum()
    return stage, labels.astype(np.int64)


@dataclass(frozen=True)
class _Shape:
    """Half axes (x, y) in pixels, a texture (h, w, 3), and whether it is an ellipse."""

    half: np.ndarray
    skin: np.ndarray
    round: bool = False


def _background(
    size: tuple[int, int],
    frames: int,
    clutter: float,
    distractors: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a texture on which shapes move, uint8 (L, H, W, 3)."""
    still = texture(size, rng)
    still = (GREY + clutter * (still - GREY)).astype(np.uint8)
    video = np.repeat(still[None], frames, axis=0)
    for _ in range(distractors):
        _distract(video, rng)
    return video


def _distract(video: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a shape that swings and turns, onto (L, H, W, 3)."""
    extent = np.array([video.shape[2], video.shape[1]])
    half = rng.uniform(*DISTRACTOR_HALF, 2) * extent.min()
    shape = _Shape(half, _skin(half, _colour(rng), rng), bool(rng.integers(2)))
    middle = rng.uniform(0, extent)
    reach = rng.uniform(*DISTRACTOR_REACH, 2) * extent.min()
    # Of x, y and the angle.
    period, start = rng.uniform(*DISTRACTOR_PERIOD, 3), rng.uniform(size=3)
    for t, frame in enumerate(video):
        swing = np.sin(2 * np.pi * (start + t / period))
        _paint(frame, shape, middle + reach * swing[:2], DISTRACTOR_TURN * float(swing[2]))


def _act(
    video: np.ndarray, stage: np.ndarray, variety: float, sides: int, rng: np.random.Generator
) -> None:
    """Draw the action onto a video, (L, H, W, 3), at stages (L,)."""
    height, width = video.shape[1:3]
    unit = min(height, width) * rng.uniform(0.85, 1.05)
    side = int(rng.choice([-1, 1])) if sides == 2 else 1
    ground = np.array([width * rng.uniform(0.44, 0.56), height * rng.uniform(0.74, 0.92)])
    actors = _actors(unit, variety, rng)

    def place(x: float, y: float) -> np.ndarray:
        return ground + unit * np.array([side * x, y])

    for frame, moment in zip(video, stage, strict=True):
        hand_x, hand_y, jug_x, jug_y, tilt, poured = (
            float(np.interp(moment, MOMENTS, track))
            for track in (HAND_X, HAND_Y, JUG_X, JUG_Y, TILT, POURED)
        )
        jug = place(JUG[0] + jug_x, JUG[1] + jug_y)
        _fill(frame, actors, place(*GLASS), poured, jug[1])
        grip = place(GRIP[0] + hand_x, GRIP[1] + hand_y)
        _paint(frame, actors["arm"], grip + side * actors["arm"].half * [1, 0])
        _paint(frame, actors["jug"], jug, -side * tilt)
        _paint(frame, actors["hand"], grip)


def _actors(unit: float, variety: float, rng: np.random.Generator) -> dict[str, _Shape]:
    actors = {}
    for name, share in HALVES.items():
        half = unit * np.array(share)
        colour = (1 - variety) * np.array(COLOURS[name]) + variety * _colour(rng)
        actors[name] = _Shape(half, _skin(half, colour, rng), name == "hand")
    return actors


def _fill(
    frame: np.ndarray, actors: dict[str, _Shape], centre: np.ndarray, poured: float, spout: float
) -> None:
    """Draw the glass, what is in it, and, while it is poured, the stream from row `spout`."""
    _paint(frame, actors["glass"], centre)
    _paint(frame, actors["hollow"], centre)
    if poured == 0:
        return
    water = actors["water"]
    half = water.half * np.array([1, poured])
    surface = centre[1] + water.half[1] - 2 * half[1]
    _paint(frame, replace(water, half=half), np.array([centre[0], surface + half[1]]))
    if poured < 1:
        stream = np.array([STREAM_HALF / HALVES["water"][0] * half[0], (surface - spout) / 2])
        _paint(frame, replace(water, half=stream), np.array([centre[0], (surface + spout) / 2]))


def _paint(frame: np.ndarray, shape: _Shape, centre: np.ndarray, angle: float = 0.0) -> None:
    """Draw a shape about a centre (x, y), turned by an angle in radians, onto (H, W, 3)."""
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    x, y = columns - centre[0], rows - centre[1]
    u = (np.cos(angle) * x + np.sin(angle) * y) / shape.half[0]
    v = (np.cos(angle) * y - np.sin(angle) * x) / shape.half[1]
    inside = u**2 + v**2 <= 1 if shape.round else np.maximum(abs(u), abs(v)) <= 1
    tall, wide = (np.array(shape.skin.shape[:2]) - 1) / 2
    row, column = (np.rint((v[inside] + 1) * tall), np.rint((u[inside] + 1) * wide))
    frame[inside] = shape.skin[row.astype(int), column.astype(int)]


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Draw a bright colour, (3,) in 0..255."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.5, 1), rng.uniform(0.7, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _skin(half: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a tinted texture for a shape with these half axes (x, y) in pixels."""
    columns, rows = 2 * np.ceil(half).astype(int) + 1
    return (0.6 * colour + 0.4 * texture((rows, columns), rng)).astype(np.uint8)
