"""Pictures of detections: objects of the truth and of the prediction side by side.

A class has one colour in all pictures of a result, as in the pictures of masks. Around a mask is
its outline and its box, above a predicted one its score in percent. Crowd regions are striped.

Shapes: H and W rows and columns of the image, N objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from timewalk.evaluation.mask_pictures import id_colours, legend
from timewalk.evaluation.overlays import OPACITY
from timewalk.evaluation.pictures import grid

TEXT_SIZE = 11
LONG_SIDE = 480
"""pixels of an image in the sheet"""
HATCH = 6
"""pixels from one stripe of a crowd region to the next"""


@dataclass(frozen=True)
class Objects:
    """What is drawn over an image, the first object in front.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels.
        classes: (N,) from 0.
        masks: uint8 (N, H, W).
        scores: (N,), or None: the truth.
        crowd: bool (N,), or None: no crowd region.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None


def object_sheet(
    rows: Sequence[tuple[np.ndarray, Objects, Objects]], names: Sequence[str]
) -> np.ndarray:
    """Return a picture, uint8, with a row for each image: ground truth, prediction.

    Args:
        rows: pixels, uint8 (H, W, 3), with the objects of both.
        names: of the classes; a legend of those in sight stands below.
    """
    lines = [[drawn(pixels, found, len(names)) for found in both] for pixels, *both in rows]
    shown = np.unique(np.concatenate([found.classes for _, *both in rows for found in both]))
    if len(shown):
        width = max(sum(picture.shape[1] for picture in line) for line in lines)
        lines.append([legend((shown + 1).tolist(), ["background", *names], width)])
    return grid(lines)


def drawn(pixels: np.ndarray, objects: Objects, classes: int) -> np.ndarray:
    """Return an image, its longer side ``LONG_SIDE``, with its objects drawn over it."""
    height, width = pixels.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    colours = id_colours(classes + 1)[1:]
    order = range(len(objects.boxes) - 1, -1, -1)
    picture = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    paint = np.zeros_like(picture)
    inside, outline = np.zeros((2, *picture.shape[:2]), bool)
    for number in order:
        mask = np.array(Image.fromarray(objects.masks[number]).resize(size, 0)) > 0
        paint[mask] = colours[objects.classes[number]]
        crowd = objects.crowd is not None and bool(objects.crowd[number])
        inside[mask] = striped(mask)[mask] if crowd else True
        outline[mask] = border(mask)[mask]
    mixed = (1 - OPACITY) * picture[inside] + OPACITY * paint[inside]
    picture[inside] = mixed.round().astype(np.uint8)
    picture[outline] = paint[outline]
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(TEXT_SIZE)
    for number in order:
        colour = tuple(colours[objects.classes[number]].tolist())
        left, top, right, bottom = (float(x) * scale for x in objects.boxes[number])
        corner = max(left, right - 1), max(top, bottom - 1)
        draw.rectangle((left, top, *corner), outline=colour, width=2)
        if objects.scores is not None:
            place = (left + 1, max(0.0, top - TEXT_SIZE - 2))
            text = f"{100 * float(objects.scores[number]):.0f}"
            draw.rectangle(draw.textbbox(place, text, font), fill=colour)
            draw.text(place, text, fill="black" if sum(colour) > 300 else "white", font=font)
    return np.asarray(image)


def border(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask, bool (H, W), beside one that is not of it."""
    wide = np.pad(mask, 1)
    surrounded = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return np.array(mask & ~surrounded)


def striped(mask: np.ndarray) -> np.ndarray:
    """Return every other stripe of a mask, bool (H, W)."""
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return np.array(mask & ((rows + columns) % HATCH < HATCH // 2))
