"""Frames of one video behind an index: the reader that clips are made of, and its folder form.

A store maps a frame's number to the bytes of its JPEG, checked against the CRC-32C that the index
holds, and knows the frames' times. Nothing is parsed and nothing is kept open that a forked or a
spawned worker could not use.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from timewalk.artefacts import atomic_path
from timewalk.data.checksum import crc32c
from timewalk.errors import UserError

REMEDY = "delete it and run the shards stage again"


@dataclass(frozen=True)
class FrameIndex:
    """Where the frames of a video are, one entry a frame.

    Attributes:
        offset: int64, first byte of the JPEG in the file (0 for frames in files of their own).
        length: int32, bytes of the JPEG.
        crc: uint32, CRC-32C of the JPEG.
        times: float64, seconds from the video's first frame.
    """

    offset: np.ndarray
    length: np.ndarray
    crc: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    def save(self, path: Path) -> None:
        """Write the index as ``.npz``, atomically; the same content is the same bytes."""
        with atomic_path(path) as temporary:
            np.savez(
                temporary, offset=self.offset, length=self.length, crc=self.crc, times=self.times
            )

    @classmethod
    def load(cls, path: Path) -> "FrameIndex":
        """Read what :meth:`save` wrote; its digest has been compared before."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["offset"], arrays["length"], arrays["crc"], arrays["times"])


class FrameStore(Protocol):
    """The frames of one video.

    Attributes:
        video: the video's name.
        times: (T,) float64, seconds.
    """

    video: str
    times: np.ndarray

    def __len__(self) -> int:
        """Return the number of frames."""

    def jpeg(self, index: int) -> bytes:
        """Return a frame's JPEG, verified; damage is a :class:`UserError` with file and offset."""

    def where(self, index: int) -> str:
        """Return file and offset of a frame, for messages."""


def frame_path(folder: Path, index: int) -> Path:
    """Return the path of a frame as the frames stage names it."""
    return folder / f"{index:06d}.jpg"


def load_times(folder: Path, frames_manifest: dict[str, Any]) -> np.ndarray:
    """Return the time of each frame in seconds, (T,) float64, and check their number."""
    path = folder / "times.npy"
    count = int(frames_manifest["counts"]["frames"])
    try:
        times: np.ndarray = np.load(path, allow_pickle=False).astype(np.float64)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the frames stage again.") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); run the frames stage again.") from None
    if times.shape != (count,):
        raise UserError(
            f"{path} holds {times.size} times but the manifest beside it says {count} frames; "
            "run the frames stage again."
        )
    return times


class FolderStore:
    """Frames in files of their own, as the frames stage leaves them."""

    def __init__(self, video: str, folder: Path, index: FrameIndex) -> None:
        self.video, self.folder, self.index = video, folder, index
        self.times = index.times

    def __len__(self) -> int:
        return len(self.index)

    def jpeg(self, index: int) -> bytes:
        """Return a frame's JPEG, verified."""
        path = frame_path(self.folder, index)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path} is missing: run the frames stage again.") from None
        return verified(data, self.index, index, self.where(index), "run the frames stage again")

    def where(self, index: int) -> str:
        """Return the frame's file."""
        return str(frame_path(self.folder, index))


def verified(data: bytes, index: FrameIndex, number: int, where: str, remedy: str) -> bytes:
    """Return ``data`` if it is frame ``number`` of the index, else raise a :class:`UserError`."""
    if len(data) != index.length[number]:
        raise UserError(
            f"{where}: frame {number} has {len(data)} bytes instead of {index.length[number]}; "
            f"{remedy}."
        )
    if crc32c(data) != index.crc[number]:
        raise UserError(
            f"{where}: frame {number} is damaged (its checksum does not match); {remedy}."
        )
    return data
