"""GOT-10k's result files as the official toolkit writes and reads them, tables, and pictures.

Source: GOT-10k's toolkit. `<tracker>/<sequence>/<sequence>_001.txt` has a box x,y,w,h a line with
three decimals, `<sequence>_time.txt` seconds a frame with eight; `<tracker>.zip` holds the folders
of the sequences, as the authors' server takes them.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from timewalk.artefacts import atomic_path, write_text
from timewalk.data.sequences import read_frame
from timewalk.data.tracks import LabelledTracks, Track
from timewalk.errors import UserError
from timewalk.evaluation.base import write_csv
from timewalk.evaluation.pictures import grid, needed, save_figure, save_png
from timewalk.metrics.tracking import (
    THRESHOLDS,
    counted,
    frames_per_second,
    overlaps,
    pooled,
    scores,
    success_curve,
)

EPOCH = (1980, 1, 1, 0, 0, 0)
"""of files in the zip, so that the same boxes give the same bytes"""
COLUMNS, ROWS = 4, 2
"""frames in the picture of a sequence"""
HEIGHT = 240
"""pixels, at most, of a frame in it"""
TRUE, PREDICTED = "white", (255, 60, 40)


class Records:
    """The result files of a tracker.

    Args:
        folder: `GOT-10k/<tracker>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.tracker = folder, folder.name
        self.zip_path = folder.parent / f"{folder.name}.zip"

    def paths(self, name: str) -> tuple[Path, Path]:
        """Return where the boxes and the times of a sequence are."""
        place = self.folder / name
        return place / f"{name}_001.txt", place / f"{name}_time.txt"

    def complete(self, name: str) -> bool:
        """Return whether both files of a sequence are there."""
        return all(path.is_file() for path in self.paths(name))

    def write(self, name: str, boxes: np.ndarray, seconds: np.ndarray) -> None:
        """Write boxes (T, 4) and seconds (T,) of a sequence."""
        box_path, time_path = self.paths(name)
        lines = (",".join(f"{value:.3f}" for value in box) for box in boxes)
        write_text(box_path, "".join(f"{line}\n" for line in lines))
        write_text(time_path, "".join(f"{value:.8f}\n" for value in seconds))

    def boxes(self, name: str) -> np.ndarray:
        """Return the boxes of a sequence, float64 (T, 4), as they are in the file.

        Raises:
            UserError: it does not hold four numbers a line.
        """
        path = self.paths(name)[0]
        try:
            return np.loadtxt(path, delimiter=",", ndmin=2).reshape(-1, 4)
        except ValueError:
            raise UserError(
                f"{path} does not hold x,y,w,h in every line; delete it and evaluate again."
            ) from None

    def seconds(self, name: str) -> np.ndarray:
        """Return the seconds of each frame of a sequence, float64 (T,)."""
        return np.loadtxt(self.paths(name)[1], ndmin=1)

    def write_zip(self, names: Sequence[str]) -> Path:
        """Write the zip for the server, of the files of these sequences."""
        with (
            atomic_path(self.zip_path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in names:
                for path in self.paths(name):
                    item = zipfile.ZipInfo(f"{name}/{path.name}", EPOCH)
                    packed.writestr(item, path.read_bytes(), zipfile.ZIP_DEFLATED)
        return self.zip_path


def read_overlaps(records: Records, track: Track) -> np.ndarray:
    """Return the overlaps of a sequence's frames that count, from its result file.

    Raises:
        UserError: another number of boxes than frames.
    """
    predicted = records.boxes(track.name)
    if len(predicted) != len(track.boxes):
        raise UserError(
            f"{records.paths(track.name)[0]} has {len(predicted)} boxes, but '{track.name}' has "
            f"{len(track.boxes)} frames; delete it and evaluate again."
        )
    each = overlaps(predicted, track.boxes, track.bound)
    return each[counted(len(each), track.cover)]


def write_tables(
    folder: Path,
    tracks: LabelledTracks,
    found: Mapping[str, np.ndarray],
    lost: Mapping[str, int],
    records: Records,
) -> list[Path]:
    """Write `sequences.csv` and `success_curve.csv`, shares in percent.

    Args:
        folder: where to.
        tracks: the set.
        found: overlaps that count of each sequence.
        lost: frames of each sequence in which nothing was left of the object.
        records: of the times.
    """

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.4f}"

    columns = ["sequence", "object_class", "frames", "counted", "lost", "ao", "sr50", "sr75", "fps"]
    rows: list[list[object]] = [list(columns)]
    for track in tracks:
        overlap = found[track.name]
        speed = frames_per_second(records.seconds(track.name))
        about = [track.name, track.object_class or "", len(track.frames), len(overlap)]
        own = [percent(share) for share in scores(overlap).values()]
        rows.append([*about, lost[track.name], *own, "" if speed is None else f"{speed:.2f}"])
    curve = success_curve(pooled(found.values()))
    points = [[f"{at:.2f}", percent(share)] for at, share in zip(THRESHOLDS, curve, strict=True)]
    return [
        write_csv(folder / "sequences.csv", rows),
        write_csv(folder / "success_curve.csv", [["threshold", "success"], *points]),
    ]


def draw_curve(path: Path, overlap: np.ndarray, tracker: str) -> Path:
    """Plot the success curve of overlaps that count."""
    figure = needed("matplotlib.figure").Figure(figsize=(5, 4))
    axes = figure.subplots()
    mean = f"{overlap.mean():.3f}" if len(overlap) else "none"
    axes.plot(THRESHOLDS, success_curve(overlap), label=f"{tracker}: AO {mean}")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="overlap threshold", ylabel="success rate")
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower left")
    return save_figure(path, figure)


def spread(tracks: Sequence[Track], number: int) -> list[Track]:
    """Return at most so many sequences, spread evenly over the list."""
    number = min(number, len(tracks))
    return [tracks[place * len(tracks) // number] for place in range(number)]


def draw_track(folder: Path, records: Records, track: Track) -> Path:
    """Draw frames of a sequence, spread over it, with the predicted box in red and the true one in
    white, as `<folder>/<sequence>.png`."""
    predicted = records.boxes(track.name)
    last, cells = len(track.frames) - 1, COLUMNS * ROWS
    chosen = sorted({round(place * last / (cells - 1)) for place in range(cells)})
    frames = []
    for index in chosen:
        frames.append(_with_boxes(track, index, predicted[index]))
    rows = [frames[start : start + COLUMNS] for start in range(0, len(frames), COLUMNS)]
    return save_png(folder / f"{track.name}.png", grid(rows))


def _with_boxes(track: Track, index: int, predicted: np.ndarray) -> np.ndarray:
    """Return a frame, uint8 (h, w, 3), at most `HEIGHT` high, with boxes and its number."""
    image = Image.fromarray(read_frame(track.frames[index], track.size))
    scale = min(1.0, HEIGHT / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    draw = ImageDraw.Draw(image)
    if index < len(track.boxes):
        _rectangle(draw, scale * track.boxes[index], TRUE)
    _rectangle(draw, scale * predicted, PREDICTED)
    draw.text((3, 2), str(index + 1), fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def _rectangle(
    draw: ImageDraw.ImageDraw, box: np.ndarray, colour: str | tuple[int, int, int]
) -> None:
    if np.isfinite(box).all() and (box[2:] > 0).all():
        x, y, width, height = box
        draw.rectangle((x, y, x + width, y + height), outline=colour, width=2)
