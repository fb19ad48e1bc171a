"""Walks through folders of images: links are followed, hidden files and folders passed over."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from timewalk.errors import UserError


def walk_images(root: Path, suffixes: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder that holds images, relative to ``root``, and the images' names.

    Hidden files and folders are passed over; links are followed, but not in circles.

    Raises:
        UserError: a folder cannot be read, or an image has a line break in its name.
    """
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        # A link may lead back up.
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if found := image_names(Path(folder), names, suffixes):
            yield Path(folder).relative_to(root).as_posix(), found


def image_names(folder: Path, names: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """Return the names of a folder's images, by suffix and in no order."""
    found = [
        name for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes
    ]
    for name in found:
        if "\n" in name or "\r" in name:
            raise UserError(f"{name!r} in {folder} has a line break in its name; rename it.")
    return found


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): correct its rights.")
