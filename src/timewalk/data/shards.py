"""Frames packed for training: a TFRecord with an index, or an index over the folder itself.

For each video three files: ``<video>.json`` (the manifest, the declared output),
``<video>.index.npz`` (offset, length, CRC-32C and time of each frame) and, with storage
`tfrecord`, ``<video>.tfrecord``. JPEGs are copied byte for byte. A long video is many records
of at most `FRAMES_PER_RECORD` frames: a record is one protobuf message, which has to fit into
memory.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from timewalk.artefacts import atomic_path, read_manifest, sha256_file, write_manifest
from timewalk.data.checksum import crc32c
from timewalk.data.folder import (
    REMEDY,
    FolderStore,
    FrameIndex,
    FrameStore,
    frame_path,
    load_times,
    verified,
)
from timewalk.data.images import open_images
from timewalk.data.protobuf import jpeg_spans
from timewalk.data.tfrecord import HEADER_BYTES, VideoRecord, frame_record
from timewalk.errors import UserError

FRAMES_PER_RECORD = 256
BYTES_PER_RECORD = 64 * 2**20  # of large frames fewer: a record is held in memory a few times


@dataclass
class _Frames:
    """A checked folder of frames, read one by one in order; counts while it is read."""

    folder: Path
    count: int
    size: tuple[int, int]
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    crc: list[int] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def read(self) -> Iterator[bytes]:
        for number in range(self.count):
            data = _checked_jpeg(frame_path(self.folder, number), self.size)
            self.length.append(len(data))
            self.crc.append(crc32c(data))
            self.digest.update(data)
            yield data


def write_shards(
    frames_manifest: Path, manifest: Path, storage: Literal["tfrecord", "folder"]
) -> dict[str, Any]:
    """Pack or index the frames of one video.

    Args:
        frames_manifest: ``manifest.json`` of the frames stage, frames and times beside it.
        manifest: ``<video>.json`` to write; the other files go beside it.
        storage: `tfrecord` copies the JPEGs into one file; `folder` leaves them where they are.

    Returns:
        The manifest, of kind `shards`.

    Raises:
        UserError: a frame is missing, is no JPEG, is cut off or of another size than the first.
    """
    # The old manifest must not describe new data if this run is killed in between.
    manifest.unlink(missing_ok=True)
    about = read_manifest(frames_manifest, "frames")
    folder, video = frames_manifest.parent, manifest.stem
    counts = about["counts"]
    frames = _Frames(folder, int(counts["frames"]), (int(counts["width"]), int(counts["height"])))
    times = load_times(folder, about)
    data = manifest.with_suffix(".tfrecord")
    if storage == "tfrecord":
        _write_tfrecord(data, video, frames, times)
        place: dict[str, Any] = {"file": data.name, "file_bytes": data.stat().st_size}
    else:
        data.unlink(missing_ok=True)
        _index_folder(frames)
        place = {"folder": Path(os.path.relpath(folder, manifest.parent)).as_posix()}
    index_path = manifest.with_suffix(".index.npz")
    FrameIndex(
        np.array(frames.offset, np.int64),
        np.array(frames.length, np.int32),
        np.array(frames.crc, np.uint32),
        times,
    ).save(index_path)
    return write_manifest(
        manifest,
        "shards",
        inputs={"frames": sha256_file(frames_manifest)},
        parameters={"storage": storage},
        counts={
            "frames": frames.count,
            "width": frames.size[0],
            "height": frames.size[1],
            "bytes": sum(frames.length),
        },
        video=video,
        index=index_path.name,
        index_sha256=sha256_file(index_path),
        frames_sha256=frames.digest.hexdigest(),
        **place,
    )


def _write_tfrecord(path: Path, video: str, frames: _Frames, times: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for start, jpegs in _batches(frames.read()):
            data = _record(video, frames, times, start, jpegs).encode()
            base = file.tell() + HEADER_BYTES
            frames.offset += [base + offset for offset, _ in jpeg_spans(data)]
            before, after = frame_record(data)
            file.writelines((before, data, after))


def _batches(jpegs: Iterator[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield number of the first frame and the frames of each record."""
    start, batch, size = 0, [], 0
    for jpeg in jpegs:
        batch.append(jpeg)
        size += len(jpeg)
        if len(batch) == FRAMES_PER_RECORD or size >= BYTES_PER_RECORD:
            yield start, batch
            start, batch, size = start + len(batch), [], 0
    if batch:
        yield start, batch


def _record(
    video: str, frames: _Frames, times: np.ndarray, start: int, jpegs: list[bytes]
) -> VideoRecord:
    # Readers keyed by name (TCC's) would drop all but the last of several records of one name.
    whole = len(jpegs) == frames.count
    return VideoRecord(
        name=video if whole else f"{video}-{start:07d}",
        frames=jpegs,
        context={
            "video": [video.encode()],
            "start": [start],
            "frames": [frames.count],
            "width": [frames.size[0]],
            "height": [frames.size[1]],
        },
        lists={
            "time_us": [[round(float(time) * 1e6)] for time in times[start : start + len(jpegs)]]
        },
    )


def _index_folder(frames: _Frames) -> None:
    for _ in frames.read():
        frames.offset.append(0)


def _checked_jpeg(path: Path, size: tuple[int, int]) -> bytes:
    """Return a file's bytes if they begin and end as a JPEG of this (width, height)."""
    remedy = "run the frames stage again."
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            found = image.size
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is no JPEG image: {remedy}") from None
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise UserError(f"{path} is cut off (no end-of-image mark): {remedy}")
    if found != size:
        raise UserError(
            f"{path} is {found[0]}x{found[1]} pixels but the manifest beside it says "
            f"{size[0]}x{size[1]}: {remedy}"
        )
    return data


class RecordStore:
    """Frames in a TFRecord, read by offset. Usable after fork, spawn and pickling."""

    def __init__(self, video: str, path: Path, index: FrameIndex) -> None:
        self.video, self.path, self.index = video, path, index
        self.times = index.times
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.index)

    def jpeg(self, index: int) -> bytes:
        """Return a frame's JPEG, verified."""
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115 (kept for later frames)
        # pread has no position of its own: forked workers may share the descriptor.
        length, offset = int(self.index.length[index]), int(self.index.offset[index])
        data = os.pread(self._file.fileno(), length, offset)
        return verified(data, self.index, index, self.where(index), REMEDY)

    def where(self, index: int) -> str:
        """Return file and offset of a frame."""
        return f"{self.path} at byte {self.index.offset[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


def open_store(manifest: Path) -> FrameStore:
    """Return the frames of one video, whatever the storage.

    Raises:
        UserError: a file is missing, or is not the one that the manifest describes.
    """
    about = read_manifest(manifest, "shards")
    index = _load_index(manifest.parent / about["index"], about)
    if "images" in about:
        return open_images(manifest, about, index)
    if "folder" in about:
        return FolderStore(about["video"], manifest.parent / about["folder"], index)
    path = manifest.parent / about["file"]
    if not path.is_file():
        raise UserError(f"{path} is missing: delete {manifest} and run the shards stage again.")
    found = path.stat().st_size
    if found != about["file_bytes"]:
        raise UserError(
            f"{path} has {found} bytes but {manifest.name} says {about['file_bytes']}; {REMEDY}."
        )
    return RecordStore(about["video"], path, index)


def _load_index(path: Path, about: dict[str, Any]) -> FrameIndex:
    if not path.is_file():
        raise UserError(f"{path} is missing: run the shards stage again.")
    if sha256_file(path) != about["index_sha256"]:
        raise UserError(f"{path} is damaged or belongs to another file; {REMEDY}.")
    return FrameIndex.load(path)
