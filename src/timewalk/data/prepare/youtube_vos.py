"""YouTube-VOS: ``<subset>/{JPEGImages,Annotations}/<sequence>/NNNNN.{jpg,png}``, ``meta.json``.

Source: YouTube-VOS. Frame numbers go in steps of 5; in `train` every one is annotated, in `valid`
and `test` only those in which an object appears. ``meta.json`` lists the sequences and names each
object's category.
"""

import json
from pathlib import Path

from timewalk.config import YouTubeVOS
from timewalk.data.prepare.parts import draw
from timewalk.data.prepare.stills import MOST_CLASSES
from timewalk.data.prepare.videos import (
    Faults,
    Layout,
    Source,
    by_number,
    choose,
    folder_frames,
    folders_in,
    images_in,
    pair,
    read_names,
)
from timewalk.data.sequences import Sequence
from timewalk.errors import UserError


def source_youtube_vos(config: YouTubeVOS) -> Source:
    """Return where YouTube-VOS is; it is given out after registration only."""
    subset = config.subset
    return Source(
        "YouTube-VOS",
        "https://youtube-vos.org/dataset/vos",
        f"{subset}/JPEGImages/<sequence>/00000.jpg, {subset}/Annotations/<sequence>/00000.png and "
        f"{subset}/meta.json",
        needed=(f"{subset}/JPEGImages", f"{subset}/Annotations"),
        inside=("YouTubeVOS", "YouTube-VOS"),
    )


def find_youtube_vos(name: str, config: YouTubeVOS, root: Path) -> Layout:
    """Return the sequences of a subset with the categories of their objects.

    Raises:
        UserError: a missing list, frame or mask, or a sequence that ``meta.json`` does not know.
    """
    part = root / config.subset
    meta = _meta(part / "meta.json")
    lists = [part / "meta.json"]
    names = sorted(meta)
    if config.list_file is not None:
        lists.append(Path(config.list_file))
        names = read_names(name, lists[-1], "list_file")
        if unknown := [item for item in names if item not in meta]:
            raise UserError(
                f"labelled.{name}.list_file: '{unknown[0]}' of {config.list_file} is no sequence "
                f"of {lists[0]}; correct the list or the subset."
            )
    faults = Faults(name, root)
    split = None
    if config.split is not None:
        # Training draws its part from the folders: one more there, and the parts would overlap.
        for item in sorted(set(folders_in(part / "JPEGImages")) - set(meta)):
            faults.add(part / "JPEGImages" / item, f"is not in {config.subset}/meta.json")
        names, split = draw(name, config.split, names, part / "JPEGImages", faults)
    videos = []
    for item in choose(name, config, names):
        if not meta[item]:
            faults.add(lists[0], f"names no object of '{item}'")
        folder = part / "Annotations" / item
        frames = folder_frames(part / "JPEGImages" / item, [".jpg"], faults)
        masks = by_number(images_in(folder, [".png"]), faults)
        every = config.subset == "train"
        images, paired = pair(frames, masks, faults, every=every, folder=folder)
        videos.append(Sequence(item, images, paired, (0, 0), categories=meta[item]))
    faults.stop()
    late = [video.name for video in videos if video.masks[0] is None]
    warnings = []
    if late:
        warnings = [f"{len(late)} sequences have no mask of their first frame, {late[0]} for one"]
    # Of all videos that meta.json lists, so that every part of a subset numbers them alike.
    categories = sorted({category for objects in meta.values() for category in objects.values()})
    classes = ["background", *categories]
    return Layout(root, config.subset, videos, lists, classes, warnings=warnings, split=split)


def _meta(path: Path) -> dict[str, dict[int, str]]:
    """Return each sequence's objects: id and category."""
    if not path.is_file():
        raise UserError(f"{path} is missing; restore the published file.")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        objects = {
            sequence: {int(key): item["category"] for key, item in entry["objects"].items()}
            for sequence, entry in about["videos"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{path} does not list videos with objects and categories; restore the published file."
        ) from None
    for sequence, ids in objects.items():
        if unfit := [number for number in ids if not 1 <= number <= MOST_CLASSES]:
            raise UserError(
                f"{path} numbers an object of '{sequence}' {unfit[0]}, but masks hold ids from 1 "
                f"to {MOST_CLASSES}; restore the published file."
            )
    return objects
