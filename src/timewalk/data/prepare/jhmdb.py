"""JHMDB: frames, joint positions and splits, by class.

``Rename_Images/<class>/<video>/00001.png``, ``joint_positions/<class>/<video>/
joint_positions.mat``, ``splits/<class>_test_split<n>.txt`` with `<video>.avi 1` (training) or `2`
(test) a line. Source: JHMDB. A sequence's name is `<class>/<video>`.
"""

from pathlib import Path

from timewalk.config import JHMDB
from timewalk.data.prepare.videos import (
    Archive,
    Faults,
    Layout,
    Source,
    choose,
    folder_frames,
    read_names,
)
from timewalk.data.sequences import Sequence, read_joints
from timewalk.errors import UserError

SIDES = {"train": "1", "test": "2"}
HOST = "http://files.is.tue.mpg.de/jhmdb"


def source_jhmdb(config: JHMDB) -> Source:
    """Return where JHMDB is."""
    return Source(
        "JHMDB",
        "http://jhmdb.is.tue.mpg.de",
        "Rename_Images/<class>/<video>/00001.png, joint_positions/<class>/<video>/"
        "joint_positions.mat and splits/<class>_test_split1.txt",
        needed=("Rename_Images", "joint_positions", "splits"),
        inside=("JHMDB",),
        archives=(
            Archive(f"{HOST}/Rename_Images.tar.gz", "Rename_Images"),
            Archive(f"{HOST}/joint_positions.zip", "joint_positions"),
            Archive(f"{HOST}/splits.zip", "splits"),
        ),
    )


def find_jhmdb(name: str, config: JHMDB, root: Path) -> Layout:
    """Return the sequences of one side of a split.

    Raises:
        UserError: a missing list, frame folder or file of joints; joints of fewer or more frames.
    """
    lists = sorted((root / "splits").glob(f"*_test_split{config.split}.txt"))
    if not lists:
        raise UserError(
            f"labelled.{name}: {root / 'splits'} holds no <class>_test_split{config.split}.txt; "
            "restore the published files or correct 'split'."
        )
    names = [item for path in lists for item in _listed(name, path, config)]
    faults = Faults(name, root)
    videos = [_sequence(item, root, faults) for item in choose(name, config, names)]
    faults.stop()
    subset = config.subset + ("" if config.split == 1 else str(config.split))
    return Layout(root, subset, videos, lists)


def _listed(name: str, path: Path, config: JHMDB) -> list[str]:
    """Return `<class>/<video>` of one side of one class's list."""
    label = path.stem.removesuffix(f"_test_split{config.split}")
    found = []
    for row in read_names(name, path):
        video, _, side = row.rpartition(" ")
        if not video.strip().endswith(".avi") or side not in ("0", "1", "2"):
            raise UserError(
                f"labelled.{name}: {path} has the line '{row}', not '<video>.avi 1' or 2; restore "
                "the published file."
            )
        if side == SIDES[config.subset]:
            found.append(f"{label}/{video.strip().removesuffix('.avi')}")
    return found


def _sequence(item: str, root: Path, faults: Faults) -> Sequence:
    frames = folder_frames(root / "Rename_Images" / item, [".png"], faults)
    joints = root / "joint_positions" / item / "joint_positions.mat"
    if not joints.is_file():
        faults.add(joints, "is missing")
    elif (count := read_joints(joints).shape[-1]) != len(frames):
        faults.add(joints, f"has joints of {count} frames, not of {len(frames)}")
    images = tuple(frames.values())
    return Sequence(item, images, (None,) * len(images), (0, 0), joints=joints)
