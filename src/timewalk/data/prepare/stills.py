"""Still images with masks of class ids: what the layouts share, from pairs of files to a check.

Each layout's file finds the pairs; here every image and every mask is decoded: they can be read to
their end, have one size, masks are palette or gray, and their ids are classes or void.
"""

import hashlib
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from timewalk.data.prepare.videos import Faults
from timewalk.data.sequences import ID_MODES, NO_IDS, VOID, why

MOST_CLASSES = 253
"""ids 254 and 255 mean no class"""
Pair = tuple[Path, Path]


@dataclass
class MaskLayout:
    """A set as it was found.

    Attributes:
        root: folder that the paths are told from.
        classes: name of each class from 0 on; None: as many as the masks' greatest id needs.
        pairs: image and mask, for each of the splits `train` and `test`.
        lists: files that name images or classes.
        zero_is_void: whether id 0 is void, and class c has the id c + 1.
        parts: the set's own names of the splits, where no key has them.
        coloured: what is said of a mask of colours, `{}` for its mode.
    """

    root: Path
    classes: list[str] | None
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    lists: list[Path] = field(default_factory=list)
    zero_is_void: bool = False
    parts: dict[str, str] = field(default_factory=dict)
    coloured: str = NO_IDS


class Checked(NamedTuple):
    """What is known of a pair: its digest, the ids of its mask, and what is wrong with it."""

    digest: str
    ids: set[int]
    faults: list[str]


def check_pairs(name: str, layout: MaskLayout) -> tuple[list[str], str]:
    """Check every image and mask, many at once.

    Returns:
        The names of the classes, and the SHA-256 over the splits, names and bytes of all files.

    Raises:
        UserError: names the first faulty files, what is wrong with them, and how many more there
            are.
    """
    faults, digest, ids = Faults(name, layout.root), hashlib.sha256(), set[int]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, pairs in layout.pairs.items():
            for checked in pool.map(lambda pair: _check(pair, layout), pairs):
                digest.update(f"{split}\t{checked.digest}\n".encode())
                faults.found += checked.faults
                ids |= checked.ids
    first = int(layout.zero_is_void)
    if layout.classes is None and max(ids, default=-1) < first:
        faults.add("masks", "hold no class, only void")
    faults.stop()
    classes = layout.classes or [f"class_{number}" for number in range(max(ids) + 1 - first)]
    return classes, digest.hexdigest()


def _check(pair: Pair, layout: MaskLayout) -> Checked:
    faults = Faults("", layout.root)
    image, image_digest, size = _read(pair[0], faults)
    mask, mask_digest, mask_size = _read(pair[1], faults)
    ids = set[int]()
    if image is not None and mask is not None and mask_size != size:
        faults.add(
            pair[1],
            f"is {mask_size[0]}x{mask_size[1]} pixels, its image "
            f"{_name(pair[0], layout)} {size[0]}x{size[1]}",
        )
    if mask is not None and mask.mode not in ID_MODES:
        faults.add(pair[1], layout.coloured.format(mask.mode))
    elif mask is not None:
        counted = np.bincount(np.asarray(mask, dtype=np.uint8).reshape(-1), minlength=VOID + 1)
        ids = set(np.flatnonzero(counted).tolist()) - {VOID}
        _check_ids(pair[1], ids, layout, faults)
    names = "\t".join(
        f"{_name(path, layout)}\t{digest}"
        for path, digest in zip(pair, (image_digest, mask_digest), strict=True)
    )
    return Checked(names, ids, faults.found)


def _read(path: Path, faults: Faults) -> tuple[Image.Image | None, str, tuple[int, int]]:
    """Return an image, its file's SHA-256 and (width, height); None where it cannot be read."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            # At an eighth of its size a JPEG is still read to its end, in a quarter of the time.
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
        return image, hashlib.sha256(data).hexdigest(), size
    except (OSError, SyntaxError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        faults.add(path, "is missing" if missing else f"cannot be read ({why(error)})")
        return None, "", (0, 0)


def _check_ids(path: Path, ids: Iterable[int], layout: MaskLayout, faults: Faults) -> None:
    first = int(layout.zero_is_void)
    last = MOST_CLASSES if layout.classes is None else len(layout.classes) - 1 + first
    if unknown := sorted(number for number in ids if number > last):
        faults.add(
            path,
            f"holds the id {unknown[0]}, but classes have the ids {first} to {last}, void 255",
        )


def _name(path: Path, layout: MaskLayout) -> str:
    return path.relative_to(layout.root).as_posix()
