import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timewalk.data import checksum
from timewalk.data.checksum import crc32c_numpy
from timewalk.data.protobuf import (
    WireError,
    decode_example,
    decode_feature,
    decode_sequence,
    encode_example,
    encode_feature,
    encode_sequence,
    jpeg_spans,
)
from timewalk.data.tfrecord import (
    HEADER_BYTES,
    VideoRecord,
    checksums_digest,
    decode_video,
    read_records,
    read_videos,
    shard_name,
    write_records,
    write_videos,
)
from timewalk.errors import UserError

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=32, allow_nan=False)
FEATURES = st.one_of(
    st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    st.lists(INTS, min_size=1, max_size=4),
    st.lists(FLOATS, min_size=1, max_size=4),
    st.just([]),
)
CONTEXTS = st.dictionaries(st.text(max_size=6), FEATURES, max_size=4)
LISTS = st.dictionaries(st.text(max_size=6), st.lists(FEATURES, max_size=4), max_size=3)


@given(st.binary(max_size=400))
def test_numpy_checksum(data):
    crc = 0xFFFFFFFF
    for byte in data:  # the definition, bit by bit
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c_numpy(data) == crc ^ 0xFFFFFFFF == checksum.crc32c(data)


def test_checksum_without_the_package(monkeypatch):
    data = np.random.default_rng(0).bytes(70001)
    expected = checksum.crc32c(data)
    monkeypatch.setattr(checksum, "_native", None)
    assert checksum.crc32c(data) == expected


@given(st.integers(0, 2**32 - 1))
def test_mask_round_trip(crc):
    assert checksum.unmask_crc(checksum.mask_crc(crc)) == crc


def test_bytes_of_the_sheet():
    assert encode_feature([-1, 3]).hex() == "1a0d0a0bffffffffffffffffff0103"
    assert encode_feature([b"ab"]).hex() == "0a040a026162"
    assert encode_feature([1.5]).hex() == "12060a040000c03f"


@given(CONTEXTS, LISTS)
def test_sequence_round_trip(context, lists):
    parsed = decode_sequence(encode_sequence(context, lists))
    assert (parsed.context, parsed.lists) == (context, lists)
    assert decode_example(encode_example(context)) == context


@given(CONTEXTS, LISTS)
def test_bytes_do_not_depend_on_the_order_of_keys(context, lists):
    turned = dict(reversed(context.items())), dict(reversed(lists.items()))
    assert encode_sequence(*turned) == encode_sequence(context, lists)


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_are_a_wire_error(data):
    with contextlib.suppress(WireError):
        decode_sequence(data)


def test_unpacked_numbers():
    assert decode_feature(memoryview(bytes.fromhex("1a04 0805 0807".replace(" ", "")))) == [5, 7]
    unpacked = bytes.fromhex("120a") + (b"\x0d" + struct.pack("<f", 1.5)) * 2
    assert decode_feature(memoryview(unpacked)) == [1.5, 1.5]


def fields(*payloads):
    """Return field number and payload as bytes, short ones."""
    return b"".join(bytes([n << 3 | 2, len(payload)]) + payload for n, payload in payloads)


def test_parts_of_one_message_are_joined():
    """As protobuf reads what two writers have appended."""
    texts = [fields((1, fields((1, letter)))) for letter in (b"a", b"b")]
    assert decode_feature(memoryview(b"".join(texts))) == [b"a", b"b"]
    numbers = bytes.fromhex("1a020805")
    assert decode_feature(memoryview(texts[0] + numbers + numbers)) == [5, 5]
    halves = fields((1, fields((1, b"k"), (2, texts[0]), (2, texts[1]))))
    assert decode_sequence(fields((1, halves))).context == {"k": [b"a", b"b"]}
    frames = [fields((1, text)) for text in texts]
    record = fields((2, fields((1, fields((1, b"video"), (2, frames[0]), (2, frames[1]))))))
    assert decode_sequence(record).lists == {"video": [[b"a"], [b"b"]]}
    places = [(record.index(letter), 1) for letter in (b"a", b"b")]
    assert jpeg_spans(record) == places


def test_groups_are_skipped():
    inner = b"\x53" + b"\x08\x01" + b"\x5b\x5c" + b"\x54"  # group 10, in it a number and group 11
    record = encode_sequence({"a": [1]}, {})
    assert decode_sequence(inner + record + inner).context == {"a": [1]}
    for broken in (b"\x53", b"\x54", b"\x53\x5c", b"\x53\x5b\x54\x5c"):
        with pytest.raises(WireError, match=r"wire type 4|does not end"):
            decode_sequence(record + broken)


def test_unknown_fields_are_skipped_and_a_later_key_wins():
    first, second = (encode_sequence({"a": [n]}, {"video": [[b"x"]]}) for n in (1, 2))
    unknown = b"\x18\x07" + b"\x22\x01z" + b"\x2d" + bytes(4) + b"\x31" + bytes(8)
    # the lists before the context, unknown fields of all wire types between
    parts = [first, unknown, second, unknown]
    parsed = decode_sequence(b"".join(parts))
    assert (parsed.context, parsed.lists) == ({"a": [2]}, {"video": [[b"x"]]})


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_spans_point_at_the_frames(frames):
    data = VideoRecord("v", frames, lists={"zz": [[1]]}).encode()
    assert [data[start : start + size] for start, size in jpeg_spans(data)] == frames


@pytest.fixture
def videos():
    return [
        VideoRecord("a", [b"one", b"two"], 3, "pour", ["reach", "lift"], [0, 1]),
        VideoRecord("b ü", [b"three"], context={"extra": [1.5]}, lists={"time": [[7]]}),
    ]


def test_videos_round_trip(tmp_path, videos):
    path = tmp_path / "x.tfrecord"
    write_videos(path, videos)
    assert list(read_videos(path)) == videos
    again = tmp_path / "again.tfrecord"
    write_videos(again, videos)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.tfrecord", "x.tfrecord"]


def test_two_videos_of_one_name(tmp_path, videos):
    with pytest.raises(UserError, match="two videos are named 'a'"):
        write_videos(tmp_path / "x.tfrecord", [videos[0], videos[0]])
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_is_detected(tmp_path, videos):
    path = tmp_path / "x.tfrecord"
    write_videos(path, videos)
    raw = path.read_bytes()
    for position in range(len(raw)):
        for bit in (0, 7):
            broken = bytearray(raw)
            broken[position] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(UserError, match=r"x\.tfrecord .*at byte|begins at byte"):
                list(read_records(path))


def test_every_truncation_is_detected(tmp_path, videos):
    path = tmp_path / "x.tfrecord"
    write_videos(path, videos)
    raw = path.read_bytes()
    first = 16 + len(videos[0].encode())
    for size in set(range(1, len(raw))) - {first}:
        path.write_bytes(raw[:size])
        start = 0 if size < first else first
        message = f"cut off in the record that begins at byte {start}:"
        if size < HEADER_BYTES:
            message = r"x\.tfrecord is no TFRecord, or is damaged at byte 0; name another file"
        with pytest.raises(UserError, match=message):
            list(read_records(path))
    path.write_bytes(raw[:first])  # a whole record: the framing cannot know of more
    assert len(list(read_records(path))) == 1


def test_an_empty_file_is_an_empty_set(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.touch()
    assert list(read_videos(path)) == []


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.tfrecord is missing"):
        list(read_records(tmp_path / "none.tfrecord"))


GOOD = {"name": [b"v"], "len": [1], "label": [0]}


@pytest.mark.parametrize(
    ("context", "lists", "words"),
    [
        (GOOD, {}, "no list 'video'"),
        (GOOD | {"len": [2]}, {"video": [[b"x"]]}, "'len' is 2 but 'video' has 1"),
        (GOOD, {"video": [[b"x"]], "frame_labels": [[1], [2]]}, "'frame_labels' has 2"),
        ({"len": [1], "label": [0]}, {"video": [[b"x"]]}, "'name' should hold one value"),
        (
            GOOD | {"label": [b"x"]},
            {"video": [[b"x"]]},
            "one value of type int",
        ),
        (GOOD, {"video": [[b"x", b"y"]]}, "'video' should hold one value"),
        (GOOD | {"name": [b"\xff"]}, {"video": [[b"x"]]}, "not UTF-8"),
    ],
)
def test_records_outside_the_schema(tmp_path, context, lists, words):
    data = encode_sequence(context, lists)
    with pytest.raises(WireError, match=words):
        decode_video(data)
    write_records(tmp_path / "x.tfrecord", [data])
    with pytest.raises(UserError, match=r"x\.tfrecord: the record at byte 0"):
        list(read_videos(tmp_path / "x.tfrecord"))


def test_shard_names():
    assert shard_name("pouring_train", 0, 2) == "pouring_train-0-of-2.tfrecord"
    assert shard_name("x", 0, 12) == "x-00-of-12.tfrecord"


def test_a_digest_of_the_checksums(tmp_path, videos):
    path = tmp_path / "x.tfrecord"
    write_videos(path, videos)
    first, size = checksums_digest(path), path.stat().st_size
    write_videos(path, videos)
    assert checksums_digest(path) == first
    videos[0].label += 1
    write_videos(path, videos)
    assert (path.stat().st_size, checksums_digest(path) == first) == (size, False)
    raw = path.read_bytes()
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        assert checksums_digest(path) != first
    path.write_bytes(b"\xff" * 50)
    assert checksums_digest(path) != first
