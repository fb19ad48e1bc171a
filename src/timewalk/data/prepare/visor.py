"""VISOR: hands and objects in kitchens, in the structure of DAVIS, and how its archives get there.

``JPEGImages/<level>/<video>/*.jpg``, ``Annotations/<level>/<video>/*.png``, and
``ImageSets/2022/<subset>.txt`` where there are lists. Source: VISOR. Frames keep their published
names, such as ``P01_01_frame_0000000140.jpg``: their order is that of the last number in them. The
archives are unpacked into a cache and their files linked; nothing is moved, renamed or deleted.
"""

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from timewalk.artefacts import (
    atomic_path,
    read_json,
    sha256_file,
    write_json,
    write_manifest,
    write_text,
)
from timewalk.check import check
from timewalk.config import VISOR
from timewalk.data.prepare.archive import DAMAGED, unpack
from timewalk.data.prepare.videos import (
    Faults,
    Layout,
    Source,
    by_number,
    choose,
    folder_frames,
    folders_in,
    images_in,
    last_number,
    pair,
    read_names,
)
from timewalk.data.sequences import Sequence
from timewalk.errors import UserError, reason

log = logging.getLogger(__name__)

TREE = "VISOR_2022"
NOTE = ".archive.json"
SUBSETS = ("train", "val", "test")
FOLDER_OF = {".jpg": "JPEGImages", ".png": "Annotations"}


def source_visor(config: VISOR) -> Source:
    """Return where VISOR is; the masks are made by its authors' converter."""
    level = config.level
    return Source(
        "VISOR (EPIC-KITCHENS)",
        "https://epic-kitchens.github.io/VISOR",
        f"JPEGImages/{level}/<video>/<frame>.jpg and Annotations/{level}/<video>/<frame>.png",
        needed=(f"JPEGImages/{level}", f"Annotations/{level}"),
        inside=(TREE,),
    )


def find_visor(name: str, config: VISOR, root: Path) -> Layout:
    """Return the sequences of a subset, or of every folder of frames.

    Raises:
        UserError: a missing list, or a folder, frame or mask without its partner.
    """
    images, masks = (root / kind / config.level for kind in ("JPEGImages", "Annotations"))
    names, lists = folders_in(images), []
    faults = Faults(name, root)
    if config.subset is not None:
        lists = [root / "ImageSets" / "2022" / f"{config.subset}.txt"]
        names = read_names(name, lists[0])
    else:
        for item in sorted(set(folders_in(masks)) - set(names)):
            faults.add(masks / item, f"has no folder of frames in JPEGImages/{config.level}")
    videos = []
    for item in choose(name, config, names):
        frames = folder_frames(images / item, [".jpg"], faults, last_number)
        truth = by_number(images_in(masks / item, [".png"]), faults, last_number)
        paths, paired = pair(frames, truth, faults, every=True, folder=masks / item)
        videos.append(Sequence(item, paths, paired, (0, 0)))
    faults.stop()
    return Layout(root, config.subset or "", videos, lists)


def convert_visor(archives: Path, output: Path, level: str = "480p") -> dict[str, Any]:
    """Unpack VISOR's archives and link their files into the structure of DAVIS.

    Each archive is one video: its .jpg files are frames, its .png files masks, at any depth. What
    is unpacked already is not unpacked again. Images keep their size whatever the level's name.
    A list of other videos that is there already is never replaced.

    Args:
        archives: folder with ``<video>.zip``, at any depth; a folder `train`, `val` or `test` above
            an archive, or else this folder's own name, says which list its video goes to.
        output: gets ``cache/``, ``VISOR_2022/`` and ``manifest.json``.
        level: name of the folder above the videos.

    Returns:
        The manifest, of kind `visor`.

    Raises:
        UserError: no archive, or none with images; a damaged one, or one that was changed since it
            was unpacked; two files of one name in a video; another file in a link's place; a video
            for two lists; a list of other videos; a level that is no folder's name.
    """
    check(VISOR, {"kind": "visor", "root": str(output), "level": level}, "visor")
    packed = _packed(archives, output)
    tree = output / TREE
    subsets: dict[str, set[str]] = defaultdict(set)
    count = {".jpg": 0, ".png": 0}
    inputs, bare = {}, []
    for path in packed:
        place = path.relative_to(archives)
        folder = output / "cache" / place
        inputs[place.as_posix()] = _unpacked(path, folder)
        found = _images(path, folder)
        if not any(found.values()):
            bare.append(place.as_posix())
        for subset in _subsets(place, archives) if found[".jpg"] else ():
            subsets[subset].add(path.stem)
        for suffix, kind in FOLDER_OF.items():
            count[suffix] += len(found[suffix])
            _link_all(found[suffix], tree / kind / level / path.stem)
    if len(bare) == len(packed):
        raise UserError(
            f"the archives of {archives} hold no .jpg frame and no .png mask; name the folder of "
            "VISOR's frames, and make masks from polygons with VISOR's own converter."
        )
    _write_lists(tree / "ImageSets" / "2022", subsets)
    warnings = _without_partner(tree, level)
    if bare:
        warnings.append(f"{len(bare)} archives hold neither frames nor masks: {_shown(bare)}")
    for warning in warnings:
        log.warning("%s", warning)
    return write_manifest(
        output / "manifest.json",
        "visor",
        inputs=inputs,
        parameters={"level": level},
        counts={"archives": len(packed), "frames": count[".jpg"], "masks": count[".png"]},
        warnings=warnings,
    )


def _packed(archives: Path, output: Path) -> list[Path]:
    """Return the archives, but none that came out of another."""
    cache = (output / "cache").resolve()
    found = sorted(path for path in archives.rglob("*.zip") if path.is_file())
    found = [path for path in found if cache not in path.resolve().parents]
    if not found:
        raise UserError(f"{archives} holds no zip archive; name the folder of VISOR's downloads.")
    return found


def _subsets(place: Path, archives: Path) -> set[str]:
    """Return the lists that the folders above an archive name."""
    inside = {part for part in place.parts[:-1] if part in SUBSETS}
    return inside or {archives.resolve().name}.intersection(SUBSETS)


def _write_lists(folder: Path, subsets: dict[str, set[str]]) -> None:
    for one, other in combinations(sorted(subsets), 2):
        if both := subsets[one] & subsets[other]:
            raise UserError(
                f"the frames of {_shown(both)} lie below both a folder '{one}' and a folder "
                f"'{other}'; keep one of them, so that no video is in two lists."
            )
    texts = {
        folder / f"{subset}.txt": "".join(f"{name}\n" for name in sorted(names))
        for subset, names in subsets.items()
    }
    for path, text in texts.items():
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path} lists other videos than these archives hold; remove or rename it, and "
                "run again."
            )
    for path, text in texts.items():
        write_text(path, text)


def _unpacked(archive: Path, folder: Path) -> str:
    """Unpack an archive into a folder of its own, if it is not there; return its SHA-256."""
    status = archive.stat()
    size, changed = status.st_size, status.st_mtime_ns
    if folder.is_dir():
        note = read_json(folder / NOTE)
        # Archives are large: only one whose time of change differs is read again.
        touched = note.get("mtime_ns") != changed
        if note["bytes"] != size or (touched and note["sha256"] != sha256_file(archive)):
            raise UserError(
                f"{archive} has changed since it was unpacked into {folder}: remove that folder, "
                "and run again."
            )
        if touched:
            write_json(folder / NOTE, {**note, "mtime_ns": changed})
        return str(note["sha256"])
    part = folder.with_name(f".{folder.name}.part")
    if part.exists():
        shutil.rmtree(part)
    try:
        unpack(archive, part)
    except DAMAGED as error:
        raise UserError(
            f"{archive} cannot be unpacked ({reason(error)}); take it from its authors again."
        ) from None
    digest = sha256_file(archive)
    write_json(part / NOTE, {"bytes": size, "mtime_ns": changed, "sha256": digest})
    os.replace(part, folder)
    return digest


def _images(archive: Path, folder: Path) -> dict[str, dict[str, Path]]:
    """Return what was unpacked, by suffix and name."""
    found: dict[str, dict[str, Path]] = {suffix: {} for suffix in FOLDER_OF}
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in found or not path.is_file() or path.name.startswith("."):
            continue
        if (earlier := found[suffix].setdefault(path.name, path)) != path:
            raise UserError(
                f"{archive} holds two files of one name, {earlier.relative_to(folder)} and "
                f"{path.relative_to(folder)}, so that they cannot be the frames of one video; "
                "unpack it yourself."
            )
    return found


def _link_all(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        target = folder / name
        if not target.exists():
            _link(path, target)
        elif not (target.samefile(path) or _same(target, path)):
            raise UserError(
                f"{target} is in the way of the same name of {path.parent}: two archives hold the "
                "same video's frame; keep one, or choose another folder."
            )


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)


def _same(one: Path, other: Path) -> bool:
    same_size = one.stat().st_size == other.stat().st_size
    return same_size and sha256_file(one) == sha256_file(other)


def _without_partner(tree: Path, level: str) -> list[str]:
    images, masks = (set(folders_in(tree / kind / level)) for kind in FOLDER_OF.values())
    warnings = []
    for names, what in ((images - masks, "masks"), (masks - images, "frames")):
        if names:
            warnings.append(f"{len(names)} videos have no {what}: {_shown(names)}")
    return warnings


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (" ..." if len(ordered) > 5 else "")
