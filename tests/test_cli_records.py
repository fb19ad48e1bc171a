"""`timewalk shards --name` and `timewalk inspect`."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.golden.conftest import load
from tests.video.conftest import write_numbered
from timewalk import cli
from timewalk.artefacts import read_json
from timewalk.data.tfrecord import VideoRecord, read_videos, write_records, write_videos


def call(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        write_numbered(tmp_path / "videos" / f"{name}.mp4", count=6)
    return tmp_path / "videos"


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.fromarray(np.full((12, 16, 3), 40 * number, np.uint8))
            picture.save(tmp_path / "images" / name / f"{number}.jpg")
    return tmp_path / "images"


def found(output):
    return [video for path in sorted(output.glob("*.tfrecord")) for video in read_videos(path)]


def test_videos(videos, tmp_path, capsys):
    labels = {name: {"p": {"0": [0, 1e5], "1": [1e5, 2e5]}} for name in "ab"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    out = tmp_path / "out"
    words = "--per-shard 2 --fps 12.5 --frame-labels reach,pour --expected-segments 2"
    words += " --action-label 3 --width 40 --height 30 --rotate --workers 2 --pattern *.mp4"
    label_file = tmp_path / "labels.json"
    assert (
        call("shards", videos, out, "--name", "x_train", "--label-file", label_file, *words.split())
        == 0
    )
    assert "2 videos, 6 frames in 1 files" in capsys.readouterr().out
    first, second = found(out)
    assert (first.name, second.name, first.label) == ("a", "b", 3)
    assert first.frame_labels == second.frame_labels == [0, 0, 1]
    assert first.class_names == ["reach", "pour"]
    parameters = read_json(out / "manifests" / "x_train.json")["parameters"]
    assert (parameters["width"], parameters["rotate"], parameters["fps"]) == (40, True, 12.5)
    assert call("inspect", out / "x_train-0-of-1.tfrecord") == 0
    text = capsys.readouterr().out
    assert "video 'a': 3 frames, 30x40 pixels" in text
    assert "phase 0 (reach): 2 frames" in text
    assert text.splitlines()[-2:] == [
        "2 records, 6 frames",
        f"{out / 'manifests' / 'x_train.json'} agrees",
    ]


def test_folders_of_images(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("shards", images, out, "--name", "x_train") == 0
    first, second = found(out)
    assert (first.name, second.name, first.context) == ("a", "b", {"fps": [30.0]})
    parameters = read_json(out / "manifests" / "x_train.json")["parameters"]
    published = {
        "per_shard": 1,
        "rotate": False,
        "resize": True,
        "width": 224,
        "height": 224,
        "action_label": -1,
        "expected_segments": -1,
        "class_names": [],
        "extension": ".jpg",
        "fps": 30.0,
        "shuffle_seed": None,
    }
    assert {key: parameters[key] for key in published} == published
    (tmp_path / "list.txt").write_text("b\n\n")
    words = ["--list", tmp_path / "list.txt", "--extension", "jpg", "--no-resize"]
    assert call("shards", images, out, "--name", "x_train", "--shuffle-seed", 1, *words) == 0
    assert [video.name for video in found(out)] == ["b"]


def test_the_stage_is_as_it_was(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("timewalk.data.shards.write_shards", lambda *words: seen.append(words))
    assert call("shards", tmp_path / "m.json", tmp_path / "o.json") == 0
    assert call("shards", tmp_path / "m.json", tmp_path / "o.json", "--storage", "folder") == 0
    assert [storage for _, _, storage in seen] == ["tfrecord", "folder"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{videos} out --rotate", "--rotate goes with --name"),
        ("{videos} out --no-resize", "--resize goes with --name"),
        ("{videos} out", "is a folder: name its manifest.json, or give --name"),
        ("{videos} out --name x --storage folder", "--storage is for the frames of one video"),
        ("{videos} {videos}/a.mp4 --name x", "a.mp4 is a file; with --name give a folder"),
        ("{videos}/a.mp4 out --name x", "a.mp4 is no folder"),
        ("{videos} out --name x --pattern *.mp4 --list l", "--pattern is for videos, --list for"),
        ("{images} out --name x --extension jpg --pattern *", "--extension for folders of images"),
        ("{root} out --name x", "holds neither .mp4 videos nor folders of .jpg images"),
        ("{videos} out --name x --fps nan", "--fps: nan is not between"),
        ("{images} out --name x --fps nan", "--fps: nan is not between"),
        ("{images} out --name x --shuffle-seed -1", "--shuffle-seed: -1 is below 0"),
        ("{images} {videos}/a.mp4/x --name x", "a.mp4/x cannot be made"),
        ("m.json {videos}/a.mp4/x.json", "a.mp4 cannot be made"),
        ("{videos} out --name x --fps 60", "has 25 frames a second, --fps asks for 60"),
        ("{videos} out --name x --label-file l.json", "--label-file needs --expected-segments"),
        ("{images} out --name x --list none.txt", "none.txt is missing: --list names a text file"),
    ],
)
def test_mixtures_that_do_not_go(videos, images, tmp_path, capsys, words, message):
    filled = [word.format(videos=videos, images=images, root=tmp_path) for word in words.split()]
    filled = [str(tmp_path / "out") if word == "out" else word for word in filled]
    assert call("shards", *filled) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_both_videos_and_images_in_one_folder(videos, images, tmp_path, capsys):
    (images / "c.mp4").write_bytes((videos / "a.mp4").read_bytes())
    assert call("shards", images, tmp_path / "out", "--name", "x") == 1
    assert "holds both .mp4 videos and folders of .jpg images" in capsys.readouterr().err
    assert call("shards", images, tmp_path / "out", "--name", "x", "--pattern", "c*") == 0
    assert [video.name for video in found(tmp_path / "out")] == ["c"]


def test_inspect_for_programs(capsys):
    path = load("tfrecords", "toy_train-0-of-1.tfrecord")
    assert call("inspect", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in report["records"]] == ["clip_00", "clip_01", "clip_02"]
    assert (report["fault"], report["manifests"]) == (None, [])


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_inspect_a_damaged_file(tmp_path, capsys, words):
    raw = load("tfrecords", "toy_train-0-of-1.tfrecord").read_bytes()
    path = tmp_path / "cut.tfrecord"
    path.write_bytes(raw[:5000])
    assert call("inspect", path, *words) == 1
    captured = capsys.readouterr()
    assert "clip_00" in captured.out
    assert "cut.tfrecord is cut off in the record that begins at byte 3674" in captured.err
    if words:
        assert "begins at byte 3674" in json.loads(captured.out)["fault"]


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        ([], "it has no frames"),
        ([None, b"x"], "frame 1 is no image"),
        ([None, None], None),
    ],
)
def test_inspect_frames_that_are_none(images, tmp_path, capsys, frames, fault):
    whole = (images / "a" / "0.jpg").read_bytes()
    video = VideoRecord("v", [whole if frame is None else frame for frame in frames])
    write_videos(tmp_path / "x.tfrecord", [video])
    assert call("inspect", tmp_path / "x.tfrecord") == (0 if fault is None else 1)
    captured = capsys.readouterr()
    if fault is not None:
        assert f"fault: {fault}" in captured.out
        assert f"x.tfrecord: the record at byte 0 is not a video of the schema: {fault}; make" in (
            captured.err
        )


def test_inspect_what_contradicts_itself(videos, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("shards", videos, out, "--name", "x") == 0
    (out / "x-0-of-2.tfrecord").write_bytes((out / "x-1-of-2.tfrecord").read_bytes())
    assert call("inspect", out / "x-0-of-2.tfrecord") == 1
    captured = capsys.readouterr()
    assert "x.json disagrees" in captured.out
    assert "is not the file that" in captured.err
    data = b"\x12\x0b\x0a\x09\x0a\x05video\x12\x00"  # a list 'video', empty, and no context
    write_records(tmp_path / "bare.tfrecord", [data])
    assert call("inspect", tmp_path / "bare.tfrecord") == 1
    assert "the record at byte 0 is not a video of the schema: 'name'" in capsys.readouterr().err
    (tmp_path / "none.txt").write_text("no record at all")
    assert call("inspect", tmp_path / "none.txt") == 1
    error = capsys.readouterr().err
    assert "none.txt is no TFRecord, or is damaged at byte 0; name another file" in error
    assert "delete" not in error
    assert call("inspect", tmp_path / "none.tfrecord") == 1
    assert "none.tfrecord is no file" in capsys.readouterr().err


def test_nobody_reads_on(tmp_path):
    """`timewalk inspect FILE | head -1` ends without a traceback."""
    videos = [VideoRecord(f"v{number}", [b"x"] * 3) for number in range(3000)]
    write_videos(tmp_path / "a.tfrecord", videos)
    words = [sys.executable, "-m", "timewalk.cli", "inspect", str(tmp_path / "a.tfrecord")]
    reader = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout.readline()
    reader.stdout.close()
    assert "Traceback" not in reader.stderr.read()
    assert reader.wait(60) == 1
