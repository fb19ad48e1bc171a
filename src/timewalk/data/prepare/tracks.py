"""Videos of one object with a box a frame: GOT-10k, and generated ones in its layout.

Source: GOT-10k. ``<subset>/list.txt`` names the sequences; ``<subset>/<sequence>/`` holds
``00000001.jpg`` and so on, ``groundtruth.txt`` (x,y,w,h a line), ``cover.label``,
``absence.label``, ``cut_by_image.label`` and ``meta_info.ini``. Of the subset `test` only the first
box is given out. ``manifest.json`` (kind `labelled_tracks`) is small; ``sequences.jsonl`` beside it
has one sequence a line (:mod:`timewalk.data.tracks` reads both). The digest is over names and sizes
of frames, and the bytes of the other files.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timewalk.artefacts import sha256_file, write_manifest, write_text
from timewalk.config.dense import BoxVideos, GOT10k, GOT10kShapes
from timewalk.data.generated_tracks import moving_object, write_got10k
from timewalk.data.prepare.archive import fetched, located, unverified
from timewalk.data.prepare.base import check_output
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.generated import check_place, generating
from timewalk.data.prepare.headers import whole_size
from timewalk.data.prepare.videos import (
    Faults,
    Source,
    folder_frames,
    read_names,
    same_size,
)
from timewalk.data.sequences import LIST, why
from timewalk.data.tracks import FIRST, KIND, Track, frame_name, to_line
from timewalk.errors import UserError

log = logging.getLogger(__name__)

PUBLISHED = {"train": 9335, "val": 180, "test": 180}
"""sequences of each subset"""
LABELS = {"cover": 8, "absence": 1, "cut_by_image": 1}
"""files of one whole number a frame, and the largest number"""
ABOUT = "meta_info.ini"
BOXES = "groundtruth.txt"


@dataclass(frozen=True)
class Checked:
    """One sequence after the check; no track where it has faults."""

    track: Track | None
    digest: str
    faults: list[str]


def source_got10k(config: GOT10k) -> Source:
    """Return where GOT-10k is; it is given out after registration."""
    return Source(
        "GOT-10k",
        "http://got-10k.aitestunion.com",
        f"{config.subset}/list.txt and {config.subset}/<sequence>/00000001.jpg",
        needed=(config.subset,),
        inside=("GOT-10k", "GOT10k", "got10k", "full_data"),
    )


def prepare_tracks(name: str, config: BoxVideos, manifest: Path) -> dict[str, Any]:
    """Check a set of videos with boxes and write its manifest and list.

    Args:
        name: the set's name in the configuration, for messages.
        config: which layout, and where.
        manifest: ``manifest.json`` to write; ``sequences.jsonl`` goes beside it.

    Returns:
        The manifest.

    Raises:
        UserError: names the sequence, file or key, what is wrong with it and what to do.
    """
    parameters, published = config.model_dump(mode="json"), isinstance(config, GOT10k)
    if isinstance(config, GOT10kShapes):
        config = _generate(name, config, manifest)
    assert isinstance(config, GOT10k)
    source = source_got10k(config)
    root = located(name, config, source)
    check_output(name, root, manifest)
    listed = root / config.subset / "list.txt"
    names = read_names(name, listed)
    for item in names:
        if item in (".", "..") or "/" in item or "\\" in item:
            raise UserError(
                f"labelled.{name}: the list {listed} names {item!r}, which is no folder beside "
                "it; restore the published file."
            )
    tracks, digest = check_sequences(name, root, config.subset, names)
    archives = fetched(Path(config.root))
    warnings = unverified(source, config, archives)
    warnings += _warnings(tracks, PUBLISHED[config.subset] if published else None)
    for warning in warnings:
        log.warning("labelled.%s: %s", name, warning)
    write_text(manifest.parent / LIST, "".join(map(to_line, tracks)))
    return write_manifest(
        manifest,
        KIND,
        inputs={listed.relative_to(root).as_posix(): sha256_file(listed)} | archives,
        parameters=parameters,
        counts=counts(tracks),
        warnings=warnings,
        name=name,
        layout="got10k",
        subset=config.subset,
        classes=sorted({track.object_class for track in tracks if track.object_class}),
        source={
            "root": relative_to(root, manifest.parent),
            "list_sha256": sha256_file(manifest.parent / LIST),
        },
        digest=digest,
    )


def check_sequences(
    name: str, root: Path, subset: str, names: list[str]
) -> tuple[list[Track], str]:
    """Check every file of a subset, many at once.

    Returns:
        the sequences, and the digest over all files.

    Raises:
        UserError: names the first faulty sequences, what is wrong with them, and how many more
            faults there are.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(pool.map(lambda item: _check(root, subset, item), names))
    faults = Faults(name, root)
    faults.found = [fault for one in checked for fault in one.faults]
    faults.stop()
    digest = hashlib.sha256("".join(one.digest for one in checked).encode()).hexdigest()
    return [one.track for one in checked if one.track is not None], digest


def counts(tracks: list[Track]) -> dict[str, int]:
    """Return how many sequences, frames, boxes, classes, frames in which the object is not seen,
    and boxes that lie partly outside their frame there are."""
    covers = [track.cover for track in tracks if track.cover is not None]
    return {
        "sequences": len(tracks),
        "frames": sum(len(track.frames) for track in tracks),
        "boxes": sum(len(track.boxes) for track in tracks),
        "classes": len({track.object_class for track in tracks if track.object_class}),
        "unseen": sum(int((cover == 0).sum()) for cover in covers),
        "partly_outside": sum(int(_outside(track.boxes, track.size).sum()) for track in tracks),
    }


def _warnings(tracks: list[Track], expected: int | None) -> list[str]:
    found = []
    if expected is not None and len(tracks) != expected:
        found.append(f"the list names {_counted(len(tracks))}, the published one {expected}")
    other = [track.name for track in tracks if track.bound != track.size]
    if other:
        found.append(
            f"{_counted(len(other))} {'has' if len(other) == 1 else 'have'} frames of another "
            f"size than {ABOUT} says, by which boxes are cut in scoring: {', '.join(other[:3])}"
        )
    return found


def _counted(sequences: int) -> str:
    return f"{sequences} {'sequence' if sequences == 1 else 'sequences'}"


def _check(root: Path, subset: str, item: str) -> Checked:
    faults, place = Faults("", root), root / subset / item
    digest = hashlib.sha256()
    frames = folder_frames(place, [".jpg"], faults)
    for number in sorted(set(range(FIRST, max(frames, default=0) + 1)) - set(frames)):
        faults.add(place / frame_name(number), "is missing")
    size = (0, 0)
    for number, path in frames.items():
        if path.name != frame_name(number):
            faults.add(path, f"is not named {frame_name(number)}")
        found = _size(path, faults)
        size = size if any(size) or found is None else found
        same_size(path, found, size, faults)
        digest.update(f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n".encode())
    for file in (BOXES, *(f"{label}.label" for label in LABELS), ABOUT):
        if (path := place / file).is_file():
            digest.update(f"{path.relative_to(root).as_posix()}\t{sha256_file(path)}\n".encode())
    track = None
    if frames and not faults.found:
        track = _track(place, list(frames.values()), size, subset != "test", faults)
    return Checked(None if faults.found else track, digest.hexdigest(), faults.found)


def _size(path: Path, faults: Faults) -> tuple[int, int] | None:
    """Return (height, width) of a frame; None where it is no whole image."""
    try:
        return whole_size(path)
    except (OSError, SyntaxError, ValueError) as error:
        faults.add(path, f"cannot be read ({why(error)})")
        return None


def _track(
    place: Path, frames: list[Path], size: tuple[int, int], labelled: bool, faults: Faults
) -> Track:
    labels = {
        label: _read_label(place / f"{label}.label", most, len(frames), labelled, faults)
        for label, most in LABELS.items()
    }
    cover, about = labels["cover"], _read_about(place / ABOUT, labelled, faults)
    boxes = _read_boxes(place / BOXES, faults)
    withheld = len(boxes) == 1 and not labelled
    if boxes.size and len(boxes) != len(frames) and not withheld:
        faults.add(place / BOXES, f"has {len(boxes)} lines, but there are {len(frames)} frames")
    elif boxes.size:
        _check_boxes(place, boxes, size, cover, faults)
    bound = _resolution(place / ABOUT, about, faults) or size
    return Track(
        place.name, tuple(frames), size, boxes, bound, cover, about.get("object_class") or None
    )


def _check_boxes(
    place: Path,
    boxes: np.ndarray,
    size: tuple[int, int],
    cover: np.ndarray | None,
    faults: Faults,
) -> None:
    """Note boxes that no tracker can begin with or be compared with.

    Outside the image in part is legal, and so is any box in a frame in which nothing is seen.
    """
    path = place / BOXES
    seen = np.ones(len(boxes), bool)
    if cover is not None and len(cover) == len(boxes):
        seen = cover > 0
    seen[0] = True
    for index in np.flatnonzero(seen & ~np.isfinite(boxes).all(axis=1))[:1]:
        faults.add(path, f"line {index + 1} has a number that is not finite")
    for index in np.flatnonzero(seen & (boxes[:, 2:] < 0).any(axis=1))[:1]:
        faults.add(path, f"line {index + 1} has a negative width or height")
    low = np.maximum(boxes[0, :2], 0)
    high = np.minimum(boxes[0, :2] + boxes[0, 2:], size[::-1])
    if not (high > low).all():
        faults.add(
            path,
            f"begins with a box without area in the frame, so '{place.name}' cannot be tracked",
        )


def _outside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which boxes lie partly outside the frame, bool (T,)."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    return np.asarray((low < 0).any(axis=1) | (high > size[::-1]).any(axis=1))


def _read_boxes(path: Path, faults: Faults) -> np.ndarray:
    """Return boxes, float64 (lines, 4); none where the file has a fault."""
    rows = []
    for number, line in enumerate(_lines(path, faults, needed=True), start=1):
        words = line.split(",")
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != 4:
            faults.add(path, f"line {number} is {line[:60]!r}, not x,y,w,h")
            return np.empty((0, 4))
    return np.array(rows, np.float64).reshape(-1, 4)


def _read_label(
    path: Path, most: int, frames: int, needed: bool, faults: Faults
) -> np.ndarray | None:
    """Return one whole number a frame, int64 (T,); None where there is no file."""
    before = len(faults.found)
    lines = _lines(path, faults, needed)
    if len(faults.found) > before or not path.is_file():
        return None
    if len(lines) != frames:
        faults.add(path, f"has {len(lines)} lines, but there are {frames} frames")
        return None
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or int(line) > most:
            faults.add(path, f"line {number} is {line[:60]!r}, not a number from 0 to {most}")
            return None
    return np.array([int(line) for line in lines])


def _read_about(path: Path, needed: bool, faults: Faults) -> dict[str, str]:
    """Return the `key: value` lines of a sequence's description."""
    pairs = [line.partition(":") for line in _lines(path, faults, needed) if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _resolution(path: Path, about: Mapping[str, str], faults: Faults) -> tuple[int, int] | None:
    """Return (height, width) from `resolution: (width, height)`; None where there is none."""
    if "resolution" not in about:
        return None
    found = re.fullmatch(r"\(?\s*(\d+)\s*,\s*(\d+)\s*\)?", about["resolution"])
    if found is None or 0 in (sides := (int(found[2]), int(found[1]))):
        faults.add(path, f"has the resolution {about['resolution'][:60]!r}, not (width, height)")
        return None
    return sides


def _lines(path: Path, faults: Faults, needed: bool) -> list[str]:
    """Return the lines of a text file that are not empty; a missing one is a fault if needed."""
    if not path.is_file():
        if needed:
            faults.add(path, "is missing")
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        faults.add(path, "is no UTF-8 text")
        return []
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        faults.add(path, "is empty")
    return lines


def _generate(name: str, config: GOT10kShapes, manifest: Path) -> GOT10k:
    """Write the generated videos anew and return how to read them.

    Raises:
        UserError: a folder that was not generated stands in their place.
    """
    root = manifest.parent / "GOT-10k"
    check_place(name, root, manifest, config.kind)
    rngs = np.random.default_rng(config.seed).spawn(config.sequences)
    size = (config.height, config.width)
    videos = {
        f"GOT-10k_Val_{i + 1:06d}": moving_object(config.frames, size, i, rng)
        for i, rng in enumerate(rngs)
    }
    with generating(root, config.kind) as folder:
        write_got10k(folder, videos)
    return GOT10k(kind="got10k", root=str(root))
