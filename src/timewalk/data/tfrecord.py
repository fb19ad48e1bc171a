"""TFRecord files of SequenceExamples, written and read without TensorFlow.

Framing: a record is its length (uint64), the masked CRC-32C of these eight bytes, the data, and
the masked CRC-32C of the data, all little-endian. The data is a protobuf SequenceExample: a
context of named features and named lists of features. Schema of a video: the one of the TCC
tools (Temporal Cycle-Consistency, CVPR 2019): context `name`, `len`, `label`, perhaps
`label_string` and `framelabels_string`; list `video` (one JPEG a frame), perhaps `frame_labels`.
Unlike upstream, both checksums are always verified, `len` is checked against the lists, and keys
are written in sorted order so that files are reproducible.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from timewalk.artefacts import atomic_path
from timewalk.data.checksum import masked_crc32c
from timewalk.data.protobuf import (
    Buffer,
    Feature,
    WireError,
    decode_sequence,
    encode_sequence,
    text,
)
from timewalk.errors import UserError

HEADER_BYTES = 12  # length and its checksum
FOOTER_BYTES = 4  # checksum of the data

T = TypeVar("T")


def frame_record(data: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and after a record's data in the file."""
    length = struct.pack("<Q", len(data))
    before = length + struct.pack("<I", masked_crc32c(length))
    return before, struct.pack("<I", masked_crc32c(data))


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write records to a file, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for data in records:
            before, after = frame_record(data)
            file.writelines((before, data, after))


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the offset at which a record begins, and its data, both checksums verified.

    Raises:
        UserError: a wrong checksum or a truncated tail, with file and offset.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that makes it.") from None
    with file:
        offset = 0
        while header := file.read(HEADER_BYTES):
            data = _read_data(file, header, path, offset)
            yield offset, data
            offset += HEADER_BYTES + len(data) + FOOTER_BYTES


def _read_data(file: BinaryIO, header: bytes, path: Path, offset: int) -> bytes:
    remedy = "delete it and make it again."
    known = len(header) == HEADER_BYTES and _intact(header)
    if offset == 0 and not known:
        raise UserError(
            f"{path} is no TFRecord, or is damaged at byte 0; name another file, or restore it."
        )
    if len(header) < HEADER_BYTES:
        raise UserError(f"{path} is cut off in the record that begins at byte {offset}: {remedy}")
    if not known:
        raise UserError(
            f"{path} is damaged: the length of the record at byte {offset} does not match its "
            f"checksum; {remedy}"
        )
    (length,) = struct.unpack("<Q", header[:8])
    body = file.read(length + FOOTER_BYTES)
    if len(body) < length + FOOTER_BYTES:
        raise UserError(f"{path} is cut off in the record that begins at byte {offset}: {remedy}")
    data = body[:length]
    if masked_crc32c(data) != struct.unpack("<I", body[length:])[0]:
        raise UserError(
            f"{path} is damaged: the data of the record at byte {offset} does not match its "
            f"checksum; {remedy}"
        )
    return data


def checksums_digest(path: Path) -> str:
    """Return the SHA-256 over lengths and checksums of a file's records, without reading the rest.

    It tells a file that was made again from the same one, in a few bytes a record; damage within a
    record it does not show.
    """
    digest, size, offset = hashlib.sha256(), path.stat().st_size, 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(HEADER_BYTES)
            digest.update(header)
            offset += HEADER_BYTES + int.from_bytes(header[:8], "little")
            if offset < size:
                file.seek(offset)
                digest.update(file.read(FOOTER_BYTES))
            offset += FOOTER_BYTES
    return digest.hexdigest()


def _intact(header: bytes) -> bool:
    return masked_crc32c(header[:8]) == struct.unpack("<I", header[8:])[0]


@dataclass
class VideoRecord:
    """One video, or a part of one, as a record of the TCC schema.

    Attributes:
        name: the video's name, unique within a file.
        frames: a JPEG a frame.
        label: action label; -1 is the tools' "none".
        label_string: name of the action.
        class_names: names of the phases; a phase's index is its position.
        frame_labels: index of the phase, frame by frame.
        context: further context features, which other readers ignore.
        lists: further lists, one feature a frame, which other readers ignore.
    """

    name: str
    frames: list[bytes]
    label: int = -1
    label_string: str | None = None
    class_names: list[str] = field(default_factory=list)
    frame_labels: list[int] | None = None
    context: dict[str, Feature] = field(default_factory=dict)
    lists: dict[str, list[Feature]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the record's bytes."""
        context: dict[str, Feature] = dict(self.context)
        context |= {"name": [self.name.encode()], "len": [len(self.frames)], "label": [self.label]}
        if self.label_string is not None:
            context["label_string"] = [self.label_string.encode()]
        if self.class_names:
            context["framelabels_string"] = [",".join(self.class_names).encode()]
        lists: dict[str, list[Feature]] = dict(self.lists)
        lists["video"] = [[frame] for frame in self.frames]
        if self.frame_labels is not None:
            lists["frame_labels"] = [[label] for label in self.frame_labels]
        return encode_sequence(context, lists)


_OWN_CONTEXT = ("name", "len", "label", "label_string", "framelabels_string")
_OWN_LISTS = ("video", "frame_labels")


def decode_video(data: Buffer) -> VideoRecord:
    """Parse a record and check it against the schema.

    Raises:
        WireError: not a SequenceExample, a key is absent or of another type, or `len` differs
            from the number of frames or of frame labels.
    """
    parsed = decode_sequence(data)
    context, lists = parsed.context, parsed.lists
    if "video" not in lists:
        raise WireError("no list 'video'")
    record = VideoRecord(
        name=text(_one(context, "name", bytes)),
        frames=[_single(item, "video", bytes) for item in lists["video"]],
        label=_one(context, "label", int),
        context={key: value for key, value in context.items() if key not in _OWN_CONTEXT},
        lists={key: value for key, value in lists.items() if key not in _OWN_LISTS},
    )
    if "label_string" in context:
        record.label_string = text(_one(context, "label_string", bytes))
    if "framelabels_string" in context:
        record.class_names = text(_one(context, "framelabels_string", bytes)).split(",")
    if "frame_labels" in lists:
        record.frame_labels = [_single(item, "frame_labels", int) for item in lists["frame_labels"]]
    _check_lengths(record, _one(context, "len", int))
    return record


def _check_lengths(record: VideoRecord, length: int) -> None:
    if length != len(record.frames):
        raise WireError(f"'len' is {length} but 'video' has {len(record.frames)} frames")
    if record.frame_labels is not None and length != len(record.frame_labels):
        raise WireError(f"'len' is {length} but 'frame_labels' has {len(record.frame_labels)}")


def _one(context: Mapping[str, Feature], key: str, kind: type[T]) -> T:
    return _single(context.get(key, []), key, kind)


def _single(values: Feature, key: str, kind: type[T]) -> T:
    if len(values) != 1 or not isinstance(values[0], kind):
        raise WireError(f"'{key}' should hold one value of type {kind.__name__}")
    return values[0]


def read_videos(path: Path) -> Iterator[VideoRecord]:
    """Yield the videos of a file.

    Raises:
        UserError: a damaged file, or a record that is not of the schema; with file and offset.
    """
    for offset, data in read_records(path):
        try:
            yield decode_video(data)
        except WireError as error:
            raise UserError(
                f"{path}: the record at byte {offset} is not a video of the schema: {error}; "
                "make the file again."
            ) from None


def write_videos(path: Path, videos: Iterable[VideoRecord]) -> None:
    """Write videos to a file, atomically; two of one name are an error (upstream loses one)."""

    def encoded() -> Iterator[bytes]:
        seen: set[str] = set()
        for video in videos:
            if video.name in seen:
                raise UserError(f"{path}: two videos are named '{video.name}'; rename one of them.")
            seen.add(video.name)
            yield video.encode()

    write_records(path, encoded())


def shard_name(name: str, shard: int, total: int) -> str:
    """Return the file name of a shard: both numbers padded to the digits of ``total``."""
    digits = len(str(total))
    return f"{name}-{shard:0{digits}d}-of-{total:0{digits}d}.tfrecord"
