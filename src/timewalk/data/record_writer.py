"""Videos to TFRecords of the TCC schema: what all sources share.

Each video becomes one SequenceExample, as TCC's released code writes it: frames as JPEG (Pillow,
quality 95, optimised, 4:2:0), a phase for each frame where there is a label file. Beyond the
schema, and passed over by other readers: the list `time_us`, each frame's time in microseconds, and
the context's `fps`.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from timewalk.artefacts import sha256_file, sha256_json, version
from timewalk.data.phase_labels import (
    Segments,
    doubts,
    labels_at,
    read_label_file,
    segments_of_video,
)
from timewalk.data.record_sets import Encoded, RecordSet
from timewalk.data.tfrecord import VideoRecord
from timewalk.errors import UserError

Pixels = NDArray[np.uint8]

QUALITY = 95
LARGEST = 2**31 - 1
"""bytes of a protobuf message: what other readers can parse"""
LONGEST = 65500
"""pixels of a JPEG's side: what its libraries write"""
SLOWEST, FASTEST = 1e-6, 1e6
"""frames a second that --fps may ask for"""


@dataclass(frozen=True)
class RecordSettings:
    """What the converters share; the defaults are the published tools'.

    Attributes:
        per_shard: videos in a file.
        rotate: turn each frame by 90 degrees clockwise, after resizing.
        resize: bring each frame to `width` x `height`, whatever its aspect.
        width: pixels, before `rotate`.
        height: likewise.
        class_names: names of the phases, by phase; empty: none are written.
        action_label: label of all videos; -1: none.
        label_file: segments of the phases; None: frames have no labels.
        expected_segments: number of phases in the label file; -1: there is none.
        shuffle_seed: seed by which the videos are shuffled; None: they stay in order.
    """

    per_shard: int = 1
    rotate: bool = False
    resize: bool = True
    width: int = 224
    height: int = 224
    class_names: tuple[str, ...] = ()
    action_label: int = -1
    label_file: Path | None = None
    expected_segments: int = -1
    shuffle_seed: int | None = None

    def __post_init__(self) -> None:
        for option, value in (
            ("--per-shard", self.per_shard),
            ("--width", self.width),
            ("--height", self.height),
        ):
            if value < 1:
                raise UserError(f"{option}: {value} is less than 1; correct it.")
        for option, side in (("--width", self.width), ("--height", self.height)):
            if side > LONGEST:
                raise UserError(f"{option}: {side} is more than a JPEG's {LONGEST}; lower it.")
        if not -(2**63) <= self.action_label < 2**63:
            raise UserError(
                f"--action-label: {self.action_label} needs more than 64 bits; lower it."
            )
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            raise UserError(f"--shuffle-seed: {self.shuffle_seed} is below 0; correct it.")
        if self.label_file is not None and self.expected_segments < 1:
            raise UserError("--label-file needs --expected-segments, the number of phases in it.")
        if self.label_file is None and self.expected_segments != -1:
            raise UserError("--expected-segments goes with --label-file; give both or neither.")
        if not all(self.class_names):
            raise UserError("--frame-labels has an empty name; give names joined by commas.")
        named = len(self.class_names)
        if self.label_file is not None and named not in (0, self.expected_segments):
            raise UserError(
                f"--frame-labels gives {named} names but --expected-segments says "
                f"{self.expected_segments}; correct one of them."
            )


class FrameSource(Protocol):
    """A video as its converter reads it.

    Attributes:
        name: of its record, and its key in the label file.
        place: file or folder, for messages.
        fps: frames a second of what `frames` yields.
    """

    @property
    def name(self) -> str:
        """Return the name."""
        ...

    @property
    def place(self) -> Path:
        """Return file or folder."""
        ...

    @property
    def fps(self) -> float:
        """Return the rate."""
        ...

    def stamp(self) -> Any:
        """Return what tells a changed source from the same one, without reading it, as JSON."""

    def sha256(self) -> str:
        """Return the digest of the source's content."""

    def frames(self) -> Iterator[tuple[float, Pixels]]:
        """Yield seconds from the first frame, and RGB uint8 (H, W, 3)."""


def write_record_set(
    sources: Sequence[FrameSource],
    output: Path,
    name: str,
    settings: RecordSettings,
    *,
    about: dict[str, Any],
    inputs: dict[str, str],
    warnings: list[str],
    workers: int = 1,
) -> dict[str, Any]:
    """Write videos as shards of TFRecords and return their manifest.

    Args:
        sources: the videos, in order.
        output: folder of the shards.
        name: their prefix.
        settings: as the converter was called.
        about: the converter's own settings, for the manifest.
        inputs: digests of its own input files.
        warnings: sentences for the manifest.
        workers: threads; the files do not depend on it.

    Raises:
        UserError: two videos of one name, a video without labels, a source that cannot be read.
    """
    check_names(sources)
    if settings.shuffle_seed is not None:
        order = np.random.default_rng(settings.shuffle_seed).permutation(len(sources))
        sources = [sources[place] for place in order.tolist()]
    segments = _segments(sources, settings)
    if settings.label_file is not None:
        inputs = {**inputs, "label_file": sha256_file(settings.label_file)}
    parameters = {**about, **_plain(settings)}
    stamps = [[source.name, source.stamp()] for source in sources]
    key = sha256_json([parameters, inputs, stamps, version()])
    videos = [
        partial(_encoded, source, settings, own)
        for source, own in zip(sources, segments, strict=True)
    ]
    return RecordSet(output, name, key).write(
        videos, settings.per_shard, workers, inputs, parameters, warnings
    )


def check_names(sources: Iterable[FrameSource]) -> None:
    """Raise a :class:`UserError` where two videos would be records of one name."""
    seen: dict[str, Path] = {}
    for source in sources:
        if source.name in seen:
            raise UserError(
                f"{seen[source.name]} and {source.place} would both be '{source.name}'; rename "
                "one of them."
            )
        seen[source.name] = source.place


def _segments(
    sources: Sequence[FrameSource], settings: RecordSettings
) -> list[Segments] | list[None]:
    if settings.label_file is None:
        return [None] * len(sources)
    path, count = settings.label_file, settings.expected_segments
    labelled = read_label_file(path)
    return [segments_of_video(labelled, source.name, count, path) for source in sources]


def _plain(settings: RecordSettings) -> dict[str, Any]:
    """Return the settings as JSON; the label file counts by its content."""
    values = {**vars(settings), "class_names": list(settings.class_names)}
    del values["label_file"]
    return values


def _encoded(source: FrameSource, settings: RecordSettings, segments: Segments | None) -> Encoded:
    record, size = video_record(source, settings, segments)
    data = record.encode()
    if len(data) > LARGEST:
        raise UserError(
            f"{source.place} makes a record of {len(data)} bytes, but readers take {LARGEST}; "
            "thin it with --fps, make its frames smaller, or divide it."
        )
    about = {
        "name": source.name,
        "frames": len(record.frames),
        "fps": source.fps,
        "width": size[0],
        "height": size[1],
        "sha256": source.sha256(),
        "doubts": doubts(segments, _times(record)) if segments else [],
    }
    return Encoded(data, about)


def _times(record: VideoRecord) -> list[float]:
    return [int(time) / 1e6 for (time,) in record.lists["time_us"]]


def video_record(
    source: FrameSource, settings: RecordSettings, segments: Segments | None
) -> tuple[VideoRecord, tuple[int, int]]:
    """Return a video's record, and width and height of its frames.

    Raises:
        UserError: frames of several sizes, or that cannot be read.
    """
    times: list[float] = []
    jpegs: list[bytes] = []
    size: tuple[int, int] | None = None
    for time, pixels in source.frames():
        fitted = fit(pixels, settings)
        height, width = fitted.shape[:2]
        if max(height, width) > LONGEST:
            raise UserError(
                f"{source.place} has frames of {width}x{height} pixels, but a JPEG's side has at "
                f"most {LONGEST}; leave --no-resize out."
            )
        if size not in (None, (width, height)):
            raise UserError(
                f"{source.place} has frames of several sizes, {size} and {(width, height)}; "
                "leave --no-resize out."
            )
        size = width, height
        times.append(time)
        jpegs.append(jpeg_of(fitted))
    assert size is not None, f"{source.place}: no frames"
    labels = None
    if segments is not None:
        labels = labels_at(segments, times, f"{settings.label_file}, '{source.name}'").tolist()
    record = VideoRecord(
        name=source.name,
        frames=jpegs,
        label=settings.action_label,
        class_names=list(settings.class_names),
        frame_labels=labels,
        context={"fps": [float(source.fps)]},
        lists={"time_us": [[round(time * 1e6)] for time in times]},
    )
    return record, size


def fit(pixels: Pixels, settings: RecordSettings) -> Pixels:
    """Return a frame resized and turned: (width, height, 3) if it is turned, else (height, width,
    3).

    The resizing is bilinear between the four nearest pixels, without smoothing, as OpenCV's.
    """
    if settings.resize and pixels.shape[:2] != (settings.height, settings.width):
        image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
        size = (settings.height, settings.width)
        resized = F.interpolate(image, size, mode="bilinear", align_corners=False)
        pixels = resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return np.rot90(pixels, -1) if settings.rotate else pixels


def jpeg_of(pixels: Pixels) -> bytes:
    """Return RGB uint8 (H, W, 3) as JPEG with the published settings."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
