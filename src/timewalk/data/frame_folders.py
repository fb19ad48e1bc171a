"""Folders of images as a training source: every folder the frames of one video.

The folders are found below a root, at any depth, or named by a list, as the released code of TimeT
and of CRW has them, or they are the sequences of a prepared labelled set, whose annotations are not
read. The images stay where they are and nothing is converted, renamed or removed. Beside the
manifest lie the list of all frames' paths and an index of their lengths and checksums, so that a
frame that was changed later is noticed when it is read. A set with phases has its index already, so
that its manifest is all that is named.
"""

import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from timewalk.artefacts import atomic_path, read_json, read_manifest, sha256_file, write_manifest
from timewalk.config import Split
from timewalk.data.folder import FrameIndex, FrameStore, verified
from timewalk.data.images import SHOWN, Checked, check_file
from timewalk.data.phases import KIND as PHASES
from timewalk.data.phases import LINK, link_phases, open_link
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.videos import folders_in
from timewalk.data.sequences import LabelledVideos
from timewalk.data.sequences import Sequence as LabelledVideo
from timewalk.data.shards import open_store
from timewalk.data.splits import SUFFIXES, part_of, record
from timewalk.data.walk import image_names, walk_images
from timewalk.errors import UserError

log = logging.getLogger(__name__)

KIND = "frame_folders"
VIDEOS = frozenset(
    [
        *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"),
        *(".ogv", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts"),
    ]
)
"""files that are videos themselves, which are not read here"""
REMEDY = "run the folders stage again"
FRAMES_AT_ONCE = 4096
"""frames handed to the threads together: what is known of them is Python objects only that long"""


class _Video(NamedTuple):
    folder: str
    frames: int
    lines: bytes
    unpadded: bool


class Listing:
    """Paths of all frames of a data set, one a line, kept as one block of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        start = int(self.ends[number - 1]) + 1 if number else 0
        return os.fsdecode(self.data[start : int(self.ends[number])])


class FrameFolderStore:
    """Frames of one folder: a stretch of the data set's list.

    Attributes:
        video: the folder, as the list of frames names it.
        times: (T,) 0, 1, 2, ...: such frames have no clock, they count as one second apart.
    """

    def __init__(
        self, root: Path, listing: Listing, index: FrameIndex, first: int, last: int
    ) -> None:
        self.root, self.listing, self.index = root, listing, index
        self.first, self.last = first, last
        self.video = posixpath.dirname(listing[first])
        self.times = index.times[first:last]

    def __len__(self) -> int:
        return self.last - self.first

    def jpeg(self, index: int) -> bytes:
        """Return a frame's file, verified, whatever its format."""
        where = self.where(index)
        try:
            data = Path(where).read_bytes()
        except OSError:
            raise UserError(f"{where} cannot be read: restore it, or {REMEDY}.") from None
        own = slice(self.first, self.last)
        parts = (self.index.offset, self.index.length, self.index.crc, self.index.times)
        return verified(data, FrameIndex(*(part[own] for part in parts)), index, where, REMEDY)

    def where(self, index: int) -> str:
        """Return the frame's path."""
        return str(self.root / self.listing[self.first + index])


def index_frame_folders(
    source: Path, manifest: Path, workers: int = 1, split: Split | None = None
) -> dict[str, Any]:
    """Check every frame of some folders and write their manifest, list and index.

    Frames are in the order of the integer before the first dot of their names, or of their names
    where none begins with such an integer. Files whose suffix is not .jpg, .jpeg or .png, and
    hidden files and folders, are passed over.

    Args:
        source: the root, or a text file with a line `<directory> <number of frames>` for each
            video, the directory relative to the file's own folder or absolute; or the manifest of
            labelled videos, or of videos with phases.
        manifest: ``…/<data set>/folders.json``.
        workers: threads that read and decode.
        split: only one part of the folders, by their paths below the root.

    Returns:
        The manifest, of kind `frame_folders`; of videos with phases of kind `phase_videos`.

    Raises:
        UserError: no folder with frames, images beside folders with images, frames and masks, video
            files, a line of the list that does not agree with its folder, frames that cannot be
            read, that have no order, or whose sizes differ within a video; with `split`, a folder
            without frames beside those with frames.
    """
    prepared = source.is_file() and source.suffix == ".json"
    if prepared and split is None and _kind(source) == PHASES:
        return link_phases(source, manifest)
    videos, root = _found(source)
    parameters: dict[str, Any] = {}
    if split is not None:
        names = [video.folder for video in videos]
        _refuse_empty(root, names)
        part = set(part_of(names, split, f"{source}: the data set's key 'split'"))
        videos = [video for video in videos if video.folder in part]
        parameters = {"split": record(names, split)}
    warnings = _warnings(videos)
    counts = np.array([video.frames for video in videos])
    listing = Listing(b"".join(video.lines for video in videos))
    starts = np.cumsum(counts) - counts
    index, sizes, content = _check_frames(root, listing, workers)
    _check_sizes(root, listing, sizes, starts, counts)
    # A video begins where the time is 0.
    index.times[:] = np.arange(len(listing)) - np.repeat(starts, counts)
    listing_path, index_path = manifest.with_suffix(".txt"), manifest.with_suffix(".index.npz")
    if source.resolve() in (listing_path.resolve(), index_path.resolve()):
        raise UserError(
            f"{source} would be replaced by the list of frames beside {manifest}; give the "
            "manifest another name."
        )
    with atomic_path(listing_path) as temporary:
        temporary.write_bytes(listing.data)
    index.save(index_path)
    return write_manifest(
        manifest,
        KIND,
        inputs={"frames": content},
        parameters=parameters,
        counts={
            "videos": len(videos),
            "frames": len(listing),
            "bytes": int(index.length.sum()),
        },
        warnings=warnings,
        index=index_path.name,
        index_sha256=sha256_file(index_path),
        files=listing_path.name,
        files_sha256=sha256_file(listing_path),
        root=relative_to(root, manifest.parent),
    )


def open_stores(manifest: Path) -> Sequence[FrameStore]:
    """Return the frames of the videos that a manifest describes, one store a video.

    Raises:
        UserError: a file is missing, or is not the one that the manifest describes.
    """
    kind = _kind(manifest)
    if kind == LINK:
        return open_link(manifest)
    if kind != KIND:
        return [open_store(manifest)]
    about = read_manifest(manifest, KIND)
    for key in ("files", "index"):
        path = manifest.parent / about[key]
        if not path.is_file() or sha256_file(path) != about[f"{key}_sha256"]:
            raise UserError(f"{path} is missing or damaged: {REMEDY}.")
    listing = Listing((manifest.parent / about["files"]).read_bytes())
    index = FrameIndex.load(manifest.parent / about["index"])
    ends = [*np.flatnonzero(index.times == 0).tolist(), len(index)]
    root = manifest.parent / about["root"]
    return [FrameFolderStore(root, listing, index, *ends_of) for ends_of in pairwise(ends)]


def _kind(manifest: Path) -> str | None:
    about = read_json(manifest)
    return about.get("kind") if isinstance(about, dict) else None


def _found(source: Path) -> tuple[list[_Video], Path]:
    """Return the videos, and the folder that their paths are relative to."""
    if source.is_dir():
        return _below(source), source
    if source.is_file() and source.suffix == ".json":
        videos = LabelledVideos(source)
        return [_sequence(video, videos.root) for video in videos], videos.root
    if source.is_file():
        return list(_listed(source)), source.parent
    raise UserError(
        f"{source} is neither a folder nor a file: correct the data set's key 'folders' or 'list'."
    )


def _below(root: Path) -> list[_Video]:
    """Return every folder below ``root`` that holds images, sorted by path."""
    videos = []
    for folder, names in walk_images(root, SUFFIXES | VIDEOS):
        if files := [name for name in names if Path(name).suffix.lower() in VIDEOS]:
            raise UserError(
                f"{root / folder / min(files)} is a video file, but the key 'folders' is for "
                "folders of images; name such files under 'videos:', or move them away."
            )
        videos.append(_video(folder, root / folder, names))
    if not videos:
        raise UserError(f"{root} has no folder of images ({', '.join(sorted(SUFFIXES))}) below it.")
    holding = {video.folder for video in videos}
    if "." in holding:
        raise UserError(
            f"{root} holds images itself, but each folder below it is taken as one video: name the "
            "folder above it, or move the images into a folder of their own."
        )
    for folder in sorted(holding):
        for above in PurePosixPath(folder).parents:
            if str(above) in holding:
                raise UserError(
                    f"{root / above} holds images and so does {root / folder} below it, so that "
                    "it is not clear what is a video: move the images that are no frames away."
                )
    _refuse_masks(root, sorted(holding))
    return sorted(videos)


def _refuse_masks(root: Path, folders: list[str]) -> None:
    """Refuse a published set's root, below which masks are folders of images too."""
    parts = [PurePosixPath(folder).parts for folder in folders]
    frames = [path[: path.index("JPEGImages") + 1] for path in parts if "JPEGImages" in path]
    masks = [path for path in parts if any(part.startswith("Annotations") for part in path)]
    if frames and masks:
        raise UserError(
            f"{root} holds frames and masks, {root.joinpath(*masks[0])} for one, and the masks "
            f"would be trained on: name the frames' folder, {root.joinpath(*frames[0])}."
        )


def _refuse_empty(root: Path, names: list[str]) -> None:
    """Refuse a folder that may have lost its frames: without it both parts would be others."""
    holding = {PurePosixPath(name) for name in names}
    above = {folder for name in holding for folder in name.parents}
    for folder in sorted(above):
        for name in folders_in(root / folder):
            if folder / name not in holding | above:
                raise UserError(
                    f"{root / folder / name} holds no frame of its own, so that the key 'split' "
                    "would draw other parts than from all videos: restore its frames, or remove it "
                    "from the labelled set too."
                )


def _listed(path: Path) -> Iterator[_Video]:
    """Yield the folders that a list names, in its order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text: save the list as UTF-8.") from None
    lines = {n: line.strip() for n, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise UserError(f"{path} names no video: write '<directory> <number of frames>' a line.")
    seen: dict[str, int] = {}
    for number, line in lines.items():
        where = f"{path}, line {number}"
        *words, count = line.rsplit(maxsplit=1)
        if not (words and count.isascii() and count.isdigit()):
            raise UserError(f"{where}: '{line}' is not '<directory> <number of frames>'.")
        directory = posixpath.normpath(words[0])
        folder = path.parent / directory
        if not folder.is_dir():
            raise UserError(f"{where}: there is no folder {folder}; correct or remove the line.")
        if (earlier := seen.setdefault(os.path.realpath(folder), number)) != number:
            raise UserError(f"{where}: {folder} is in line {earlier} already; remove one of them.")
        video = _video(directory, folder, _names(folder))
        if video.frames != int(count):
            raise UserError(
                f"{where}: {folder} holds {video.frames} frames, but the list says {count}; "
                "correct the number, or complete the folder."
            )
        if not video.frames:
            raise UserError(f"{where}: {folder} holds no frames; remove the line.")
        yield video


def _names(folder: Path) -> list[str]:
    return image_names(folder, (entry.name for entry in folder.iterdir()), SUFFIXES)


def _sequence(video: LabelledVideo, root: Path) -> _Video:
    """Return the frames of a labelled sequence, in its order."""
    names = [path.relative_to(root).as_posix() for path in video.frames]
    lines = b"".join(os.fsencode(f"{name}\n") for name in names)
    return _Video(posixpath.dirname(names[0]), len(names), lines, unpadded=False)


def _video(name: str, folder: Path, names: list[str]) -> _Video:
    ordered, unpadded = _in_order(folder, names)
    lines = b"".join(os.fsencode(f"{posixpath.join(name, file)}\n") for file in ordered)
    return _Video(name, len(ordered), lines, unpadded)


def _in_order(folder: Path, names: list[str]) -> tuple[list[str], bool]:
    """Return the frames' names in order, and whether the numbers in them say another order."""
    heads = {name: name.split(".")[0] for name in names}
    without = [name for name in names if not (heads[name].isascii() and heads[name].isdigit())]
    if len(without) == len(names):
        ordered = sorted(names)
        return ordered, ordered != sorted(names, key=_natural)
    if without:
        raise UserError(
            f"{folder}: '{min(without)}' does not begin with its number as the other frames do, so "
            "that their order is not clear; rename it, or move it away."
        )
    ordered = sorted(names, key=lambda name: (int(heads[name]), name))
    for before, after in pairwise(ordered):
        if int(heads[before]) == int(heads[after]):
            raise UserError(
                f"{folder}: '{before}' and '{after}' have the same number; move one of them away."
            )
    return ordered, False


def _natural(name: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _warnings(videos: list[_Video]) -> list[str]:
    unpadded = [video.folder for video in videos if video.unpadded]
    if not unpadded:
        return []
    text = (
        f"{len(unpadded)} of {len(videos)} videos, the first '{unpadded[0]}', are taken in the "
        "order of their frames' names, but the numbers within the names say another order: name "
        "the frames by number alone, or fill the numbers with zeros."
    )
    log.warning("%s", text)
    return [text]


def _check_frames(root: Path, listing: Listing, workers: int) -> tuple[FrameIndex, np.ndarray, str]:
    """Decode all frames; return their index without times, (N, 2) sizes and content digest."""
    total = len(listing)
    length, crc = np.zeros(total, np.int64), np.zeros(total, np.uint32)
    sizes, content = np.zeros((total, 2), np.int32), hashlib.sha256()
    broken, shown = 0, list[str]()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, total, FRAMES_AT_ONCE):
            files = [listing[k] for k in range(start, min(start + FRAMES_AT_ONCE, total))]
            results = pool.map(check_file, [root / file for file in files])
            for place, (file, result) in enumerate(zip(files, results, strict=True), start):
                if isinstance(result, Checked):
                    length[place], crc[place], sizes[place] = result.length, result.crc, result.size
                    content.update(os.fsencode(f"{file}\t{result.digest}\n"))
                else:
                    broken += 1
                    shown = [*shown, result][:SHOWN]
    if broken:
        raise UserError(f"{broken} of {total} frames: {' '.join(shown)}")
    index = FrameIndex(np.zeros(total, np.int64), length, crc, np.zeros(total))
    return index, sizes, content.hexdigest()


def _check_sizes(
    root: Path, listing: Listing, sizes: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> None:
    firsts = np.repeat(starts, counts)
    other = np.flatnonzero((sizes != sizes[firsts]).any(1))
    if len(other):
        frame, first = int(other[0]), int(firsts[other[0]])
        found, wanted = ("x".join(map(str, sizes[k])) for k in (frame, first))
        raise UserError(
            f"{root / listing[frame]} is {found} pixels but the video's first frame is {wanted}: "
            "bring the frames of a video to one size."
        )
