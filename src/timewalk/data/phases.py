"""Videos of actions as the prepare stage indexed them: frames by offset, and a phase a frame.

``manifest.json`` (kind `labelled_phases`) is small; beside it lie, for each split, the list of
videos ``<split>.jsonl`` and the index of their frames ``<split>.index.npz``: offset, length,
CRC-32C and time of each frame, and its label (-1 where the video has none). Frames stay in the
TFRecords, or in the files of their own, in which they came.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from timewalk.artefacts import read_manifest, sha256_file, write_manifest
from timewalk.data.decode import decode_frames
from timewalk.data.folder import FrameIndex, verified
from timewalk.data.prepare.folder import relative_to
from timewalk.data.tfrecord import checksums_digest
from timewalk.errors import UserError

KIND = "labelled_phases"
LINK = "phase_videos"
"""kind of the manifest through which a training reads the training split"""
UNLABELLED = -1
REMEDY = "restore the file, or run the prepare stage again"

Split = Literal["train", "test"]


OPEN = 64
"""files of a set that are kept open: sets have more than a process may have"""


class OpenFiles:
    """Reads files at offsets, and keeps those that were read last open.

    Threads and forked workers may share it; a pickled one begins empty.
    """

    def __init__(self) -> None:
        # A file that falls out is closed when nobody holds it any more, so not under a reader.
        self._opened = lru_cache(OPEN)(_Opened)

    def read(self, path: Path, length: int, offset: int) -> bytes:
        """Return bytes of a file; fewer where it ends."""
        opened = self._opened(path)
        return os.pread(opened.descriptor, length, offset)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[()]]:
        return OpenFiles, ()


class _Opened:
    descriptor = -1

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class PhaseStore:
    """Frames of one video, in one file for all or in a file each.

    Attributes:
        video: the video's name.
        times: (L,) float64, seconds, or the frames' numbers where the set has no clock.
        labels: int64 (L,), phase of each frame; None: the video has none.
        action: number of its action; -1 is the TCC tools' "none".
    """

    def __init__(
        self,
        video: str,
        files: Sequence[Path],
        index: FrameIndex,
        labels: np.ndarray | None = None,
        action: int = -1,
        opened: OpenFiles | None = None,
    ) -> None:
        self.video, self.files, self.index = video, tuple(files), index
        self._opened = opened or OpenFiles()
        self.times, self.labels, self.action = index.times, labels, action

    def __len__(self) -> int:
        return len(self.index)

    def jpeg(self, index: int) -> bytes:
        """Return a frame's JPEG, verified."""
        path = self._file(index)
        try:
            data = self._opened.read(
                path, int(self.index.length[index]), int(self.index.offset[index])
            )
        except OSError:
            raise UserError(f"{path} cannot be read: {REMEDY}.") from None
        return verified(data, self.index, index, self.where(index), REMEDY)

    def where(self, index: int) -> str:
        """Return file and offset of a frame."""
        return f"{self._file(index)} at byte {self.index.offset[index]}"

    def _file(self, index: int) -> Path:
        return self.files[0] if len(self.files) == 1 else self.files[index]


@dataclass(frozen=True)
class PhaseVideo:
    """One video.

    Attributes:
        name: as in the set.
        action: number of its action; -1: none is given.
        labels: int64 (L,), phase of each frame; None: the video has none.
        store: its frames.
    """

    name: str
    action: int
    labels: np.ndarray | None
    store: PhaseStore

    def __len__(self) -> int:
        return len(self.store)

    def frames(self, numbers: Sequence[int]) -> Tensor:
        """Return frames by number, uint8 (n, 3, H, W) RGB."""
        return decode_frames(self.store, numbers)


class PhaseVideos:
    """The videos of one split of a prepared set, in the order of its files.

    Attributes:
        name: the set's name in the configuration.
        kind: its layout, such as `pouring`.
        classes: names of the phases; none where the set gives no names, or has several actions.
        settings: keys of the set in the configuration.
        about: the manifest.
    """

    def __init__(self, manifest: Path, split: Split) -> None:
        """Open a split.

        Raises:
            UserError: no manifest of videos with phases; a list, an index or a file of frames that
                is missing or not the manifest's; a label file that changed.
        """
        self.about = read_manifest(manifest, KIND)
        self.name, self.kind = str(self.about["name"]), str(self.about["layout"])
        self.classes: list[str] = list(self.about["classes"])
        self.settings: dict[str, Any] = self.about["parameters"]
        listed, index = manifest.parent / f"{split}.jsonl", manifest.parent / f"{split}.index.npz"
        digests = self.about["splits"][split]
        for path, digest in ((listed, digests["list_sha256"]), (index, digests["index_sha256"])):
            if not path.is_file() or sha256_file(path) != digest:
                raise UserError(
                    f"{path} is missing or not the one of {manifest}; run the prepare stage again."
                )
        rows = [json.loads(row) for row in listed.read_text(encoding="utf-8").splitlines()]
        root = manifest.parent / self.about["source"]["root"]
        self._check_labels()
        self._check_files(root, {row["file"] for row in rows if "file" in row})
        self._videos = _open_videos(rows, root, index)

    def _check_files(self, root: Path, files: set[str]) -> None:
        source = self.about["source"]
        # Manifests written before there were checksums are made again.
        sizes, checksums = source["bytes"], source.get("checksums", {})
        for file in sorted(files):
            path = root / file
            found = path.stat().st_size if path.is_file() else None
            if found != sizes[file]:
                raise UserError(
                    f"{path} is missing or not the one that was prepared (it had {sizes[file]} "
                    f"bytes): {REMEDY}."
                )
            # Labels may change where sizes and frames stay the same.
            if checksums_digest(path) != checksums.get(file):
                raise UserError(
                    f"{path} is not as it was when it was prepared: run the prepare stage again."
                )

    def _check_labels(self) -> None:
        label_file = self.settings.get("label_file")
        if label_file is None or not Path(label_file).is_file():
            return
        if sha256_file(Path(label_file)) != self.about["inputs"]["label_file"]:
            raise UserError(
                f"{label_file} has changed since the set was prepared: run the prepare stage again."
            )

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[PhaseVideo]:
        return iter(self._videos)

    def __getitem__(self, number: int) -> PhaseVideo:
        return self._videos[number]


def _open_videos(rows: list[dict[str, Any]], root: Path, index_path: Path) -> list[PhaseVideo]:
    whole = FrameIndex.load(index_path)
    with np.load(index_path, allow_pickle=False) as arrays:
        phases = arrays["labels"]
    videos, start, opened = [], 0, OpenFiles()
    for row in rows:
        own = slice(start, start + row["frames"])
        index = FrameIndex(whole.offset[own], whole.length[own], whole.crc[own], whole.times[own])
        labels = phases[own] if row["labelled"] else None
        files = [root / file for file in ([row["file"]] if "file" in row else row["files"])]
        store = PhaseStore(row["name"], files, index, labels, row["action"], opened)
        videos.append(PhaseVideo(row["name"], row["action"], labels, store))
        start = own.stop
    return videos


def link_phases(source: Path, manifest: Path) -> dict[str, Any]:
    """Write the small manifest through which a training reads a set's training split.

    It changes only with that split's videos, frames and labels, and with the set's name and layout,
    not with its other keys.

    Args:
        source: ``manifest.json`` of the set.
        manifest: the manifest to write.

    Returns:
        The manifest, of kind `phase_videos`.
    """
    videos = PhaseVideos(source, "train")
    return write_manifest(
        manifest,
        LINK,
        inputs=videos.about["splits"]["train"],
        parameters={},
        counts={"videos": len(videos), "frames": sum(len(video) for video in videos)},
        source=relative_to(source, manifest.parent),
        set=videos.name,
        layout=videos.kind,
        videos=[video.name for video in videos],
    )


def open_link(manifest: Path) -> list[PhaseStore]:
    """Return the stores of the training split that a manifest of :func:`link_phases` names.

    Raises:
        UserError: the set has changed since.
    """
    about = read_manifest(manifest, LINK)
    source = manifest.parent / about["source"]
    videos = PhaseVideos(source, "train")
    if videos.about["splits"]["train"] != about["inputs"]:
        raise UserError(f"{source} has changed since {manifest}: run the folders stage again.")
    return [video.store for video in videos]
