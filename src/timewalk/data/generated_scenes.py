"""Generated scenes: shapes of a few classes on a textured background, with exact masks.

A class is told by its outline, its colour and the direction of its stripes, so that a small network
learns it in a few steps. The later object lies in front. ``ade20k_shapes`` and ``coco_shapes`` are
made of these scenes.

Shapes: H and W rows and columns.
"""

from dataclasses import dataclass

import numpy as np

from timewalk.data.generated import GREY, texture

CLASSES = ("disc", "box", "triangle", "ring", "cross", "bar")
"""names of the classes, in order"""
COLOURS = (
    (220, 40, 40),
    (40, 190, 60),
    (50, 80, 230),
    (225, 205, 40),
    (205, 60, 215),
    (40, 205, 215),
)
"""RGB of each class"""
SMALLEST, LARGEST = 1 / 6, 1 / 2
"""a shape's side as a share of the image's shorter side"""
SEEN = 0.5
"""share of every shape that is not hidden by those in front, at least"""
TRIES = 20
"""places that are tried for a shape"""
STRIPE = 6.0
"""pixels from one dark stripe to the next"""


@dataclass(frozen=True)
class SceneObject:
    """One shape.

    Attributes:
        category: its class, from 0.
        mask: bool (H, W), the part of it that is seen.
    """

    category: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image of shapes.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        objects: in the order of drawing; later ones lie in front.
    """

    image: np.ndarray
    objects: list[SceneObject]

    @property
    def ids(self) -> np.ndarray:
        """uint8 (H, W): class + 1 of the shape in front; 0 on the background."""
        ids = np.zeros(self.image.shape[:2], np.uint8)
        for thing in self.objects:
            ids[thing.mask] = thing.category + 1
        return ids


def draw_scene(
    size: tuple[int, int], rng: np.random.Generator, objects: int, classes: int
) -> Scene:
    """Draw an image.

    Args:
        size: (height, width) in pixels, at least 32 each.
        rng: of everything random.
        objects: how many shapes; each lies within the image. One that finds no place without
            hiding others is left out, but the first never is.
        classes: the first so many of :data:`CLASSES` are drawn from, 1 to 6.
    """
    background = texture(size, rng).astype(np.float32)
    image = (GREY + 0.4 * (background - GREY)).astype(np.uint8)
    categories: list[int] = []
    masks: list[np.ndarray] = []  # of the part that is seen
    areas: list[int] = []
    for _ in range(objects):
        category, shape = int(rng.integers(classes)), None
        outline = _outline(category, _side(size, rng), rng)
        for _ in range(TRIES):
            shape = _place(outline, size, rng)
            seen = [mask & ~shape for mask in masks]
            if all(m.sum() >= SEEN * area for m, area in zip(seen, areas, strict=True)):
                break
        else:
            continue
        masks, areas = [*seen, shape], [*areas, int(shape.sum())]
        categories.append(category)
        image[shape] = _skin(category, size, rng)[shape]
    return Scene(image, [SceneObject(c, m) for c, m in zip(categories, masks, strict=True)])


def _side(size: tuple[int, int], rng: np.random.Generator) -> int:
    return round(min(size) * float(rng.uniform(SMALLEST, LARGEST)))


def _outline(category: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a shape's mask in the square that holds it, turned by quarters, bool (side, side)."""
    line = (np.arange(side) + 0.5) * 2 / side - 1
    x, y = line[None, :], line[:, None]
    radius = np.hypot(x, y)
    name = CLASSES[category]
    if name == "disc":
        mask = radius <= 1
    elif name == "box":
        mask = radius >= 0
    elif name == "triangle":
        mask = abs(x) <= (y + 1) / 2
    elif name == "ring":
        mask = (radius <= 1) & (radius >= 0.5)
    elif name == "cross":
        mask = (abs(x) <= 0.35) | (abs(y) <= 0.35)
    else:
        mask = (abs(y) <= 0.35) & (abs(x) <= 1)
    return np.rot90(mask, int(rng.integers(4)))


def _place(outline: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    side = len(outline)
    top, left = (int(rng.integers(length - side + 1)) for length in size)
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = outline
    return mask


def _skin(category: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the look of a class over a whole image, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    angle = np.pi * category / len(CLASSES)
    phase = (columns * np.cos(angle) + rows * np.sin(angle)) / STRIPE + rng.uniform()
    light = 0.85 + 0.15 * np.sin(2 * np.pi * phase)
    colour = 0.8 * np.array(COLOURS[category], np.float32) + 0.2 * texture(size, rng)
    return (light[:, :, None] * colour).astype(np.uint8)
