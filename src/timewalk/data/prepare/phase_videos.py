"""Videos with phases: what the layouts share, from frames and labels to a checked index.

Each layout's file finds videos; here every frame is decoded, frames of a video must be of one size,
and labels must be classes. The digest is over names, labels and the bytes of all frames.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from timewalk.artefacts import atomic_path, sha256_file, write_text
from timewalk.data.checksum import crc32c
from timewalk.data.folder import FrameIndex
from timewalk.data.phase_labels import Annotations, label_warnings, read_label_file
from timewalk.data.phases import UNLABELLED
from timewalk.data.sequences import why
from timewalk.errors import UserError

SPLITS = ("train", "test")
START = "start"
"""name of the phase that begins with a video's start; each other one's is the event it begins
with"""
UNREADABLE = (OSError, SyntaxError, ValueError)
"""what Pillow reports damage as"""


@dataclass
class FoundVideo:
    """A video as a layout says it is.

    Attributes:
        name: unique within its split.
        files: its frames' file, or their files.
        times: (L,) seconds, or the frames' numbers where there is no clock.
        labels: int64 (L,), phase of each frame; None: it has none.
        action: number of its action; -1: none is given.
        offsets: first byte of each frame in the file; None: files of their own.
        doubts: what is seldom meant in its segments (:func:`timewalk.data.phase_labels.doubts`).
    """

    name: str
    files: list[Path]
    times: np.ndarray
    labels: np.ndarray | None = None
    action: int = -1
    offsets: list[int] | None = None
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CheckedVideo:
    """A video after the check: its index and a digest of its name, labels and frames."""

    video: FoundVideo
    index: FrameIndex
    digest: str


@dataclass
class PhaseSet:
    """A checked set.

    Attributes:
        root: folder that files are named from.
        splits: videos of `train` and of `test`, in the order of the set's files.
        classes: names of the phases; none where no names are known, or they differ by action.
        inputs: files that the set was made from, with digests.
        warnings: sentences for a person.
        actions: names of the actions by number, and of the phases of each, where a set has several.
    """

    root: Path
    splits: dict[str, list[CheckedVideo]]
    classes: list[str]
    inputs: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    actions: Mapping[str, list[str]] = field(default_factory=dict)


def check_video(name: str, video: FoundVideo, jpegs: Iterable[bytes]) -> CheckedVideo:
    """Decode every frame of a video.

    Args:
        name: the set's name, for messages.
        video: as it was found.
        jpegs: its frames.

    Raises:
        UserError: no frame, one that cannot be decoded, or frames of different sizes.
    """
    digest = hashlib.sha256(f"{video.name}\t{video.action}\n".encode())
    if video.labels is not None:
        digest.update(video.labels.tobytes())
    lengths, crcs, sizes = [], [], list[tuple[int, int]]()
    for number, data in enumerate(jpegs):
        sizes.append(_size(name, video, number, data))
        if sizes[number] != sizes[0]:
            found, first = ("x".join(map(str, size)) for size in (sizes[number], sizes[0]))
            raise UserError(
                f"labelled.{name}: frame {number} of '{video.name}' ({_file(video, number)}) is "
                f"{found} pixels but the first is {first}; bring the frames of a video to one size."
            )
        lengths.append(len(data))
        crcs.append(crc32c(data))
        digest.update(data)
    if not sizes:
        raise UserError(f"labelled.{name}: the video '{video.name}' has no frames; leave it out.")
    index = FrameIndex(
        np.array(video.offsets or [0] * len(lengths), np.int64),
        np.array(lengths, np.int32),
        np.array(crcs, np.uint32),
        np.asarray(video.times, np.float64),
    )
    return CheckedVideo(video, index, digest.hexdigest())


def _size(name: str, video: FoundVideo, number: int, data: bytes) -> tuple[int, int]:
    """Return (width, height) of a frame that can be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            # At an eighth of its size a JPEG is still read to its end, in a quarter of the time.
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    except UNREADABLE as error:
        raise UserError(
            f"labelled.{name}: frame {number} of '{video.name}' ({_file(video, number)}) cannot be "
            f"decoded ({why(error)}); restore the file."
        ) from None
    return size


def _file(video: FoundVideo, number: int) -> Path:
    return video.files[0] if video.offsets is not None else video.files[number]


def read_files(video: FoundVideo) -> Iterable[bytes]:
    """Yield the bytes of frames in files of their own."""
    return (path.read_bytes() for path in video.files)


def check_labels(name: str, video: FoundVideo, classes: Sequence[str]) -> None:
    """Refuse labels that are no classes.

    Raises:
        UserError: names video, frame and label.
    """
    if video.labels is None:
        return
    wrong = video.labels < 0
    if classes:
        wrong |= video.labels >= len(classes)
    if wrong.any():
        frame = int(wrong.argmax())
        known = f"0 to {len(classes) - 1}" if classes else "0 or more"
        raise UserError(
            f"labelled.{name}: frame {frame} of '{video.name}' ({_file(video, frame)}) has the "
            f"label {video.labels[frame]}, but labels are {known}; correct the labels, or the "
            "set's key 'classes'."
        )


def check_names(name: str, split: str, videos: Iterable[FoundVideo]) -> None:
    """Refuse two videos of one name in a split; of such, readers by name lose one.

    Raises:
        UserError: names the video and both places.
    """
    seen: dict[str, Path] = {}
    for video in videos:
        if video.name in seen:
            raise UserError(
                f"labelled.{name}: two videos of the {split} split are named '{video.name}', in "
                f"{seen[video.name]} and in {video.files[0]}; rename one of them."
            )
        seen[video.name] = video.files[0]


def common_warnings(splits: Mapping[str, Sequence[CheckedVideo]]) -> list[str]:
    """Return sentences on what is legal and yet seldom meant."""
    every = [item.video for videos in splits.values() for item in videos]
    falling = [
        video.name
        for video in every
        if video.labels is not None and (np.diff(video.labels) < 0).any()
    ]
    warnings = label_warnings((video.name, video.doubts) for video in every)
    if falling:
        warnings.append(
            f"phases go backwards in {len(falling)} of {len(every)} videos, the first "
            f"'{falling[0]}'"
        )
    both = Counter(name for videos in splits.values() for name in {x.video.name for x in videos})
    shared = sorted(name for name, count in both.items() if count > 1)
    if shared:
        warnings.append(
            f"{len(shared)} videos of the training split, the first '{shared[0]}', have the name "
            "of one that is scored"
        )
    return warnings


def read_labels(name: str, path: Path) -> dict[str, Annotations]:
    """Return the annotators' segments of each video of the file that the key `label_file` names.

    Raises:
        UserError: as :func:`read_label_file`.
    """
    return read_label_file(path, f"labelled.{name}.label_file")


def count_warning(title: str, found: tuple[int, int], *known: tuple[int, int]) -> list[str]:
    """Return a sentence where a set has other numbers of videos than the published one."""
    if found in known:
        return []
    listed = " or ".join(f"{train} and {test}" for train, test in known)
    return [f"{title} has {found[0]} and {found[1]} videos here, published are {listed}"]


def write_split(folder: Path, split: str, root: Path, videos: list[CheckedVideo]) -> dict[str, str]:
    """Write list and index of a split and return their digests."""
    listed, index = folder / f"{split}.jsonl", folder / f"{split}.index.npz"
    write_text(listed, "".join(json.dumps(_row(item, root)) + "\n" for item in videos))
    with atomic_path(index) as temporary:
        np.savez(
            temporary,
            offset=np.concatenate([item.index.offset for item in videos]),
            length=np.concatenate([item.index.length for item in videos]),
            crc=np.concatenate([item.index.crc for item in videos]),
            times=np.concatenate([item.index.times for item in videos]),
            labels=np.concatenate([_labels(item) for item in videos]),
        )
    return {"list_sha256": sha256_file(listed), "index_sha256": sha256_file(index)}


def _labels(item: CheckedVideo) -> np.ndarray:
    if item.video.labels is None:
        return np.full(len(item.index), UNLABELLED, np.int64)
    return item.video.labels


def _row(item: CheckedVideo, root: Path) -> dict[str, Any]:
    video = item.video
    names = [Path(os.path.relpath(path, root)).as_posix() for path in video.files]
    place = {"files": names} if video.offsets is None else {"file": names[0]}
    return {
        "name": video.name,
        "action": video.action,
        "frames": len(item.index),
        "labelled": video.labels is not None,
        **place,
    }
