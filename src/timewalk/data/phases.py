"""Videos of actions as the prepare stage indexed them: frames by offset, and a phase a frame.

``manifest.json`` (kind `labelled_phases`) is small; beside it lie, for each split, the list of
videos ``<split>.jsonl`` and the index of their frames ``<split>.index.npz``: offset, length,
CRC-32C and time of each frame, and its label (-1 where the video has none). Frames stay in the
TFRecords, or in the files of their own, in which they came.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from timewalk.artefacts import read_manifest, sha256_file, write_manifest
from timewalk.data.decode import decode_frames
from timewalk.data.folder import FrameIndex, verified
from timewalk.data.prepare.folder import relative_to
from timewalk.errors import UserError

KIND = "labelled_phases"
LINK = "phase_videos"
"""kind of the manifest through which a training reads the training split"""
UNLABELLED = -1
REMEDY = "restore the file, or run the prepare stage again"

Split = Literal["train", "test"]


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
    ) -> None:
        self.video, self.files, self.index = video, tuple(files), index
        self.times, self.labels, self.action = index.times, labels, action

    def __len__(self) -> int:
        return len(self.index)

    def jpeg(self, index: int) -> bytes:
        """Return a frame's JPEG, verified."""
        path = self._file(index)
        try:
            # Opened for each frame: sets have more videos than a process may have open files.
            with open(path, "rb") as file:
                file.seek(int(self.index.offset[index]))
                data = file.read(int(self.index.length[index]))
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
                is missing or not the manifest's.
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
        self._check_files(root, {row["file"] for row in rows if "file" in row})
        self._videos = _open_videos(rows, root, index)

    def _check_files(self, root: Path, files: set[str]) -> None:
        sizes = self.about["source"]["bytes"]
        for file in sorted(files):
            path = root / file
            found = path.stat().st_size if path.is_file() else None
            if found != sizes[file]:
                raise UserError(
                    f"{path} is missing or not the one that was prepared (it had {sizes[file]} "
                    f"bytes): {REMEDY}."
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
    videos, start = [], 0
    for row in rows:
        own = slice(start, start + row["frames"])
        index = FrameIndex(whole.offset[own], whole.length[own], whole.crc[own], whole.times[own])
        labels = phases[own] if row["labelled"] else None
        files = [root / file for file in ([row["file"]] if "file" in row else row["files"])]
        store = PhaseStore(row["name"], files, index, labels, row["action"])
        videos.append(PhaseVideo(row["name"], row["action"], labels, store))
        start = own.stop
    return videos


def link_phases(source: Path, manifest: Path) -> dict[str, Any]:
    """Write the small manifest through which a training reads a set's training split.

    It changes only with that split's videos, frames and labels, not with the set's other keys.

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
