"""A part of a set of videos, drawn from the names that training draws its part from.

Training knows the folders with frames only (:mod:`timewalk.data.frame_folders`). A video more or
less on one side would change the order of all, and with it both parts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timewalk.config import Split
from timewalk.data.prepare.videos import Faults, images_in
from timewalk.data.splits import SUFFIXES, part_of, record


def draw(
    name: str, split: Split, names: Iterable[str], frames: Path, faults: Faults
) -> tuple[list[str], dict[str, Any]]:
    """Return the names of a part, sorted, and what the manifest says of the split.

    Args:
        name: the set's name in the configuration, for messages.
        split: which part, and how it is drawn.
        names: of all videos of both parts.
        frames: folder that holds a folder of frames for each name.
        faults: what was found so far.

    Raises:
        UserError: any fault so far, a video of either part without frames, or an empty part.
    """
    names = sorted(names)
    for folder in (frames / item for item in names):
        if not images_in(folder, SUFFIXES):
            faults.add(folder, "holds no frame" if folder.is_dir() else "is missing")
    faults.stop()
    return part_of(names, split, f"labelled.{name}.split"), record(names, split)
