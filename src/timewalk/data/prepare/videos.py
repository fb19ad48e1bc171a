"""Labelled videos: what the layouts share, from a list of names to a checked index.

Each layout's file finds sequences (frames and masks paired by name); here every file is checked:
sizes and modes from the headers, masks by their bytes; the first mask of a sequence is decoded,
and every one where its ids need a category.
The digest is over names and sizes of frames and joints, and the bytes of masks.
"""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from PIL import Image

from timewalk.artefacts import sha256_file, write_text
from timewalk.config import PublishedVideos
from timewalk.data.sequences import ID_MODES, NO_IDS, VOID, to_row, why
from timewalk.data.sequences import Sequence as Video
from timewalk.errors import UserError

SHOWN = 3
"""faults that a message names"""
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})


@dataclass
class Layout:
    """A set as it was found.

    Attributes:
        root: folder of the published layout.
        subset: which part; empty where there is only one.
        videos: sequences; sizes follow from the check.
        lists: files that name the sequences.
        classes: name of each class by id, from 0, where ids or categories are classes of the set.
        ids: whether masks hold ids; otherwise any gray or colour image is a foreground.
        warnings: sentences for a person.
        split: what is recorded of a part that was drawn by a seed.
    """

    root: Path
    subset: str
    videos: list[Video]
    lists: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    ids: bool = True
    warnings: list[str] = field(default_factory=list)
    split: dict[str, Any] | None = None


@dataclass(frozen=True)
class Checked:
    """One sequence after the check."""

    video: Video
    objects: int
    digest: str
    faults: list[str]


class Faults:
    """What is wrong with a set, gathered so that one message tells how much it is."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.found: list[str] = []

    def add(self, path: Path | str, what: str) -> None:
        """Note a fault of a file, named from the root on."""
        place = path.relative_to(self.root).as_posix() if isinstance(path, Path) else path
        self.found.append(f"{place} {what}")

    def stop(self) -> None:
        """Raise a :class:`UserError` if there is any fault."""
        if not self.found:
            return
        shown = "; ".join(self.found[:SHOWN])
        rest = len(self.found) - SHOWN
        more = f"; and {rest} {'fault' if rest == 1 else 'faults'} more" if rest > 0 else ""
        raise UserError(
            f"labelled.{self.name}: in {self.root}, {shown}{more}: restore the published files."
        )


@dataclass(frozen=True)
class Archive:
    """A published file to fetch.

    Attributes:
        url: its stable public address.
        holds: folder that it brings; an archive whose folder is there is not fetched.
        sha256: its digest; None where none is published.
    """

    url: str
    holds: str
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a set is and what it looks like.

    Attributes:
        title: what it is called.
        page: its authors' page.
        tree: the layout in a few words, for messages.
        needed: folders below the root that make it the set.
        inside: folders that may stand between the configured root and the layout.
        archives: what is fetched from its authors' address; none where there is no stable one.
    """

    title: str
    page: str
    tree: str
    needed: tuple[str, ...]
    inside: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()


def find_root(root: Path, source: Source) -> Path | None:
    """Return the folder that holds the layout: the root itself, or one known inside it."""
    for folder in (root, *(root / name for name in source.inside)):
        if all((folder / name).is_dir() for name in source.needed):
            return folder
    return None


def folders_in(place: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted; none where there is none."""
    if not place.is_dir():
        return []
    return sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_names(name: str, path: Path, key: str = "subset", what: str = "sequence") -> list[str]:
    """Return the names of a list file, one a line.

    Args:
        name: the set's name in the configuration, for messages.
        path: the list.
        key: the key that chose it.
        what: of what it is a list.

    Raises:
        UserError: no such file, no UTF-8 text, no name in it, or a name twice.
    """
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob(f"*{path.suffix}"))
        known = f" (there are: {', '.join(there[:5])})" if there else ""
        raise UserError(
            f"labelled.{name}: the list {path} is missing{known}; restore it or correct '{key}'."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"labelled.{name}: the list {path} is no UTF-8 text; save it as UTF-8."
        ) from None
    names = [line.strip() for line in text.split("\n") if line.strip()]
    twice = [line for line, count in Counter(names).items() if count > 1]
    if not names or twice:
        fault = f"names '{twice[0]}' twice" if twice else f"names no {what}"
        raise UserError(f"labelled.{name}: the list {path} {fault}; restore the published file.")
    return names


def choose(name: str, config: PublishedVideos, listed: Iterable[str]) -> list[str]:
    """Return the listed sequences that the key `sequences` asks for, in the list's order."""
    listed = list(listed)
    if unknown := sorted(set(config.sequences) - set(listed)):
        raise UserError(
            f"labelled.{name}.sequences: '{unknown[0]}' is not among the {len(listed)} sequences "
            "of this subset; remove it."
        )
    return [item for item in listed if not config.sequences or item in config.sequences]


def images_in(folder: Path, suffixes: Iterable[str] = IMAGES) -> list[Path]:
    """Return the visible images of a folder, sorted by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    wanted = tuple(suffixes)
    return [folder / name for name in names if name.lower().endswith(wanted)]


def by_number(
    paths: Iterable[Path], faults: Faults, text: Callable[[Path], str] = lambda path: path.stem
) -> dict[int, Path]:
    """Return files in the order of the whole number that ``text`` finds in their names."""
    found: dict[int, Path] = {}
    for path in paths:
        digits = text(path)
        if not digits.isdecimal():
            faults.add(path, "has no frame number for a name")
        elif int(digits) in found:
            faults.add(path, f"has the number of {found[int(digits)].name}")
        else:
            found[int(digits)] = path
    return dict(sorted(found.items()))


def last_number(path: Path) -> str:
    """Return the last run of digits of a file's stem; empty where there is none."""
    return next(iter(re.findall(r"\d+", path.stem)[-1:]), "")


def folder_frames(
    place: Path,
    suffixes: Iterable[str],
    faults: Faults,
    text: Callable[[Path], str] = lambda path: path.stem,
) -> dict[int, Path]:
    """Return the frames of a folder by number; a missing or empty folder is a fault."""
    frames = by_number(images_in(place, suffixes), faults, text)
    if not frames:
        faults.add(place, "holds no frame" if place.is_dir() else "is missing")
    return frames


Key = TypeVar("Key", int, str)


def pair(
    frames: Mapping[Key, Path],
    masks: Mapping[Key, Path],
    faults: Faults,
    *,
    every: bool,
    folder: Path,
) -> tuple[tuple[Path, ...], tuple[Path | None, ...]]:
    """Return frames and their masks, paired by number or name.

    Args:
        frames: frames by number or name.
        masks: masks likewise.
        faults: where masks without a frame, and missing masks, are noted.
        every: whether every frame needs a mask; otherwise one at all is enough.
        folder: where the masks are, for messages.
    """
    places: set[str] = {path.parent.relative_to(faults.root).as_posix() for path in frames.values()}
    for key in sorted(set(masks) - set(frames)):
        faults.add(masks[key], " in ".join(["has no frame", *sorted(places)]))
    if not masks and frames:
        faults.add(folder, "holds no mask")
    for key in sorted(set(frames) - set(masks)) if every and masks else []:
        faults.add(frames[key], f"has no mask in {folder.relative_to(faults.root).as_posix()}")
    return tuple(frames.values()), tuple(masks.get(key) for key in frames)


def check_layout(name: str, layout: Layout) -> list[Checked]:
    """Check every file of a set, many at once.

    Raises:
        UserError: no sequence at all; or names the first faulty files, what is wrong with them,
            and how many more there are.
    """
    if not layout.videos:
        raise UserError(
            f"labelled.{name}: {layout.root} holds no sequence of this subset; restore the "
            "published files or correct 'subset'."
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(pool.map(lambda video: _check(video, layout), layout.videos))
    faults = Faults(name, layout.root)
    faults.found = [fault for one in checked for fault in one.faults]
    faults.stop()
    return checked


def _check(video: Video, layout: Layout) -> Checked:
    faults = Faults("", layout.root)
    digest = hashlib.sha256()

    def add(path: Path, content: str) -> None:
        digest.update(f"{path.relative_to(layout.root).as_posix()}\t{content}\n".encode())

    size = (0, 0)
    for path in video.frames:
        found = header(path, faults)
        size = size if any(size) or found is None else found
        same_size(path, found, size, faults)
        add(path, str(path.stat().st_size))
    objects: set[int] = set()
    for masks in (video.masks, *video.layers):
        first = True
        for mask in masks:
            if mask is None:
                continue
            data = mask.read_bytes()
            decode = first or bool(video.categories)
            ids = _check_mask(mask, data, size, layout.ids, decode, faults)
            for unknown in sorted(ids - set(video.categories)) if video.categories else []:
                faults.add(mask, f"holds the id {unknown}, which has no category")
            objects |= ids if layout.ids else {len(objects) + 1} if first else set()
            first = False
            add(mask, hashlib.sha256(data).hexdigest())
    if video.joints is not None:
        add(video.joints, sha256_file(video.joints))
    return Checked(replace(video, size=size), len(objects), digest.hexdigest(), faults.found)


def header(path: Path, faults: Faults) -> tuple[int, int] | None:
    """Return (height, width) without decoding."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        faults.add(path, f"cannot be read ({why(error)})")
        return None


def same_size(
    path: Path, found: tuple[int, int] | None, size: tuple[int, int], faults: Faults
) -> None:
    """Note a frame or mask of another size than its sequence's first frame."""
    if found is not None and any(size) and found != size:
        faults.add(
            path, f"is {found[1]}x{found[0]} pixels, its sequence's first frame {size[1]}x{size[0]}"
        )


def _check_mask(
    path: Path, data: bytes, size: tuple[int, int], ids: bool, decode: bool, faults: Faults
) -> set[int]:
    """Return the ids of a mask that was decoded, without background and void."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            same_size(path, (image.height, image.width), size, faults)
            if ids and image.mode not in ID_MODES:
                faults.add(path, NO_IDS.format(image.mode))
                return set()
            if image.format == "PNG" and b"IEND" not in data:
                faults.add(path, "cannot be read (it breaks off)")
                return set()
            if decode or image.format != "PNG":
                present = {int(value) for value in np.unique(np.asarray(image))}
                return present - {0, VOID}
    except (OSError, SyntaxError, ValueError) as error:
        faults.add(path, f"cannot be read ({why(error)})")
    return set()


def write_index(path: Path, checked: Iterable[Checked], root: Path) -> str:
    """Write the list of sequences, one JSON a line; return its SHA-256."""
    rows = (json.dumps(to_row(one.video, root), ensure_ascii=False) for one in checked)
    write_text(path, "".join(f"{row}\n" for row in rows))
    return sha256_file(path)


def counts(checked: Sequence[Checked]) -> dict[str, int]:
    """Return how many sequences, frames, annotated frames and objects there are."""
    videos = [one.video for one in checked]
    return {
        "sequences": len(videos),
        "frames": sum(len(video.frames) for video in videos),
        "masks": sum(mask is not None for video in videos for mask in video.masks),
        "objects": sum(one.objects for one in checked),
    }


def missing(name: str, root: Path, source: Source, besides: str = "") -> NoReturn:
    """Raise the message for a set that is not where it is said to be.

    ``besides`` is what an official archive needs beside the key `url`.
    """
    fault = f"there is no folder {root}"
    if root.is_dir():
        absent = next(needed for needed in source.needed if not (root / needed).is_dir())
        fault = f"{root} holds no {absent}"
    fetch = f", or set the key 'url' to 'official'{besides}" if source.archives else ""
    raise UserError(
        f"labelled.{name}.root: {fault}; get {source.title} from {source.page} so that it holds "
        f"{source.tree}{fetch}, or correct the path."
    )
