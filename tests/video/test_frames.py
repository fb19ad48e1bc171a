"""Frames: a numbered clip proves that none is lost, doubled or shifted."""

import json
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.video.conftest import read_number, remux, write_numbered
from timewalk.config import BlurConfig, FramesConfig
from timewalk.errors import UserError
from timewalk.video import frames as module
from timewalk.video.frames import choose, extract_frames
from timewalk.video.probe import executable

ALL = FramesConfig(short_side=None)


def numbers(folder):
    return [read_number(np.asarray(Image.open(path))) for path in sorted(folder.glob("*.jpg"))]


@pytest.mark.parametrize(
    "options",
    [{}, {"bf": "0", "g": "1"}, {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-adapt=0"}],
)
def test_every_frame_once_in_order(tmp_path, numbered, options):
    folder = tmp_path / "out"
    manifest = extract_frames(numbered(count=100, options=options), folder, ALL)
    assert numbers(folder) == list(range(100))
    assert manifest["counts"]["frames"] == 100
    assert np.allclose(np.load(folder / "times.npy"), np.arange(100) / 25, atol=1e-3)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (25, list(range(100))),
        (12.5, list(range(0, 100, 2))),
        (5, list(range(0, 100, 5))),
        (1, [0, 25, 50, 75]),
        (10, [n for k in range(20) for n in (5 * k, 5 * k + 3)]),
    ],
)
def test_a_rate_takes_the_first_frame_at_or_after_each_place(tmp_path, numbered, fps, expected):
    folder = tmp_path / "out"
    extract_frames(numbered(count=100), folder, FramesConfig(fps=fps, short_side=None))
    assert numbers(folder) == expected


def test_start_and_end(tmp_path, numbered):
    folder = tmp_path / "out"
    manifest = extract_frames(numbered(count=100), folder, ALL, start_s=1.0, end_s=2.0)
    assert numbers(folder) == list(range(25, 50))
    assert manifest["source_frames"] == [25, 49]
    extract_frames(numbered(), folder, FramesConfig(fps=5, short_side=None), start_s=1.0, end_s=2.0)
    assert numbers(folder) == [25, 30, 35, 40, 45]


def test_variable_frame_rate_keeps_each_frame_once(tmp_path, numbered):
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.integers(15, 90, 60)).tolist()
    video = numbered(count=60, times=times)
    folder = tmp_path / "out"
    manifest = extract_frames(video, folder, ALL)
    assert numbers(folder) == list(range(60))
    seconds = (np.array(times) - times[0]) / 1000
    assert np.allclose(np.load(folder / "times.npy"), seconds, atol=2e-3)
    assert "variable frame rate" in manifest["warnings"][0]
    extract_frames(video, folder, FramesConfig(fps=5, short_side=None))
    expected = [int(np.argmax(seconds >= k / 5 - 1e-3)) for k in range(int(seconds[-1] * 5) + 1)]
    assert numbers(folder) == sorted(set(expected))


@pytest.mark.parametrize("fps", [None, 5])
def test_a_clock_that_ticks_once_a_frame(tmp_path, fps):
    video = write_numbered(tmp_path / "slow.avi", count=30, fps=10)
    extract_frames(video, tmp_path / "out", FramesConfig(fps=fps, short_side=None))
    assert numbers(tmp_path / "out") == list(range(0, 30, 1 if fps is None else 2))


def test_rotated_frames_are_upright(tmp_path, numbered):
    turned = tmp_path / "turned.mp4"
    command = [executable("ffmpeg"), "-v", "error", "-display_rotation", "90"]
    source = numbered(count=10)
    subprocess.run([*command, "-i", str(source), "-c", "copy", str(turned)], check=True)
    manifest = extract_frames(turned, tmp_path / "out", ALL)
    assert (manifest["counts"]["width"], manifest["counts"]["height"]) == (48, 64)
    pixels = np.asarray(Image.open(tmp_path / "out" / "000007.jpg"))
    assert 7 in (read_number(np.rot90(pixels, k)) for k in (1, 3))


@pytest.mark.parametrize(("short", "size"), [(24, (32, 24)), (48, (64, 48)), (500, (64, 48))])
def test_the_short_side_is_never_enlarged(tmp_path, numbered, short, size):
    counts = extract_frames(numbered(count=3), tmp_path / "o", FramesConfig(short_side=short))[
        "counts"
    ]
    assert (counts["width"], counts["height"]) == size


def test_real_video_of_an_odd_shape(tmp_path, bikes):
    counts = extract_frames(bikes, tmp_path / "o", FramesConfig(fps=2, short_side=101))["counts"]
    assert (counts["frames"], counts["height"]) == (20, 101)
    assert counts["width"] in (238, 240)


def test_a_repeat_gives_the_same_bytes_and_replaces_the_folder(tmp_path, carphone):
    folder = tmp_path / "o"
    settings = FramesConfig(fps=5, short_side=72)
    extract_frames(carphone, folder, settings)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "999999.jpg").write_bytes(b"left over")
    extract_frames(carphone, folder, settings)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_blurred_on_the_way(tmp_path, carphone):
    folder = tmp_path / "o"
    settings = BlurConfig(detection_width=192, detection_height=160)
    manifest = extract_frames(carphone, folder, FramesConfig(fps=2), blur=settings)
    assert manifest["blur"] == {"frames": 8, "frames_with_faces": 8, "faces": 8}
    assert json.loads((folder / "blur.json").read_text())["detections"]


@pytest.mark.parametrize(
    ("settings", "span", "message"),
    [
        (FramesConfig(fps=60), {}, r"25 frames a second, frames\.fps asks for 60"),
        (FramesConfig(), {"start_s": 9.0}, "no frame between start_s 9"),
        (FramesConfig(), {"start_s": 1.0, "end_s": 1.02}, ""),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, numbered, settings, span, message):
    if not message:
        assert extract_frames(numbered(), tmp_path / "o", settings, **span)["counts"]["frames"] == 1
        return
    with pytest.raises(UserError, match=message):
        extract_frames(numbered(), tmp_path / "o", settings, **span)
    assert not (tmp_path / "o").exists()


def test_damage_in_the_middle_stops_the_step(tmp_path, bikes):
    data = bytearray(bikes.read_bytes())
    data[250_000:300_000] = bytes(50_000)
    path = tmp_path / "holes.mp4"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"holes\.mp4.*damaged"):
        extract_frames(path, tmp_path / "o", FramesConfig(short_side=64))
    assert not (tmp_path / "o").exists()


@given(
    gaps=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    fps=st.none() | st.floats(0.5, 60),
    start=st.floats(0, 3),
)
def test_choice_never_doubles_nor_leaves_the_range(gaps, fps, start):
    times = np.cumsum([0, *gaps]) / 1000
    chosen = choose(times, fps, start, np.inf)
    assert (np.diff(chosen) > 0).all()
    assert (times[chosen] >= start - 1e-3).all()
    if fps is not None and len(chosen):
        places = np.floor((times[chosen] - start + 1e-3) * fps)
        assert (np.diff(places) > 0).all()


@pytest.mark.parametrize(
    ("rate", "fps"), [(30, 30), (30, 15), (30, 10), (60, 60), (60, 20), (24, 8)]
)
def test_clocks_of_milliseconds_lose_nothing(tmp_path, rate, fps):
    """Matroska rounds 1/30 s to 0.033: still the frame of its place."""
    source = write_numbered(tmp_path / "clip.mp4", count=90, fps=rate)
    video = remux(source, tmp_path / "clip.mkv")
    extract_frames(video, tmp_path / "o", FramesConfig(fps=fps, short_side=None))
    assert numbers(tmp_path / "o") == list(range(0, 90, rate // fps))


def test_a_clip_cut_without_encoding(tmp_path, numbered):
    source = numbered(count=100, options={"g": "50", "x264-params": "scenecut=0"})
    video = remux(source, tmp_path / "cut.mp4", "-ss", "1.2")
    extract_frames(video, tmp_path / "o", ALL)
    assert numbers(tmp_path / "o") == list(range(30, 100))


@pytest.mark.parametrize("span", [{}, {"start_s": 0.4, "end_s": 1.2}])
def test_frames_that_a_cut_made_undecodable(tmp_path, numbered, span):
    """Packets that lean on a frame before the cut: numbers of packets and of frames differ."""
    options = {"g": "30", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
    source = numbered(count=100, options=options)
    video = remux(source, tmp_path / "cut.mkv", "-ss", "1.5")
    with pytest.raises(
        UserError, match=r"cut\.mkv: 1 of \d+ frames have no time .* encode it again"
    ):
        extract_frames(video, tmp_path / "o", ALL, **span)
    assert not (tmp_path / "o").exists()


def test_a_last_frame_of_unknown_length(tmp_path):
    video = remux(write_numbered(tmp_path / "one.mp4", count=1), tmp_path / "one.mkv")
    assert extract_frames(video, tmp_path / "o", ALL)["counts"]["frames"] == 1


def test_a_folder_with_a_percent_sign(tmp_path, numbered):
    extract_frames(numbered(count=3), tmp_path / "50%d" / "o", ALL)
    assert numbers(tmp_path / "50%d" / "o") == [0, 1, 2]


def test_what_comes_long_after_the_end_is_not_decoded(tmp_path, monkeypatch):
    video = write_numbered(tmp_path / "long.mp4", count=200, fps=2)
    commands = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda c, n: (commands.append(c), run(c, n))[1])
    extract_frames(video, tmp_path / "o", ALL, end_s=5.0)
    assert numbers(tmp_path / "o") == list(range(10))
    assert commands[0][commands[0].index("-to") + 1] == "64.5"


def test_digest_and_near_constant_frames_are_in_the_manifest(tmp_path, numbered):
    video = numbered(count=40, blank_from=30)
    manifest = extract_frames(video, tmp_path / "o", ALL)
    assert manifest["blank_share"] == 0.25
    assert "25% of the sampled frames are near-constant" in manifest["warnings"]
    again = extract_frames(video, tmp_path / "p", ALL)
    assert again["frames_sha256"] == manifest["frames_sha256"]
    fewer = extract_frames(video, tmp_path / "p", ALL, end_s=1.0)
    assert fewer["frames_sha256"] != manifest["frames_sha256"]
    assert fewer["blank_share"] == 0


def test_an_interrupt_leaves_no_ffmpeg_behind(tmp_path, numbered, monkeypatch):
    running = []

    def interrupted(process, total):
        running.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(numbered(), tmp_path / "o", ALL)
    assert running[0].returncode is not None
    assert not (tmp_path / "o").exists()


def test_a_line_now_and_then_in_a_log(tmp_path, numbered, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "LOG_EVERY_S", -1.0)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    extract_frames(numbered(), tmp_path / "o", ALL)
    assert "100 of 100 frames" in caplog.text
