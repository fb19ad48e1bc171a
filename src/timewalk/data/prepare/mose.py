"""MOSE: ``train/{JPEGImages,Annotations}/<video>/00000.{jpg,png}``, every frame annotated.

Source: MOSE. Ids number the objects of one video; masks are given out for the training part only,
so that a part to score on is drawn from it by a seed.
"""

from pathlib import Path

from timewalk.config import MOSE
from timewalk.data.prepare.parts import draw
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
)
from timewalk.data.sequences import Sequence


def source_mose(config: MOSE) -> Source:
    """Return where MOSE is; its authors share it by file hosts only."""
    return Source(
        "MOSE",
        "https://henghuiding.github.io/MOSE",
        "train/JPEGImages/<video>/00000.jpg and train/Annotations/<video>/00000.png",
        needed=("train/JPEGImages", "train/Annotations"),
        inside=("MOSE", "MOSE_release"),
    )


def find_mose(name: str, config: MOSE, root: Path) -> Layout:
    """Return the sequences, each folder of `train/JPEGImages` one.

    Raises:
        UserError: a folder, frame or mask without its partner, or a split with an empty part.
    """
    images, masks = root / "train" / "JPEGImages", root / "train" / "Annotations"
    names = folders_in(images)
    faults = Faults(name, root)
    for item in sorted(set(folders_in(masks)) - set(names)):
        faults.add(masks / item, "has no folder of frames in train/JPEGImages")
    split = None
    if config.split is not None and names:
        names, split = draw(name, config.split, names, images, faults)
    videos = []
    for item in choose(name, config, names):
        frames = folder_frames(images / item, [".jpg"], faults)
        truth = by_number(images_in(masks / item, [".png"]), faults)
        paths, paired = pair(frames, truth, faults, every=True, folder=masks / item)
        videos.append(Sequence(item, paths, paired, (0, 0)))
    faults.stop()
    return Layout(root, "train", videos, split=split)
