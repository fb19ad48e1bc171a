"""Frames labelled by shot: natural images with labels, from videos alone.

The first half of each shot trains, the second tests. Images of one shot are near duplicates, so a
good score says little; it is for trying the way from video to number.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from timewalk.artefacts import read_manifest, sha256_file
from timewalk.config import ShotLabels
from timewalk.data.folder import frame_path, load_times
from timewalk.data.prepare.base import Prepared, check_image, check_videos, set_digest, write_list
from timewalk.data.prepare.folder import relative_to
from timewalk.errors import UserError


def prepare_shots(
    name: str, config: ShotLabels, output: Path, frames: Mapping[str, Path]
) -> Prepared:
    """List the frames of each shot, class ``<video>_<number of the shot>``.

    Args:
        name: the set's name, for messages.
        config: cuts in seconds from the video's first frame, frames left out between the halves.
        output: folder of the manifest.
        frames: each video's manifest of frames.

    Raises:
        UserError: no frames, cuts that do not rise or lie outside, a shot too short to be halved.
    """
    check_videos(name, config.dataset, frames, "cuts", config.cuts)
    root = Path(_common([path.parent for path in frames.values()]))
    classes: list[str] = []
    files: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    items: list[tuple[str, int, str]] = []
    for video in sorted(frames):
        folder = frames[video].parent
        for shot, (start, stop) in enumerate(_shots(name, config, video, frames[video])):
            middle, later = _halves(name, config, video, shot, stop - start)
            for split, numbers in (
                ("train", range(start, start + middle)),
                ("test", range(start + later, stop)),
            ):
                paths = [frame_path(folder, number) for number in numbers]
                listed = [path.relative_to(root).as_posix() for path in paths]
                digests = [check_image(path) for path in paths]
                files[split] += listed
                labels[split] += [len(classes)] * len(listed)
                items += [(f, len(classes), d) for f, d in zip(listed, digests, strict=True)]
            classes.append(f"{video}_{shot}")
    for split in files:
        write_list(output / f"{split}.txt", labels[split], files[split])
    return Prepared(
        classes=classes,
        labels=labels,
        source={"kind": "files", "root": relative_to(root, output)},
        digest=set_digest(items),
        inputs={video: sha256_file(path) for video, path in sorted(frames.items())},
        warnings=["frames of one shot are near duplicates: a good score says little"],
    )


def _common(folders: list[Path]) -> Path:
    root = folders[0].parent
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    return root


def _shots(name: str, config: ShotLabels, video: str, manifest: Path) -> list[tuple[int, int]]:
    """Return [start, stop) of each shot in frames."""
    about = read_manifest(manifest, "frames")
    times = load_times(manifest.parent, about)
    cuts = config.cuts.get(video, [])
    # A cut given to the hundredth of a second may lie just after the frame it means.
    starts = np.searchsorted(times, np.array(cuts) - 1e-3)
    bounds = [0, *map(int, starts), len(times)]
    if any(start >= stop for start, stop in pairwise(bounds)):
        raise UserError(
            f"labelled.{name}.cuts.{video} is {cuts} for {len(times)} frames from "
            f"{times[0]:.2f} to {times[-1]:.2f} s; give rising seconds with frames between them."
        )
    return list(pairwise(bounds))


def _halves(name: str, config: ShotLabels, video: str, shot: int, count: int) -> tuple[int, int]:
    """Return where training stops and testing starts within a shot."""
    middle = (count - config.gap + 1) // 2
    later = middle + config.gap
    if middle < 1 or later >= count:
        raise UserError(
            f"labelled.{name}: shot {shot} of '{video}' has {count} frames, too few for two halves "
            f"with a gap of {config.gap}; lower gap, correct cuts, or raise frames.fps."
        )
    return middle, later
