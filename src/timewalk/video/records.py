"""Videos to TFRecords of the TCC schema, as TCC's `videos_to_tfrecords` writes them.

Every frame, or those whose index is a multiple of ``int(rate of the video / fps)``; upright,
RGB. A frame's time is its presentation time by the container's clock, in seconds from the first
frame: labels, too, are looked up there, also where the rate varies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timewalk.artefacts import sha256_file
from timewalk.data.record_writer import (
    FASTEST,
    SLOWEST,
    Pixels,
    RecordSettings,
    write_record_set,
)
from timewalk.errors import UserError
from timewalk.video.frames import source_times
from timewalk.video.probe import VideoInfo, probe
from timewalk.video.segments import Piece, decoded

TOLERANCE = 1e-6
"""frames a second by which --fps may exceed a video's, whose rate is a fraction"""


@dataclass(frozen=True)
class VideoFile:
    """A video of which every ``step``-th frame is read."""

    place: Path
    info: VideoInfo
    step: int

    @property
    def name(self) -> str:
        """Return the file's name without its suffix."""
        return self.place.stem

    @property
    def fps(self) -> float:
        """Return the rate of the frames that are kept."""
        return self.info.fps / self.step

    def stamp(self) -> list[int]:
        """Return step, length and time of change of the file."""
        stat = self.place.stat()
        return [self.step, stat.st_size, stat.st_mtime_ns]

    def sha256(self) -> str:
        """Return the digest of the file."""
        return sha256_file(self.place)

    def frames(self) -> Iterator[tuple[float, Pixels]]:
        """Yield times and pixels of the frames that are kept.

        Raises:
            UserError: damaged on the way.
        """
        times = source_times(self.place).tolist()
        count = 0
        for count, frame in enumerate(decoded(_whole(self.place, self.info)), start=1):
            if count <= len(times) and (count - 1) % self.step == 0:
                turns = int(getattr(frame, "rotation", 0) or 0) // 90 % 4
                yield times[count - 1], np.rot90(frame.to_ndarray(format="rgb24"), turns)
        if count != len(times):
            raise UserError(
                f"{self.place} gave {count} of {len(times)} frames: it is damaged; fetch it again."
            )


def _whole(video: Path, info: VideoInfo) -> Piece:
    return Piece(
        source=video,
        target=video,
        start=None,
        end=None,
        first=0,
        frames=info.frames,
        rate=info.rate,
        size=(info.width, info.height),
        aspect=None,
    )


def video_file(path: Path, fps: float = 0.0) -> VideoFile:
    """Return a video to be read whole, or thinned.

    Args:
        path: the video.
        fps: 0: every frame; else those whose index is a multiple of ``int(rate / fps)``, which is
            no resampling: 10 of 25 keeps every second frame.

    Raises:
        UserError: no video, a damaged one, or one of fewer frames a second.
    """
    info = probe(path)
    if fps > info.fps + TOLERANCE:
        raise UserError(
            f"{path} has {info.fps:g} frames a second, --fps asks for {fps:g}; lower it, or leave "
            "it out for every frame."
        )
    return VideoFile(path, info, max(1, int(info.fps / fps)) if fps else 1)


def find_videos(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the videos in a folder that match a pattern, by name; hidden ones are passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of the videos.")
    for pattern in patterns:
        if not pattern or Path(pattern).is_absolute():
            raise UserError(f"--pattern: '{pattern}' is to be relative to {folder}, as '*.mp4'.")
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.name[0] != ".")


def convert_videos(
    folder: Path,
    output: Path,
    name: str,
    settings: RecordSettings,
    *,
    patterns: Sequence[str] = ("*.mp4",),
    fps: float = 0.0,
    workers: int = 1,
) -> dict[str, Any]:
    """Write the videos of a folder as TFRecords; return their manifest.

    Args:
        folder: where the videos lie.
        output: folder to write.
        name: prefix of the files, by convention ``<data set>_<split>``.
        settings: what both converters share.
        patterns: which files; sorted by name.
        fps: see :func:`video_file`.
        workers: threads; the files do not depend on it.

    Raises:
        UserError: nothing matches, two videos of one name, a video that cannot be read.
    """
    if fps != 0 and not SLOWEST <= fps <= FASTEST:
        raise UserError(
            f"--fps: {fps:g} is not between {SLOWEST:g} and {FASTEST:g}; 0 keeps every frame."
        )
    paths = find_videos(folder, patterns)
    if not paths:
        raise UserError(f"{folder} holds no file like {' or '.join(patterns)}; see --pattern.")
    videos = [video_file(path, fps) for path in paths]
    return write_record_set(
        videos,
        output,
        name,
        settings,
        about={
            "source": "videos",
            "patterns": list(patterns),
            "fps": fps,
            "times": "presentation time by the container's clock, from the first frame",
        },
        inputs={},
        warnings=[
            f"{video.place.name} has a variable frame rate: fps counts frames, not seconds"
            for video in videos
            if fps and video.info.variable_frame_rate
        ],
        workers=workers,
    )
