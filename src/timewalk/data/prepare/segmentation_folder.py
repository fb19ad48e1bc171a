"""Folders of images and of masks with class ids: ``<images>/<split>/*``, ``<masks>/<split>/*``.

The layout of ADE20K's scene parsing, whose id 0 is no class: ids from 1 on become classes from 0
on. Images and masks are paired by name, sub-folders and links included.
"""

from collections.abc import Collection
from pathlib import Path

from timewalk.config import SegmentationFolder
from timewalk.data.prepare.stills import MOST_CLASSES, MaskLayout
from timewalk.data.prepare.videos import IMAGES, Faults, read_names
from timewalk.data.walk import walk_images
from timewalk.errors import UserError

MASKS = frozenset({".png", ".bmp"})


def find_segmentation_folder(name: str, config: SegmentationFolder) -> MaskLayout:
    """Return the images and masks of both splits.

    Raises:
        UserError: a missing folder or list of classes, or an image or mask without its partner.
    """
    root = Path(config.root)
    layout = MaskLayout(root, _classes(name, config), zero_is_void=config.zero_is_void)
    if isinstance(config.classes, str):
        layout.lists.append(Path(config.classes))
    faults = Faults(name, root)
    for key in ("train", "test"):
        part = getattr(config, key)
        images = _by_name(name, root / config.images / part, ("images", key), IMAGES, faults)
        masks = _by_name(name, root / config.masks / part, ("masks", key), MASKS, faults)
        for item in sorted(set(images) - set(masks)):
            place = f"{config.masks}/{part}/{item}.png"
            faults.add(images[item], f"has no mask {place}")
        for item in sorted(set(masks) - set(images)):
            faults.add(masks[item], f"has no image {config.images}/{part}/{item}.jpg")
        both = sorted(set(images) & set(masks))
        layout.pairs[key] = [(images[item], masks[item]) for item in both]
    faults.stop()
    return layout


def _by_name(
    name: str, folder: Path, keys: tuple[str, str], suffixes: Collection[str], faults: Faults
) -> dict[str, Path]:
    """Return the visible images below a folder by their paths in it, without suffix."""
    if not folder.is_dir():
        raise UserError(
            f"labelled.{name}: there is no folder {folder}; correct the keys 'root', '{keys[0]}' "
            f"and '{keys[1]}'."
        )
    found: dict[str, Path] = {}
    for place, files in walk_images(folder, suffixes):
        for file in sorted(files):
            path = folder / place / file
            key = path.relative_to(folder).with_suffix("").as_posix()
            if (earlier := found.setdefault(key, path)) != path:
                faults.add(path, f"has the name of {earlier.name}")
    if not found:
        faults.add(folder, "holds no image")
    return found


def _classes(name: str, config: SegmentationFolder) -> list[str] | None:
    if config.classes is None:
        return None
    if isinstance(config.classes, int):
        return [f"class_{number}" for number in range(config.classes)]
    names = read_names(name, Path(config.classes), "classes", "class")
    if rows := [line for line in names if "\t" in line]:
        raise UserError(
            f"labelled.{name}.classes: {config.classes} holds a table, such as {rows[0]!r}; write "
            "one name a line, without a heading."
        )
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"labelled.{name}.classes: {config.classes} names {len(names)} classes, but masks have "
            f"ids for {MOST_CLASSES} at most; shorten the list."
        )
    return names
