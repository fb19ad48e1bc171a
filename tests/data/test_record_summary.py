"""What is said of a TFRecord's contents."""

import io
import json

import pytest
from PIL import Image

from tests.golden.conftest import load
from timewalk.artefacts import read_json
from timewalk.data.protobuf import encode_example, encode_sequence
from timewalk.data.record_summary import beside, in_words, summarise
from timewalk.data.shards import write_shards
from timewalk.data.tfrecord import write_records
from timewalk.errors import UserError


def written(tmp_path, *records):
    write_records(tmp_path / "x.tfrecord", records)
    return tmp_path / "x.tfrecord"


def jpeg(size):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["toy_train-0-of-1.tfrecord", "toynolabel_train-0-of-1.tfrecord"])
def test_published_records(name):
    listed = load("tfrecords", "contents.json")["files"][name]["records"]
    found = list(summarise(load("tfrecords", name)))
    assert len(found) == len(listed)
    for record, golden in zip(found, listed, strict=True):
        assert (record["offset"], record["bytes"]) == (golden["offset"], golden["length"])
        assert record["crc"] == golden["masked_crc_data"]
        context, labels = golden["context"], golden.get("frame_labels")
        assert (record["kind"], [record["name"]]) == ("video", context["name"])
        assert [record["frames"]] == context["len"]
        assert [record["label"]] == context["label"]
        assert ",".join(record["class_names"]) == context.get("framelabels_string", [""])[0]
        counts = labels and {label: labels.count(label) for label in sorted(set(labels))}
        assert record["frame_labels"] == counts
        assert record["jpeg_bytes"] == sum(frame["jpeg_bytes"] for frame in golden["frames"])
        assert record["sizes"] == {"32x24": len(golden["frames"])}
        assert record["seconds"] is None
        assert record["extra_context"] == record["extra_lists"] == {}


def test_published_records_in_words():
    first = in_words(next(summarise(load("tfrecords", "toy_train-0-of-1.tfrecord"))))
    assert first.splitlines() == [
        "record at byte 0: 3658 bytes, crc 16c5cb9a, checksums verified",
        "  video 'clip_00': 5 frames, 32x24 pixels, 3442 bytes of JPEG",
        "  action label 2",
        "  class names: reach, lift, pour, place",
        "  phase 1 (lift): 2 frames",
        "  phase 2 (pour): 3 frames",
    ]
    other = in_words(next(summarise(load("tfrecords", "toynolabel_train-0-of-1.tfrecord"))))
    assert "  action label -1\n  no frame labels" in other


def test_a_picture_that_is_cut_off_is_no_image(tmp_path):
    whole = jpeg((8, 6))
    context = {"name": [b"v"], "len": [200], "label": [0]}
    frames = [[whole[:end]] for end in range(200)]
    (record,) = summarise(written(tmp_path, encode_sequence(context, {"video": frames})))
    assert record["sizes"]["no image"] > 100
    assert record["fault"] == "frame 0 is no image"


def test_unknown_keys_are_shown(tmp_path):
    context = {"name": [b"v"], "len": [2], "label": [0], "rate": [2.5], "label_string": [b"pour"]}
    lists = {"video": [[jpeg((8, 6))], [b"x"]], "depth": [[1.0], [2.0]], "time_us": [[0], [4000]]}
    (record,) = summarise(written(tmp_path, encode_sequence(context, lists)))
    assert record["extra_context"] == {"rate": "float (1): 2.5"}
    assert record["extra_lists"] == {"depth": 2, "time_us": 2}
    assert record["sizes"] == {"8x6": 1, "no image": 1}
    assert record["seconds"] == [0.0, 0.004]
    text = in_words(record)
    assert "8x6, no image pixels" in text
    assert "action label 0 (pour)" in text
    assert "further context rate: float (1): 2.5" in text
    assert "further list depth: 2 entries" in text


def test_other_records(tmp_path):
    example = encode_example(
        {"image": [jpeg((8, 6))], "name": [b"cat"], "ids": list(range(10)), "none": []}
    )
    other = encode_sequence({"a": [1.5]}, {"tokens": [[1], [2]]})
    broken = encode_sequence({"name": [b"v"], "label": [0], "len": [3]}, {"video": [[b"x"]]})
    path = written(tmp_path, example, other, broken, b"\xff\xff")
    first, second, third, last = summarise(path)
    assert [r["kind"] for r in (first, second, third, last)] == [
        "example",
        "sequence",
        "sequence",
        "unknown",
    ]
    assert first["context"] == {
        "ids": "int (10): 0, 1, 2, 3, 4, 5, 6, 7, ...",
        "image": f"bytes (1): <{len(jpeg((8, 6)))} bytes>",
        "name": "bytes (1): 'cat'",
        "none": "empty",
    }
    assert second["lists"] == {"tokens": 2}
    assert third["fault"] == "'len' is 3 but 'video' has 1 frames"
    assert "a plain Example" in in_words(first)
    assert "list tokens: 2 entries" in in_words(second)
    assert "fault: 'len' is 3" in in_words(third)
    assert "neither a SequenceExample nor an Example" in in_words(last)
    json.dumps([first, second, third, last])


def test_what_comes_before_the_damage(tmp_path):
    path = written(tmp_path, *(encode_example({"n": [n]}) for n in range(3)))
    raw = bytearray(path.read_bytes())
    size = len(raw) // 3
    raw[size + 14] ^= 1
    path.write_bytes(raw)
    found = summarise(path)
    assert next(found)["context"] == {"n": "int (1): 0"}
    with pytest.raises(UserError, match=f"the data of the record at byte {size} does not match"):
        next(found)
    with pytest.raises(UserError, match="is no file; name one TFRecord"):
        next(summarise(tmp_path))


def test_the_manifest_and_the_index_beside_it(tmp_path, make_frames):
    manifest = tmp_path / "walk.json"
    write_shards(make_frames(count=5), manifest, "tfrecord")
    path = tmp_path / "walk.tfrecord"
    (record,) = summarise(path)
    assert record["extra_context"]["width"] == "int (1): 96"
    assert beside(path) == [{"manifest": str(manifest), "fault": None}]
    raw = path.read_bytes()
    write_records(path, [b"x"])
    (about,) = beside(path)
    assert "walk.tfrecord has 17 bytes but walk.json says" in about["fault"]
    (tmp_path / "other.tfrecord").write_bytes(raw)
    path.write_bytes(raw)
    (tmp_path / "other.json").write_text(manifest.read_text())
    (about,) = beside(tmp_path / "other.tfrecord")
    assert "other.json describes another file" in about["fault"]


def test_frames_that_lie_elsewhere_than_the_index_says(tmp_path, make_frames):
    manifest = tmp_path / "walk.json"
    write_shards(make_frames(count=5), manifest, "tfrecord")
    path = tmp_path / "walk.tfrecord"
    # As many bytes, but no frame in them.
    for data in (bytes(path.stat().st_size - 16), b"\x22\xff\x7f".ljust(path.stat().st_size - 16)):
        write_records(path, [data])
        assert read_json(manifest)["file_bytes"] == path.stat().st_size
        (about,) = beside(path)
        assert "its frames lie elsewhere than the index says" in about["fault"]


def test_json_files_of_others_are_passed_over(tmp_path):
    path = written(tmp_path, encode_example({}))
    path.with_suffix(".json").write_text('{"mine": 1}')
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "y.json").write_text("[]")
    assert beside(path) == []
