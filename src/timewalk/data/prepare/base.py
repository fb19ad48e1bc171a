"""What every kind of labelled set comes to, and the check of an image."""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from timewalk.artefacts import write_text
from timewalk.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)


@dataclass
class Prepared:
    """A checked set.

    Attributes:
        classes: name of each class; its position is its label.
        labels: per split, `train` and `test`, the label of each image.
        source: where the images are, for :class:`timewalk.data.labelled.LabelledImages`.
        digest: SHA-256 over all images and labels.
        inputs: files that the set was made from, with digests.
        skipped: files that were left out.
        warnings: sentences for a person.
    """

    classes: list[str]
    labels: dict[str, list[int]]
    source: dict[str, Any]
    digest: str
    inputs: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    warnings: list[str] = field(default_factory=list)


def check_image(path: Path) -> str:
    """Decode an image and return its file's SHA-256.

    Raises:
        UserError: it cannot be read to its end.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            # At an eighth of its size a JPEG is still read to its end, in a quarter of the time.
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = str(error).split("<")[0].strip()
        raise UserError(
            f"{path} cannot be read as an image ({reason}); replace or remove it."
        ) from None
    return hashlib.sha256(data).hexdigest()


def check_videos(
    name: str, dataset: str, frames: Mapping[str, Path], key: str, named: Iterable[str]
) -> None:
    """Check the frames that a set is made of, and the videos that one of its keys names.

    Raises:
        UserError: there are none, or the key names another video.
    """
    if not frames:
        raise UserError(f"labelled.{name}: no frames of the data set '{dataset}' were given.")
    if unknown := sorted(set(named) - set(frames)):
        raise UserError(
            f"labelled.{name}.{key}: '{unknown[0]}' is no video of the data set '{dataset}'; "
            "remove it."
        )


def write_list(path: Path, labels: Sequence[int], files: Sequence[str]) -> None:
    """Write `label<TAB>path` lines, atomically."""
    for file in files:
        if "\n" in file or "\r" in file:
            raise UserError(f"{file!r} has a line break in its name; rename it.")
    rows = (f"{label}\t{file}\n" for label, file in zip(labels, files, strict=True))
    write_text(path, "".join(rows))


def read_list(path: Path) -> tuple[list[int], list[str]]:
    """Read what :func:`write_list` wrote: labels and paths."""
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the prepare stage again.") from None
    pairs = [row.split("\t", 1) for row in rows]
    return [int(label) for label, _ in pairs], [file for _, file in pairs]


def set_digest(items: Sequence[tuple[str, int, str]]) -> str:
    """Return the SHA-256 over (path, label, SHA-256 of the image) of a whole set."""
    digest = hashlib.sha256()
    for file, label, content in items:
        digest.update(f"{file}\t{label}\t{content}\n".encode())
    return digest.hexdigest()


def check_output(name: str, root: Path, manifest: Path) -> None:
    """Refuse to write a manifest and its lists into the set itself.

    Raises:
        UserError: names the folder.
    """
    inside, folder = root.resolve(), manifest.parent.resolve()
    if folder == inside or inside in folder.parents:
        raise UserError(
            f"labelled.{name}: {manifest} would be written into the set itself; name another "
            "folder for it, or move the set."
        )
