"""SequenceExample and Example in protobuf's wire format, without protobuf.

A feature is a list of bytes, of float (32 bits in the file) or of int; context and plain Example
map names to features, lists map names to one feature an entry. Keys are written in sorted order,
so that the same content is always the same bytes.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Feature = Sequence[bytes] | Sequence[int] | Sequence[float]
Buffer = bytes | bytearray | memoryview

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = 0, 1, 2, 3, 4, 5


class WireError(ValueError):
    """Bytes that are not the protobuf message they should be."""


@dataclass
class SequenceExample:
    """A parsed SequenceExample: the features of each name; of each list, entry by entry.

    A feature is a list of bytes, of int or of float; an absent one is an empty list.
    """

    context: dict[str, Feature] = field(default_factory=dict)
    lists: dict[str, list[Feature]] = field(default_factory=dict)


def encode_sequence(
    context: Mapping[str, Feature], lists: Mapping[str, Sequence[Feature]]
) -> bytes:
    """Return the bytes of a SequenceExample, keys in sorted order."""
    entries = b"".join(
        _entry(key, b"".join(_field(1, encode_feature(item)) for item in lists[key]))
        for key in sorted(lists)
    )
    return _field(1, encode_features(context)) + _field(2, entries)


def encode_features(features: Mapping[str, Feature]) -> bytes:
    """Return the bytes of a Features message, keys in sorted order."""
    return b"".join(_entry(key, encode_feature(features[key])) for key in sorted(features))


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Return the bytes of a plain Example."""
    return _field(1, encode_features(features))


def encode_feature(values: Feature) -> bytes:
    """Return the bytes of a Feature; the first value's type says which kind."""
    if len(values) == 0:
        return b""
    if isinstance(values[0], bytes):
        return _field(1, b"".join(_field(1, value) for value in values))  # type: ignore[arg-type]
    if isinstance(values[0], float):
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    return _field(3, _field(1, b"".join(_varint(int(value)) for value in values)))


def decode_sequence(data: Buffer) -> SequenceExample:
    """Parse a SequenceExample.

    Takes packed and unpacked numbers, fields and map entries in any order (of two entries of one
    key the later one wins; parts of one message are joined), and skips unknown fields.

    Raises:
        WireError: the bytes are not such a message.
    """
    view = memoryview(data)
    result = SequenceExample()
    for number, span in _messages(view):
        if number == 1:
            result.context |= decode_features(view[span])
        elif number == 2:
            for key, inner in _entries(view[span]):
                items = [item for n, item in _messages(inner) if n == 1]
                result.lists[key] = [decode_feature(inner[item]) for item in items]
    return result


def decode_example(data: Buffer) -> dict[str, Feature]:
    """Parse a plain Example into its features."""
    view = memoryview(data)
    result: dict[str, Feature] = {}
    for number, span in _messages(view):
        if number == 1:
            result |= decode_features(view[span])
    return result


def decode_features(view: memoryview) -> dict[str, Feature]:
    """Parse a Features message."""
    return {key: decode_feature(value) for key, value in _entries(view)}


def decode_feature(view: memoryview) -> Feature:
    """Parse a Feature into a list of bytes, of float or of int; of no kind: an empty list."""
    values: Feature = []
    kind = 0
    for number, span in _messages(view):
        if number in _LISTS:
            part = _LISTS[number](view[span])
            # Of a oneof the last kind wins; parts of one kind are joined.
            values, kind = [*values, *part] if number == kind else part, number
    return values


def _bytes_list(view: memoryview) -> list[bytes]:
    return [bytes(view[span]) for number, span in _messages(view) if number == 1]


def _float_list(view: memoryview) -> list[float]:
    values: list[float] = []
    for number, wire, span in _fields(view):
        if number == 1 and wire in (_BYTES, _FIXED32):
            raw = view[span]
            if len(raw) % 4:
                raise WireError("a list of floats of a length that four does not divide")
            values += struct.unpack(f"<{len(raw) // 4}f", raw)
    return values


def _int_list(view: memoryview) -> list[int]:
    values: list[int] = []
    for number, wire, span in _fields(view):
        if number == 1 and wire in (_BYTES, _VARINT):
            raw, position = view[span], 0
            while position < len(raw):
                value, position = _read_varint(raw, position)
                values.append(value - (1 << 64) if value >> 63 else value)
    return values


_LISTS: dict[int, Callable[[memoryview], Feature]] = {1: _bytes_list, 2: _float_list, 3: _int_list}


def jpeg_spans(data: Buffer, name: str = "video") -> list[tuple[int, int]]:
    """Return where the first value of each entry of a list of bytes lies: (offset, length).

    This is how an index of frames is made: the frame is then read without parsing anything.
    """
    view = memoryview(data)
    spans: list[tuple[int, int]] = []
    for number, lists in _messages(view):
        if number != 2:
            continue
        for key, parts in _entry_spans(view, lists):
            if key == name:
                items = (item for part in parts for item in _within(view, part))
                spans = [_first_value(view, item) for n, item in items if n == 1]
    return spans


def _first_value(view: memoryview, feature: slice) -> tuple[int, int]:
    for number, values in _within(view, feature):
        if number == 1:
            for inner, value in _within(view, values):
                if inner == 1:
                    return value.start, value.stop - value.start
    raise WireError("an entry without bytes")


def _entries(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    for key, parts in _entry_spans(view, slice(0, len(view))):
        # A message in parts is the message of their bytes one after the other.
        whole = b"".join(view[part] for part in parts) if len(parts) != 1 else view[parts[0]]
        yield key, memoryview(whole)


def _entry_spans(view: memoryview, outer: slice) -> Iterator[tuple[str, list[slice]]]:
    """Yield key and places of the value of each entry of a map: one, unless it comes in parts."""
    for number, entry in _within(view, outer):
        if number != 1:
            continue
        key, parts = "", []
        for part, span in _within(view, entry):
            if part == 1:
                key = text(bytes(view[span]))
            elif part == 2:
                parts.append(span)
        yield key, parts


def text(raw: bytes) -> str:
    """Return UTF-8 bytes as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"a name that is not UTF-8 ({error})") from None


def _within(view: memoryview, outer: slice) -> Iterator[tuple[int, slice]]:
    for number, span in _messages(view[outer]):
        yield number, slice(outer.start + span.start, outer.start + span.stop)


def _messages(view: memoryview) -> Iterator[tuple[int, slice]]:
    """Yield number and place of the length-delimited fields, skipping others."""
    return ((number, span) for number, wire, span in _fields(view) if wire == _BYTES)


def _fields(view: memoryview) -> Iterator[tuple[int, int, slice]]:
    """Yield number, wire type and place of the value of each field of a message."""
    position, end = 0, len(view)
    groups: list[int] = []
    while position < end:
        tag, position = _read_varint(view, position)
        number, wire = tag >> 3, tag & 7
        start = position
        if wire == _VARINT:
            _, position = _read_varint(view, position)
        elif wire == _BYTES:
            size, start = _read_varint(view, position)
            position = start + size
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        elif wire == _GROUP:
            groups.append(number)
        elif wire == _GROUP_END and groups and groups.pop() == number:
            continue
        else:
            raise WireError(f"an unknown wire type {wire}")
        if position > end or number == 0:
            raise WireError("a field that is longer than its message, or has no number")
        if not groups:
            yield number, wire, slice(start, position)
    if groups:
        raise WireError("a group that does not end")


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(view) or shift > 63:
            raise WireError("a number that does not end")
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7


def _varint(value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{value} does not fit into 64 bits")
    value &= 0xFFFFFFFFFFFFFFFF
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def _entry(key: str, value: bytes) -> bytes:
    return _field(1, _field(1, key.encode("utf-8")) + _field(2, value))
