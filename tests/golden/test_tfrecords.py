"""TFRecords written by TensorFlow, read by us; and ours, read again."""

import hashlib
import io
import json
import struct

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.golden.conftest import FOLDER, load
from timewalk.data.checksum import crc32c, crc32c_numpy, mask_crc, masked_crc32c, unmask_crc
from timewalk.data.phase_labels import labels_at, merge_segments
from timewalk.data.protobuf import decode_sequence, encode_sequence, jpeg_spans
from timewalk.data.record_writer import RecordSettings
from timewalk.data.records import convert_folders
from timewalk.data.tfrecord import (
    HEADER_BYTES,
    decode_video,
    read_records,
    read_videos,
    write_records,
    write_videos,
)

SET = "tfrecords"
LISTING = FOLDER / SET / "contents.json"
FILES = (
    sorted(json.loads(LISTING.read_text())["files"])
    if LISTING.exists()
    else ["toy_train-0-of-1.tfrecord", "toynolabel_train-0-of-1.tfrecord"]
)
KINDS = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
PIXELS_MADE_WITH = "13.0.0"  # Pillow, whose JPEG encoder the pixels went through
# TensorFlow's fast decoder and Pillow differ by up to 1.5 levels in a frame's mean, says the
# README (1.50001 after its rounding to four decimals); other frames may differ a little more. The
# difference is one of decoders, hence alike in all frames: within 0.2 of its median here.
MEAN_TOLERANCE = 2.0
SPREAD = 0.5


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(params=FILES)
def file(request):
    listed = load(SET, "contents.json")["files"][request.param]
    return load(SET, request.param), listed


def test_checksums():
    for vector in load(SET, "contents.json")["crc32c_vectors"]:
        data, crc = bytes.fromhex(vector["hex"]), int(vector["crc32c"], 16)
        assert crc32c(data) == crc32c_numpy(data) == crc
        assert mask_crc(crc) == masked_crc32c(data) == int(vector["masked"], 16)
        assert unmask_crc(int(vector["masked"], 16)) == crc


def test_framing(file):
    path, listed = file
    raw = path.read_bytes()
    assert (len(raw), sha256(raw)) == (listed["bytes"], listed["sha256"])
    found = list(read_records(path))
    assert [offset for offset, _ in found] == [record["offset"] for record in listed["records"]]
    for (offset, data), record in zip(found, listed["records"], strict=True):
        assert (len(data), sha256(data)) == (record["length"], record["sha256_record"])
        length_crc = struct.unpack("<I", raw[offset + 8 : offset + 12])[0]
        end = offset + HEADER_BYTES + len(data)
        data_crc = struct.unpack("<I", raw[end : end + 4])[0]
        assert length_crc == int(record["masked_crc_length"], 16)
        assert data_crc == int(record["masked_crc_data"], 16) == masked_crc32c(data)


def test_contents(file):
    path, listed = file
    for (_, data), record in zip(read_records(path), listed["records"], strict=True):
        parsed = decode_sequence(data)
        plain = {
            key: [v.decode() if isinstance(v, bytes) else v for v in values]
            for key, values in parsed.context.items()
        }
        assert plain == record["context"]
        kinds = {key: KINDS[type(values[0])] for key, values in parsed.context.items()}
        assert kinds == record["context_kinds"]
        lengths = {key: len(entries) for key, entries in parsed.lists.items()}
        assert lengths == record["feature_lists"]
        assert decode_video(data).frame_labels == record.get("frame_labels")


def test_frames(file):
    path, listed = file
    differences = []
    for (_, data), record in zip(read_records(path), listed["records"], strict=True):
        frames = decode_video(data).frames
        assert frames == [data[start : start + size] for start, size in jpeg_spans(data)]
        for jpeg, expected in zip(frames, record["frames"], strict=True):
            assert (len(jpeg), sha256(jpeg)) == (expected["jpeg_bytes"], expected["sha256_jpeg"])
            pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            assert list(pixels.shape) == expected["shape"]
            differences.append(pixels.mean((0, 1)) - expected["mean_rgb_tf_decode"])
    assert np.abs(differences).max() < MEAN_TOLERANCE
    assert np.abs(differences - np.median(differences, 0)).max() < SPREAD


def test_written_by_us_and_read_again(file, tmp_path):
    path, listed = file
    again = tmp_path / path.name
    write_videos(again, read_videos(path))
    assert list(read_videos(again)) == list(read_videos(path))
    # another order of the map's entries has the same length
    assert again.stat().st_size == listed["bytes"]
    bare = tmp_path / "bare.tfrecord"
    parsed = [decode_sequence(data) for _, data in read_records(path)]
    write_records(bare, (encode_sequence(one.context, one.lists) for one in parsed))
    assert [decode_sequence(data) for _, data in read_records(bare)] == parsed
    assert bare.read_bytes() == again.read_bytes()


def test_source_pixels():
    pixels = load(SET, "toy_pixels.npz")
    used = set()
    for name in FILES:
        for video in read_videos(load(SET, name)):
            for number, jpeg in enumerate(video.frames):
                key = f"{video.name}_{number}"
                used.add(key)
                check_source(pixels[key], jpeg)
    assert used == set(pixels)


def check_source(pixels, jpeg):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, optimize=True)
    if buffer.getvalue() != jpeg:
        assert PIL.__version__ != PIXELS_MADE_WITH, "the pixels are not those of the JPEG"
        # another libjpeg: the same picture, not the same bytes
        ours, theirs = (np.asarray(Image.open(io.BytesIO(b))) for b in (buffer.getvalue(), jpeg))
        assert np.abs(ours.astype(int) - theirs).max() <= 3


def test_label_timing():
    timing = load(SET, "label_timing.json")
    segments = merge_segments(timing["annotations_us"], timing["expected_segments"], "golden")
    merged = timing["merged_seconds"]
    assert sorted(merged, key=int) == [str(i) for i in range(len(segments))]
    for phase, seconds in merged.items():
        assert segments[int(phase)] == pytest.approx(seconds, abs=1e-9)
    assert labels_at(segments, timing["timestamps"]).tolist() == timing["labels"]


# --- the converter on the golden's own frames ----------------------------------------------------

FPS = 10
CLASSES = ("reach", "lift", "pour", "place")


@pytest.fixture
def converted(file, tmp_path):
    """A golden file, what is listed of it, and what our converter makes of its source frames."""
    path, listed = file
    pixels = load(SET, "toy_pixels.npz")
    root = tmp_path / "images"
    for record in listed["records"]:
        name = record["context"]["name"][0]
        (root / name).mkdir(parents=True)
        for number in range(len(record["frames"])):
            image = Image.fromarray(pixels[f"{name}_{number}"])
            image.save(root / name / f"{number:03d}.png")
    settings = {"resize": False, "per_shard": 3, "action_label": record["context"]["label"][0]}
    if "frame_labels" in record:
        labels = tmp_path / "labels.json"
        labels.write_text(json.dumps(dict(map(annotated, listed["records"]))))
        settings |= {"label_file": labels, "expected_segments": 4, "class_names": CLASSES}
    name = path.name.partition("-")[0]
    about = convert_folders(
        root, tmp_path / "out", name, RecordSettings(**settings), extension="png", fps=FPS
    )
    assert [shard["file"] for shard in about["shards"]] == [path.name]
    return tmp_path / "out" / path.name, path, listed


def annotated(record):
    """Return a video and segments that give its frames their labels; an absent phase is empty."""
    labels = record["frame_labels"]
    limits = [sum(label < phase for label in labels) - 0.5 for phase in range(5)]
    phases = {str(phase): [limits[phase], limits[phase + 1]] for phase in range(4)}
    microseconds = {key: [1e6 * limit / FPS for limit in pair] for key, pair in phases.items()}
    return record["context"]["name"][0], {"annotator": microseconds}


def check_frame(ours, theirs):
    if ours != theirs:
        assert PIL.__version__ != PIXELS_MADE_WITH, "the JPEG is not the published one"
        mine, golden = (np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in (ours, theirs))
        assert np.abs(mine.astype(int) - golden).max() <= 3


def test_converted_by_us(converted):
    ours, theirs, _ = converted
    for mine, golden in zip(read_videos(ours), read_videos(theirs), strict=True):
        for one, other in zip(mine.frames, golden.frames, strict=True):
            check_frame(one, other)
        assert mine.context.pop("fps") == [FPS]
        assert mine.lists.pop("time_us") == [[100_000 * n] for n in range(len(golden.frames))]
        mine.frames = golden.frames
        assert mine == golden


def test_ours_by_protobuf(converted):
    """Read by the reference implementation of the wire format, with a schema of its own."""
    message = sequence_example()
    ours, theirs, listed = converted
    for (_, data), record, golden in zip(
        read_records(ours), listed["records"], read_videos(theirs), strict=True
    ):
        parsed = message.FromString(data)
        context = parsed.context.feature
        kinds = {key: context[key].WhichOneof("kind") for key in context}
        assert kinds == record["context_kinds"] | {"fps": "float_list"}
        for key, values in record["context"].items():
            found = list(getattr(context[key], kinds[key]).value)
            assert found == [v.encode() if isinstance(v, str) else v for v in values]
        assert list(context["fps"].float_list.value) == [FPS]
        lists = {key: item.feature for key, item in parsed.feature_lists.feature_list.items()}
        frames = [item.bytes_list.value for item in lists.pop("video")]
        for (mine,), jpeg in zip(frames, golden.frames, strict=True):
            check_frame(mine, jpeg)
        numbers = {key: [list(i.int64_list.value) for i in items] for key, items in lists.items()}
        assert numbers.pop("time_us") == [[100_000 * n] for n in range(len(golden.frames))]
        expected = record.get("frame_labels")
        assert numbers == ({} if expected is None else {"frame_labels": [[n] for n in expected]})


def test_theirs_by_protobuf(file):
    """The schema of this test reads TensorFlow's records, too, hence is the right one."""
    message = sequence_example()
    path, listed = file
    for (_, data), record in zip(read_records(path), listed["records"], strict=True):
        parsed = message.FromString(data)
        assert parsed.context.feature["len"].int64_list.value == record["context"]["len"]
        assert parsed.SerializeToString(deterministic=True) == encode_sequence(
            decode_sequence(data).context, decode_sequence(data).lists
        )


def sequence_example():
    """Return the class of SequenceExample, its schema built here."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def add(name, *fields, oneof=None, within=None):
        message = (file.message_type if within is None else within.nested_type).add()
        message.name = name
        if oneof:
            message.oneof_decl.add(name=oneof)
        for number, (key, kind, repeated) in enumerate(fields, start=1):
            entry = message.field.add(name=key, number=number)
            entry.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                entry.type, entry.type_name = field.TYPE_MESSAGE, f".t.{kind}"
            else:
                entry.type = kind
            if oneof:
                entry.oneof_index = 0
        return message

    def add_map(name, key, value):
        message = add(name, (key, f"{name}.{key.title().replace('_', '')}Entry", True))
        entry = add(
            f"{key.title().replace('_', '')}Entry",
            ("key", field.TYPE_STRING, False),
            ("value", value, False),
            within=message,
        )
        entry.options.map_entry = True

    add("BytesList", ("value", field.TYPE_BYTES, True))
    add("FloatList", ("value", field.TYPE_FLOAT, True))
    add("Int64List", ("value", field.TYPE_INT64, True))
    kinds = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    add("Feature", *((key, kind, False) for key, kind in kinds), oneof="kind")
    add("FeatureList", ("feature", "Feature", True))
    add_map("Features", "feature", "Feature")
    add_map("FeatureLists", "feature_list", "FeatureList")
    add("SequenceExample", ("context", "Features", False), ("feature_lists", "FeatureLists", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.SequenceExample"))
