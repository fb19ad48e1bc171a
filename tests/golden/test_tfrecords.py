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
from timewalk.data.labels import frame_labels, merge_segments
from timewalk.data.protobuf import decode_sequence, encode_sequence, jpeg_spans
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
    assert frame_labels(segments, timing["timestamps"], "golden") == timing["labels"]
