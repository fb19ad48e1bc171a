"""Videos to TFRecords: a numbered clip tells which frames were kept, and when they are shown."""

import io
import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.video.conftest import SIZE, read_number, remux, write_numbered
from timewalk.data.record_writer import RecordSettings, jpeg_of
from timewalk.data.tfrecord import read_videos
from timewalk.errors import UserError
from timewalk.video import records as module
from timewalk.video.probe import open_video
from timewalk.video.records import convert_videos, find_videos, video_file

ASIS = RecordSettings(resize=False)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "videos"
    path.mkdir()
    return path


def record(output, number=0):
    path = sorted(output.glob("*.tfrecord"))[number]
    (video,) = read_videos(path)
    return video


def pictures(video):
    return [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in video.frames]


def numbers(video):
    return [read_number(picture) for picture in pictures(video)]


def microseconds(video):
    return [time for (time,) in video.lists["time_us"]]


def test_every_frame_of_every_video(folder, tmp_path):
    write_numbered(folder / "b ü.mp4", count=12)
    write_numbered(folder / "a.mp4", count=30, fps=30)
    about = convert_videos(folder, tmp_path / "out", "toy_train", ASIS)
    first, second = (record(tmp_path / "out", number) for number in (0, 1))
    assert (first.name, second.name) == ("a", "b ü")
    assert numbers(first) == list(range(30))
    assert numbers(second) == list(range(12))
    assert (first.context, second.context) == ({"fps": [30.0]}, {"fps": [25.0]})
    assert microseconds(second) == [40_000 * n for n in range(12)]
    assert np.allclose(microseconds(first), np.arange(30) / 30 * 1e6, atol=1)
    assert (first.label, first.frame_labels, first.class_names) == (-1, None, [])
    assert about["counts"]["frames"] == 42
    assert "container's clock" in about["parameters"]["times"]


def test_the_pixels_are_the_decoders(folder, tmp_path):
    path = write_numbered(folder / "a.mp4", count=3)
    convert_videos(folder, tmp_path / "out", "toy", ASIS)
    with open_video(path) as container:
        expected = [
            jpeg_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    assert record(tmp_path / "out").frames == expected


@pytest.mark.parametrize(
    ("fps", "step"), [(0, 1), (25, 1), (13, 1), (12.5, 2), (10, 2), (8, 3), (1, 25)]
)
def test_thinned_by_whole_steps(folder, tmp_path, fps, step):
    write_numbered(folder / "a.mp4", count=60)
    convert_videos(folder, tmp_path / "out", "toy", ASIS, fps=fps)
    video = record(tmp_path / "out")
    assert numbers(video) == list(range(0, 60, step))
    assert microseconds(video) == [40_000 * n for n in range(0, 60, step)]
    assert video.context["fps"] == pytest.approx([25 / step])


def test_a_fractional_rate(folder):
    write_numbered(folder / "a.mp4", count=5, fps=Fraction(30000, 1001))
    assert [video_file(folder / "a.mp4", fps).step for fps in (0, 29.97, 14.985, 10)] == [
        1,
        1,
        2,
        2,
    ]
    assert video_file(folder / "a.mp4", 29.97003).step == 1  # the rate, as written in decimals
    with pytest.raises(UserError, match="--fps asks for 30"):
        video_file(folder / "a.mp4", 30)


def test_labels_follow_the_containers_clock(folder, tmp_path):
    times = [0, 40, 80, 1000, 1040, 3000]
    write_numbered(folder / "walk.mp4", count=6, times=times)
    phases = {"0": [0, 5e5], "1": [5e5, 2e6], "2": [2e6, 9e6]}
    (tmp_path / "labels.json").write_text(json.dumps({"walk": {"p": phases}}))
    settings = RecordSettings(
        resize=False,
        label_file=tmp_path / "labels.json",
        expected_segments=3,
        class_names=("reach", "lift", "pour"),
    )
    convert_videos(folder, tmp_path / "out", "toy", settings)
    video = record(tmp_path / "out")
    assert video.frame_labels == [0, 0, 0, 1, 1, 2]
    assert video.class_names == ["reach", "lift", "pour"]
    assert microseconds(video) == [1000 * time for time in times]
    about = convert_videos(folder, tmp_path / "out", "toy", settings, fps=1)
    assert "walk.mp4 has a variable frame rate" in about["warnings"][0]


@pytest.mark.parametrize(("rotate", "size"), [(False, (224, 224)), (True, (224, 224))])
def test_the_published_defaults(folder, tmp_path, rotate, size):
    write_numbered(folder / "a.mp4", count=2)
    convert_videos(folder, tmp_path / "out", "toy", RecordSettings(rotate=rotate))
    (first, _) = pictures(record(tmp_path / "out"))
    assert first.shape[1::-1] == size
    assert read_number(first if not rotate else np.rot90(first)) == 0


def test_turned_frames_are_width_rows_by_height_columns(folder, tmp_path):
    write_numbered(folder / "a.mp4", count=6)
    settings = RecordSettings(width=64, height=48, rotate=True)
    convert_videos(folder, tmp_path / "out", "toy", settings)
    found = pictures(record(tmp_path / "out"))
    assert {picture.shape for picture in found} == {(64, 48, 3)}
    assert [read_number(np.rot90(picture)) for picture in found] == list(range(6))


def test_videos_recorded_upright_are_upright(folder, tmp_path):
    source = write_numbered(tmp_path / "a.mp4", count=4)
    remux(source, folder / "a.mp4", "-display_rotation", "90")
    convert_videos(folder, tmp_path / "out", "toy", ASIS)
    picture = pictures(record(tmp_path / "out"))[3]
    assert picture.shape[:2] == SIZE
    assert read_number(np.rot90(picture, -1)) == 3


def test_a_cut_clip_keeps_what_is_shown(folder, tmp_path):
    source = write_numbered(tmp_path / "a.mp4", count=100, options={"g": "25"})
    remux(source, folder / "a.mp4", "-ss", "1.2")
    convert_videos(folder, tmp_path / "out", "toy", ASIS)
    video = record(tmp_path / "out")
    assert numbers(video) == list(range(30, 100))
    assert microseconds(video)[0] == 0


def test_the_number_of_workers_does_not_matter(folder, tmp_path, carphone, bikes):
    shutil.copy(carphone, folder / "carphone.mp4")
    for number in range(4):
        write_numbered(folder / f"{number}.mp4", count=10 + number)
    for workers in (1, 3):
        settings = RecordSettings(width=64, height=64, per_shard=2)
        convert_videos(folder, tmp_path / str(workers), "toy", settings, fps=2, workers=workers)
    one, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in "13"
    )
    assert one == three
    assert len(one) == 4


def test_which_files(folder):
    for name in ("b.mp4", "a.avi", "c.mp4", ".hidden.mp4", "c.txt"):
        (folder / name).touch()
    (folder / "d.mp4").mkdir()
    assert [path.name for path in find_videos(folder, ["*.mp4"])] == ["b.mp4", "c.mp4"]
    both = find_videos(folder, ["*.mp4", "*.avi", "b*"])
    assert [path.name for path in both] == ["a.avi", "b.mp4", "c.mp4"]
    for pattern in ("", "/tmp/*.mp4"):
        with pytest.raises(UserError, match=r"--pattern: .* is to be relative"):
            find_videos(folder, [pattern])


def test_mistakes(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"holds no file like \*\.mp4; see --pattern"):
        convert_videos(folder, out, "toy", ASIS)
    with pytest.raises(UserError, match="nothing is no folder"):
        convert_videos(tmp_path / "nothing", out, "toy", ASIS)
    write_numbered(folder / "a.mp4", count=5)
    with pytest.raises(UserError, match=r"a\.mp4 has 25 frames a second, --fps asks for 26"):
        convert_videos(folder, out, "toy", ASIS, fps=26)
    for fps in (5e-324, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"--fps: {fps:g} is not between 1e-06 and 1e"):
            convert_videos(folder, out, "toy", ASIS, fps=fps)
    with pytest.raises(UserError, match=r"--fps: -1 is not between .*; 0 keeps every frame"):
        convert_videos(folder, out, "toy", ASIS, fps=-1)
    shutil.copy(folder / "a.mp4", folder / "a.mkv")
    with pytest.raises(UserError, match=r"a\.mkv and .*a\.mp4 would both be 'a'; rename one"):
        convert_videos(folder, out, "toy", ASIS, patterns=["*.mp4", "*.mkv"])
    (folder / "b.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"b\.mp4 cannot be read as a video"):
        convert_videos(folder, out, "toy", ASIS)
    assert not out.exists()


def test_a_video_that_is_damaged_in_its_middle(folder, tmp_path, bikes):
    raw = bytearray(bikes.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 20000] = bytes(20000)
    (folder / "bikes.mp4").write_bytes(raw)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"bikes\.mp4 .*damaged"):
        convert_videos(folder, out, "toy", RecordSettings(width=32, height=32))
    assert not list(out.glob("*.tfrecord"))


def test_frames_that_do_not_come(folder, tmp_path, monkeypatch):
    write_numbered(folder / "a.mp4", count=5)
    original = module.decoded
    monkeypatch.setattr(module, "decoded", lambda piece: list(original(piece))[:3])
    with pytest.raises(UserError, match=r"a\.mp4 gave 3 of 5 frames: it is damaged"):
        convert_videos(folder, tmp_path / "out", "toy", ASIS)
