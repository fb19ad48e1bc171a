"""Folders of images to TFRecords of the TCC schema, as TCC's `images_to_tfrecords` writes them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from timewalk.artefacts import sha256_file, sha256_json
from timewalk.data.images import to_rgb
from timewalk.data.record_writer import FASTEST, SLOWEST, Pixels, RecordSettings, write_record_set
from timewalk.errors import UserError, reason


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, each a frame; sorted by name, `k`-th at `k / fps` seconds."""

    place: Path
    files: tuple[str, ...] = field(repr=False)
    fps: float

    @property
    def name(self) -> str:
        """Return the folder's base name."""
        return self.place.name

    def stamp(self) -> list[Any]:
        """Return names, lengths and times of change of the images."""
        found = ((file, (self.place / file).stat()) for file in self.files)
        return [self.fps, *([file, stat.st_size, stat.st_mtime_ns] for file, stat in found)]

    def sha256(self) -> str:
        """Return the digest over names and digests of the images."""
        return sha256_json([[file, sha256_file(self.place / file)] for file in self.files])

    def frames(self) -> Iterator[tuple[float, Pixels]]:
        """Yield the images with their times."""
        for number, file in enumerate(self.files):
            yield number / self.fps, _read_image(self.place / file)


def _read_image(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(to_rgb(image))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path} cannot be read as an image ({reason(error).split('<')[0].strip()}); replace "
            "or remove it."
        ) from None


def convert_folders(
    root: Path,
    output: Path,
    name: str,
    settings: RecordSettings,
    *,
    listing: Path | None = None,
    extension: str = "jpg",
    fps: float = 30.0,
    workers: int = 1,
) -> dict[str, Any]:
    """Write folders of images, each a video, as TFRecords; return their manifest.

    Args:
        root: folder of the folders.
        output: folder to write.
        name: prefix of the files, by convention ``<data set>_<split>``.
        settings: what both converters share.
        listing: text file, a folder relative to ``root`` on each line, in order; blank lines are
            passed over. None: all folders in ``root`` that hold such images, by name.
        extension: of the images, with or without its dot, in upper or lower case; `jpg` is `jpeg`
            too.
        fps: frames a second, which gives the times.
        workers: threads; the files do not depend on it.

    Raises:
        UserError: no such folder, one without images, an image that cannot be read.
    """
    if not SLOWEST <= fps <= FASTEST:
        raise UserError(
            f"--fps: {fps:g} is not between {SLOWEST:g} and {FASTEST:g}; images need a rate, which "
            "times them."
        )
    suffix = "." + extension.lstrip(".")
    found = folders_of_images(root, suffix) if listing is None else _listed(root, listing, suffix)
    if not found:
        raise UserError(f"{root} holds no folder with {suffix} images; see --extension.")
    sources = [ImageFolder(place, tuple(files), fps) for place, files in found]
    return write_record_set(
        sources,
        output,
        name,
        settings,
        about={
            "source": "folders of images",
            "extension": suffix,
            "fps": fps,
            "times": "number of the image / fps",
        },
        inputs={} if listing is None else {"list": sha256_file(listing)},
        warnings=[warning for source in sources for warning in _unpadded(source)],
        workers=workers,
    )


def folders_of_images(root: Path, suffix: str) -> list[tuple[Path, list[str]]]:
    """Return the folders directly in ``root`` that hold images, and their images, by name."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder; name the folder of the videos or of their folders.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [(folder, _images(folder, suffix)) for folder in folders]
    return [(folder, files) for folder, files in found if files]


def _listed(root: Path, listing: Path, suffix: str) -> list[tuple[Path, list[str]]]:
    if not listing.is_file():
        raise UserError(f"{listing} is missing: --list names a text file, a folder on each line.")
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--list: {listing} is no UTF-8 text; save it as UTF-8.") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        folder = root / line.strip()
        where = f"{listing}, line {number}"
        if folder == root or folder.name in ("", ".."):
            raise UserError(f"{where}: '{line.strip()}' has no name of its own; name a folder.")
        if not folder.is_dir():
            raise UserError(f"{where}: {folder} is no folder; correct the line or --list's root.")
        if not (files := _images(folder, suffix)):
            raise UserError(f"{where}: {folder} holds no {suffix} file; see --extension.")
        found.append((folder, files))
    if not found:
        raise UserError(f"{listing} names no folder; write one on each line.")
    return found


def _images(folder: Path, suffix: str) -> list[str]:
    suffixes = (".jpg", ".jpeg") if suffix.lower() == ".jpg" else (suffix.lower(),)
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if name.lower().endswith(suffixes) and name[0] != ".")


def _unpadded(source: ImageFolder) -> Iterator[str]:
    """Say where numbers in the names would order the frames otherwise, as 2 before 10."""
    for earlier, later in pairwise(source.files):
        if _numbers(later) < _numbers(earlier):
            yield (
                f"{source.place}: images are ordered by name, '{earlier}' before '{later}', not "
                "by number; pad the numbers if that is wrong"
            )
            return


def _numbers(file: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", file)]
