"""Pictures of segmentations: input, ground truth and prediction side by side, sheets and GIFs.

A class id has one colour in all pictures of a result: DAVIS's palette for the first ids, which is
also VOC's, and VOC's rule for all above. Background is black, void pixels of the truth are white.

Shapes: H and W rows and columns of pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from timewalk.artefacts import atomic_path
from timewalk.data.generated import PALETTE_START
from timewalk.evaluation.pictures import GAP, grid

VOID = 255
WHITE = (255, 255, 255)
GIF_COLOURS = 256
PHOTO_COLOURS = 16
"""of a GIF's colours, at least so many are left for the input"""
LEGEND_LINE = 16
"""pixels from one line of the legend to the next"""
TEXT_SIZE = 11

Row = Sequence[np.ndarray]
"""one image: the input, uint8 (H, W, 3), the true ids (H, W), and one map of ids or more (H, W)
that are predicted; ids may be coarser than the input: they are enlarged (nearest)"""


def id_colours(count: int) -> np.ndarray:
    """Return the colours of ids 0 to ``count`` - 1, uint8 (count, 3)."""
    ids = np.arange(max(count, len(PALETTE_START)))
    colours = np.zeros((len(ids), 3), np.int64)
    # VOC's rule: the lowest three bits of an id are the top bits of red, green and blue, and so on.
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= (ids >> (3 * place + channel) & 1) << (7 - place)
    colours[: len(PALETTE_START)] = PALETTE_START
    return colours[:count].astype(np.uint8)


def paint(ids: np.ndarray, void: int | None = None) -> np.ndarray:
    """Return ids (H, W) in their colours, uint8 (H, W, 3); ``void`` is white."""
    picture = id_colours(int(ids.max(initial=0)) + 1)[ids]
    if void is not None:
        picture[ids == void] = WHITE
    return picture


def sheet(rows: Sequence[Row], names: Sequence[str] = ()) -> np.ndarray:
    """Return a picture, uint8, with a row for each image: input, ground truth, predictions.

    Args:
        rows: the images.
        names: name of each class id; where given, a legend of the classes in sight stands below.
    """
    lines = [_painted(row) for row in rows]
    if names:
        width = max(sum(p.shape[1] + GAP for p in line) - GAP for line in lines)
        lines.append([legend(_in_sight(rows), names, width)])
    return grid(lines)


def legend(ids: Sequence[int], names: Sequence[str], width: int) -> np.ndarray:
    """Return a strip of that width in pixels: the colour and the name of each id, in lines."""
    font = ImageFont.load_default(TEXT_SIZE)
    entries = [(number, names[number]) for number in ids if number < len(names)]
    column = 2 * LEGEND_LINE + max((int(font.getlength(name)) for _, name in entries), default=0)
    columns = max(1, width // column)
    strip = Image.new("RGB", (width, LEGEND_LINE * -(-len(entries) // columns)), "white")
    draw = ImageDraw.Draw(strip)
    colours = id_colours(max(ids, default=0) + 1).tolist()
    for place, (number, name) in enumerate(entries):
        left, top = place % columns * column, place // columns * LEGEND_LINE
        box = (left, top + 2, left + LEGEND_LINE - 5, top + LEGEND_LINE - 3)
        draw.rectangle(box, fill=tuple(colours[number]), outline="black")
        draw.text((left + LEGEND_LINE, top + 1), name, fill="black", font=font)
    return np.asarray(strip)


def write_gif(target: Path, frames: Sequence[Row], ms: int = 80) -> Path:
    """Write a video's rows as an endless GIF, atomically, the same bytes for the same pixels.

    Ids keep their exact colours; the input's colours are reduced, to the same ones in all frames.

    Args:
        target: the file.
        frames: a row each, all of one size.
        ms: milliseconds that a frame is shown.

    Raises:
        ValueError: more ids than a GIF has colours for.
    """
    painted = [_painted(frame) for frame in frames]
    inputs, maps = [line[0] for line in painted], [np.stack(line[1:]) for line in painted]
    exact, places = np.unique(np.stack(maps).reshape(-1, 3), axis=0, return_inverse=True)
    exact = np.concatenate([exact, [WHITE]])
    left = GIF_COLOURS - len(exact)
    if left < PHOTO_COLOURS:
        raise ValueError(f"{len(exact)} colours of ids; a GIF has {GIF_COLOURS} in all")
    photo = Image.fromarray(np.concatenate(inputs)).quantize(left, dither=Image.Dither.NONE)
    palette = np.zeros((GIF_COLOURS, 3), np.uint8)
    found = np.array(photo.getpalette(), np.uint8).reshape(-1, 3)[:left]
    palette[: len(found)] = found
    palette[left:] = exact
    pixels = np.asarray(photo).reshape(len(frames), *inputs[0].shape[:2])
    ids = (left + places).astype(np.uint8).reshape(len(frames), *maps[0].shape[:3])
    gap = np.full((pixels.shape[1], GAP), GIF_COLOURS - 1, np.uint8)
    images = []
    for one, others in zip(pixels, ids, strict=True):
        parts = [one, *(part for other in others for part in (gap, other))]
        images.append(Image.fromarray(np.concatenate(parts, axis=1), "P"))
        images[-1].putpalette(palette.ravel().tolist())
    with atomic_path(target) as temporary:
        first, *rest = images
        first.save(
            temporary,
            "GIF",
            save_all=True,
            append_images=rest,
            duration=ms,
            loop=0,
            optimize=False,
        )
    return target


def _painted(row: Row) -> list[np.ndarray]:
    pixels, truth, *predicted = row
    shape = pixels.shape[:2]
    maps = [paint(_enlarged(truth, shape), VOID)]
    return [pixels, *maps, *(paint(_enlarged(ids, shape)) for ids in predicted)]


def _enlarged(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize ids to (H, W), nearest."""
    rows, columns = (
        (np.arange(size) + 0.5) * have // size for size, have in zip(shape, ids.shape, strict=True)
    )
    return ids[rows.astype(np.int64)[:, None], columns.astype(np.int64)]


def _in_sight(rows: Sequence[Row]) -> list[int]:
    """Return the ids of all maps, sorted, without the truth's void."""
    found = {int(number) for row in rows for ids in row[2:] for number in np.unique(ids)}
    found |= {int(number) for row in rows for number in np.unique(row[1])} - {VOID}
    return sorted(found)
