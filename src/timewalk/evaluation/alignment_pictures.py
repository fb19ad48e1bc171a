"""Pictures of aligned videos: matched frames side by side as mp4 or gif, and the paths as a plot.

Source: TCC's released code, its alignment videos. Under each picture lies a bar, the video from
beginning to end in the colours of its phases, with a mark at the frame that is shown; the reference
has a red frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from timewalk.artefacts import atomic_path
from timewalk.errors import UserError
from timewalk.evaluation.alignment import Match, Video
from timewalk.evaluation.pictures import needed, normalised, save_figure

Panel = tuple[Video, int]
"""a video and the number of the frame that is shown"""
Scale = Literal["published", "none"]

COLOURS = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)],
    np.uint8,
)
"""of phases, in turn; those of Okabe and Ito, whom colour-blind people can follow"""
GREY, DARK, RED, PALE, WHITE = (150, 150, 150), (40, 40, 40), (210, 30, 50), (238, 238, 238), 255
EDGE = 2
"""pixels of the frame around the reference"""
COLUMNS = 4
"""panels in a row of the plot"""
SAMPLED = 200
"""pixels across a page that a gif's colours are chosen from"""


class Sheet:
    """Pages of cells in a grid, drawn column by column.

    Args:
        count: cells.
        rows: cells in a column.
        cell: side of a picture in pixels.
    """

    def __init__(self, count: int, rows: int, cell: int) -> None:
        self.rows, self.columns, self.cell = rows, -(-count // rows), cell
        self.gap = max(2 * EDGE + 2, cell // 40)
        self.bar = max(4, cell // 32)
        self.pitch = (cell + self.gap // 2 + self.bar + self.gap, cell + self.gap)

    def corner(self, number: int) -> tuple[int, int]:
        """Return row and column of a cell's first pixel on the page."""
        column, row = divmod(number, self.rows)
        return self.gap + row * self.pitch[0], self.gap + column * self.pitch[1]

    def page(self) -> np.ndarray:
        """Return an empty page, uint8 (H, W, 3)."""
        height, width = self.rows * self.pitch[0], self.columns * self.pitch[1]
        return np.full((height + self.gap, width + self.gap, 3), WHITE, np.uint8)


def grid_rows(count: int) -> int:
    """Return the rows of the smallest grid that holds so many cells and is no higher than wide."""
    columns = int(np.ceil(np.sqrt(count)))
    return -(-count // columns)


def pages(
    panels: Iterable[Sequence[Panel]],
    sheet: Sheet,
    reference: Video,
    *,
    scale: Scale = "published",
    numbers: bool = False,
) -> Iterator[np.ndarray]:
    """Draw pages, uint8 (H, W, 3) each.

    Args:
        panels: what each page shows, as many videos as the sheet has cells.
        sheet: where cells lie.
        reference: the video that gets a frame around it.
        scale: `published`: each frame stretched between its least and its largest value.
        numbers: whether the number of the frame is written into its corner.
    """
    drawn: dict[int, tuple[Panel, np.ndarray]] = {}
    page = sheet.page()
    for shown in panels:
        for cell, panel in enumerate(shown):
            if cell not in drawn or drawn[cell][0] != panel:
                drawn[cell] = panel, draw_cell(panel, sheet, scale, numbers)
                _paste(page, drawn[cell][1], sheet.corner(cell), panel[0] is reference)
        yield page.copy()


def _paste(page: np.ndarray, block: np.ndarray, corner: tuple[int, int], framed: bool) -> None:
    top, left = corner
    bottom, right = top + block.shape[0], left + block.shape[1]
    page[top - EDGE : bottom + EDGE, left - EDGE : right + EDGE] = RED if framed else WHITE
    page[top:bottom, left:right] = block


def draw_cell(panel: Panel, sheet: Sheet, scale: Scale, numbers: bool) -> np.ndarray:
    """Return a picture with its bar below, uint8 (cell + gap + bar, cell, 3)."""
    video, frame = panel
    pixels = video.frame(frame)
    if scale == "published":
        pixels = stretched(pixels)
    picture = fitted(pixels, sheet.cell)
    if numbers:
        picture = written(picture, f"{frame} / {len(video) - 1}")
    below = np.full((sheet.gap // 2, sheet.cell, 3), WHITE, np.uint8)
    return np.concatenate([picture, below, bar(video, frame, sheet.cell, sheet.bar)])


def stretched(pixels: np.ndarray) -> np.ndarray:
    """Return a frame with its least value 0 and its largest 255; a constant stays as it is."""
    if pixels.min() == pixels.max():
        return pixels
    return np.round(normalised(pixels.astype(np.float32)) * 255).astype(np.uint8)


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return a frame in the middle of a pale square, as large as it fits."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), PALE)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def written(picture: np.ndarray, text: str) -> np.ndarray:
    """Return a picture with a line of text in its lower left corner."""
    image = Image.fromarray(picture)
    size = max(10, len(picture) // 18)
    place = size // 2, len(picture) - size // 2
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    draw.text(place, text, "white", font, anchor="ls", stroke_width=2, stroke_fill=DARK)
    return np.asarray(image)


def bar(video: Video, frame: int, width: int, height: int) -> np.ndarray:
    """Return a video's phases from beginning to end, pale after the frame that is shown.

    Returns:
        uint8 (height, width, 3), with a dark mark at the frame.
    """
    if video.labels is None:
        colours = np.array([GREY], np.uint8)[np.zeros(len(video), int)]
    else:
        colours = COLOURS[video.labels % len(COLOURS)]
    of_column = np.arange(width) * len(video) // width
    later = (of_column > frame)[:, None]
    line = np.where(later, paled(colours[of_column]), colours[of_column])
    centre = round((frame + 0.5) * width / len(video))
    half = max(1, height // 5)
    line[max(0, min(centre - half, width - 2 * half)) :][: 2 * half] = DARK
    return np.repeat(line[None], height, axis=0)


def paled(colours: ArrayLike) -> np.ndarray:
    """Return colours as they look after the frame that is shown, uint8."""
    values = np.asarray(colours, np.float64)
    return np.round(values + 0.65 * (WHITE - values)).astype(np.uint8)


def check_writer(suffix: str) -> None:
    """Say so if videos of a kind, `.mp4` or `.gif`, cannot be written.

    Raises:
        UserError: mp4 without ffmpeg or PyAV.
    """
    if suffix != ".mp4":
        return
    try:
        from timewalk.video.probe import executable
    except ImportError:
        raise UserError(
            "an mp4 needs PyAV and ffmpeg: pip install 'timewalk[video]', or write a gif."
        ) from None
    executable("ffmpeg")


def write_video(target: Path, frames: Iterable[np.ndarray], interval_ms: int) -> Path:
    """Write frames, uint8 (H, W, 3), as mp4 or gif, by the file's suffix."""
    if target.suffix == ".gif":
        return write_gif(target, frames, interval_ms)
    from timewalk.video.write import write_mp4

    write_mp4(target, frames, 1000 / interval_ms)
    return target


def write_gif(target: Path, frames: Iterable[np.ndarray], interval_ms: int) -> Path:
    """Write frames as an endless gif, each with the 256 colours that suit it best."""
    coloured = map(paletted, frames)
    with atomic_path(target) as temporary:
        next(coloured).save(
            temporary, "GIF", save_all=True, append_images=coloured, duration=interval_ms, loop=0
        )
    return target


def paletted(frame: np.ndarray) -> Image.Image:
    """Return a frame in its own 256 colours, those of bars and frames among them unchanged."""
    fixed = np.concatenate([COLOURS, paled(COLOURS), [GREY, paled(GREY), DARK, RED, PALE]])
    # Of a part of the pixels: the choice of colours takes much longer than their use.
    step = max(1, max(frame.shape) // SAMPLED)
    sample = Image.fromarray(frame[::step, ::step])
    own = sample.quantize(256 - len(fixed), Image.Quantize.MEDIANCUT).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*fixed.astype(np.uint8).flatten().tolist(), *(own or [])])
    return Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)


def plot_paths(target: Path, reference: Video, matches: Sequence[tuple[Video, Match]]) -> Path:
    """Write a plot: for each video its distances to the reference, nearest frames and path."""
    figures = needed("matplotlib.figure")
    columns = min(COLUMNS, len(matches))
    rows = -(-len(matches) // columns)
    figure = figures.Figure(figsize=(0.4 + 2.9 * columns, 0.5 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, (video, found) in zip(axes, matches, strict=False):
        _plot_path(place, reference, video, found)
    for place in axes[len(matches) :]:
        place.set_axis_off()
    for place in axes[::columns]:
        place.set_ylabel(f"{reference.name} (frame)", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save_figure(target, figure)


def _plot_path(axes: Any, reference: Video, video: Video, found: Match) -> None:
    axes.imshow(np.sqrt(found.distances), cmap="Greys_r", aspect="auto", interpolation="nearest")
    # White lies on dark cells, its edge on light ones.
    edge = [needed("matplotlib.patheffects").withStroke(linewidth=2.2, foreground="black")]
    for labels, draw in ((reference.labels, axes.axhline), (video.labels, axes.axvline)):
        for place in [] if labels is None else np.flatnonzero(np.diff(labels)):
            draw(place + 0.5, color="white", linewidth=0.9, path_effects=edge)
    every = np.arange(len(reference))
    axes.plot(found.nearest, every, ".", color="tab:cyan", markersize=2.5, label="nearest frame")
    axes.plot(*found.path.T[::-1], color="tab:orange", linewidth=1.2, label="time warping")
    axes.set_xlabel(f"{video.name} (frame)", fontsize=8)
    axes.tick_params(labelsize=7)
