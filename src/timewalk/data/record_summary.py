"""What a TFRecord file holds, record by record, for people: videos, other sequences, Examples."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from timewalk.artefacts import read_json, sha256_file
from timewalk.data.checksum import masked_crc32c
from timewalk.data.protobuf import Feature, WireError, decode_sequence, jpeg_spans
from timewalk.data.record_sets import KIND
from timewalk.data.shards import RecordStore, open_store
from timewalk.data.tfrecord import HEADER_BYTES, VideoRecord, decode_video, read_records
from timewalk.errors import UserError

SHOWN = 8
"""values of a feature that are shown"""
NO_IMAGE = "no image"


def summarise(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what is known of each record, as JSON; both its checksums have been verified.

    Every record has `offset`, `bytes` (of its data), `crc` (masked, of its data) and `kind`:
    `video` (of the TCC schema), `sequence` (another SequenceExample), `example` (no lists) or
    `unknown` (no such message). What is wrong with a record is its `fault`.

    Raises:
        UserError: no file, or a damaged one, with the offset of the first damage.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; name one TFRecord.")
    for offset, data in read_records(path):
        place = {"offset": offset, "bytes": len(data), "crc": f"{masked_crc32c(data):08x}"}
        yield {**place, **_content(data)}


def _content(data: bytes) -> dict[str, Any]:
    try:
        parsed = decode_sequence(data)
    except WireError as error:
        return {"kind": "unknown", "fault": str(error)}
    if "video" in parsed.lists:
        try:
            return _video(decode_video(data))
        except WireError as error:
            return {"kind": "sequence", "fault": str(error), **_lists(parsed.lists, parsed.context)}
    if parsed.lists:
        return {"kind": "sequence", **_lists(parsed.lists, parsed.context)}
    return {"kind": "example", "context": _features(parsed.context)}


def _video(record: VideoRecord) -> dict[str, Any]:
    sizes = list(map(_size, record.frames))
    fault = None if sizes else "it has no frames"
    if NO_IMAGE in sizes:
        fault = f"frame {sizes.index(NO_IMAGE)} is no image"
    labels = record.frame_labels
    times = [item[0] for item in record.lists.get("time_us", []) if len(item)]
    return {
        "kind": "video",
        "name": record.name,
        "frames": len(record.frames),
        "jpeg_bytes": sum(map(len, record.frames)),
        "sizes": dict(Counter(sizes)),
        "label": record.label,
        "label_string": record.label_string,
        "class_names": record.class_names,
        "frame_labels": None if labels is None else dict(sorted(Counter(labels).items())),
        "seconds": [int(times[0]) / 1e6, int(times[-1]) / 1e6] if times else None,
        "extra_context": _features(record.context),
        "extra_lists": {key: len(items) for key, items in record.lists.items()},
        **({"fault": fault} if fault else {}),
    }


def _lists(
    lists: Mapping[str, Sequence[Feature]], context: Mapping[str, Feature]
) -> dict[str, Any]:
    return {
        "context": _features(context),
        "lists": {key: len(items) for key, items in lists.items()},
    }


def _size(jpeg: bytes) -> str:
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            return f"{image.width}x{image.height}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return NO_IMAGE


def _features(features: Mapping[str, Feature]) -> dict[str, str]:
    return {key: _shown(values) for key, values in sorted(features.items())}


def _shown(values: Feature) -> str:
    """Return kind, number and first values of a feature; bytes that are no text by their length."""
    kind = type(values[0]).__name__ if len(values) else "empty"
    words = [_word(value) for value in values[:SHOWN]]
    more = ", ..." if len(values) > SHOWN else ""
    return f"{kind} ({len(values)}): {', '.join(words)}{more}" if words else kind


def _word(value: bytes | int | float) -> str:
    if not isinstance(value, bytes):
        return f"{value:g}" if isinstance(value, float) else str(value)
    readable = len(value) <= 64 and value.isascii() and value.decode("ascii").isprintable()
    return repr(value.decode("ascii")) if readable else f"<{len(value)} bytes>"


def beside(path: Path) -> list[dict[str, Any]]:
    """Return the manifests that describe a file, and where each disagrees with it, as JSON.

    These are ``<video>.json`` with its index, of the shards stage, and ``manifests/<set>.json``, of
    the converters.
    """
    manifests = [path.with_suffix(".json"), *sorted(path.parent.glob("manifests/*.json"))]
    found = []
    for manifest in manifests:
        content = read_json(manifest) if manifest.is_file() else None
        if not isinstance(content, dict):
            continue
        if content.get("kind") == "shards":
            found.append({"manifest": str(manifest), "fault": _against_index(manifest, path)})
        elif content.get("kind") == KIND:
            found += _against_set(manifest, content, path)
    return found


def _against_index(manifest: Path, path: Path) -> str | None:
    try:
        store = open_store(manifest)
    except UserError as error:
        return str(error)
    if not isinstance(store, RecordStore) or store.path != path:
        return f"{manifest} describes another file; see its key 'file'."
    index = list(zip(store.index.offset.tolist(), store.index.length.tolist(), strict=True))
    if _spans(path) != index:
        return f"{path}: its frames lie elsewhere than the index says; run the shards stage again."
    return None


def _spans(path: Path) -> list[tuple[int, int]] | None:
    """Return place and length of each frame in a file; None where a record is of another kind."""
    try:
        return [
            (offset + HEADER_BYTES + start, length)
            for offset, data in read_records(path)
            for start, length in jpeg_spans(data)
        ]
    except WireError:
        return None


def _against_set(manifest: Path, content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    for shard in content["shards"]:
        if shard["file"] == path.name:
            same = sha256_file(path) == shard["sha256"]
            fault = None if same else f"{path} is not the file that {manifest} describes."
            return [{"manifest": str(manifest), "fault": fault}]
    return []


def in_words(record: dict[str, Any]) -> str:
    """Return one record's summary as lines of text."""
    head = (
        f"record at byte {record['offset']}: {record['bytes']} bytes, crc {record['crc']}, "
        "checksums verified"
    )
    lines = _video_lines(record) if record["kind"] == "video" else _other_lines(record)
    return "\n  ".join([head, *lines])


def _video_lines(record: dict[str, Any]) -> Iterator[str]:
    if "fault" in record:
        yield f"fault: {record['fault']}"
    sizes = ", ".join(record["sizes"])
    yield (
        f"video '{record['name']}': {record['frames']} frames, {sizes} pixels, "
        f"{record['jpeg_bytes']} bytes of JPEG"
    )
    if record["seconds"] is not None:
        yield "from {:.3f} s to {:.3f} s".format(*record["seconds"])
    named = f" ({record['label_string']})" if record["label_string"] is not None else ""
    yield f"action label {record['label']}{named}"
    yield from _phase_lines(record["class_names"], record["frame_labels"])
    yield from _feature_lines("further context", record["extra_context"])
    for key, count in sorted(record["extra_lists"].items()):
        yield f"further list {key}: {count} entries"


def _phase_lines(names: list[str], counts: dict[int, int] | None) -> Iterator[str]:
    if counts is None:
        yield "no frame labels"
    if names:
        yield f"class names: {', '.join(names)}"
    for label, count in (counts or {}).items():
        name = f" ({names[label]})" if 0 <= label < len(names) else ""
        yield f"phase {label}{name}: {count} frames"


def _other_lines(record: dict[str, Any]) -> Iterator[str]:
    kinds = {"sequence": "a SequenceExample", "example": "a plain Example"}
    yield kinds.get(record["kind"], "neither a SequenceExample nor an Example")
    if "fault" in record:
        yield f"fault: {record['fault']}"
    yield from _feature_lines("feature", record.get("context", {}))
    for key, count in sorted(record.get("lists", {}).items()):
        yield f"list {key}: {count} entries"


def _feature_lines(what: str, features: Mapping[str, str]) -> Iterator[str]:
    return (f"{what} {key}: {text}" for key, text in features.items())
