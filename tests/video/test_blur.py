"""The blur stage on real videos with faces, and on numbered ones that show lost frames."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.video.conftest import numbered_picture, read_number
from timewalk.artefacts import read_manifest
from timewalk.config import BlurConfig
from timewalk.errors import UserError
from timewalk.video import blur
from timewalk.video.blur import SHEET, TILE, Spread, blur_frames, blur_piece, blur_video
from timewalk.video.faces import regions
from timewalk.video.probe import executable, probe

SMALL = {"detection_width": 192, "detection_height": 160}
QUICK = BlurConfig(**SMALL, segment_s=1)
ONE_PIECE = BlurConfig(**SMALL)


def frames_of(path, format="rgb24"):
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format=format) for frame in file.decode(video=0)]


def times_of(path):
    with av.open(str(path)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    return np.array(times) - times[0]


def lines_of(path):
    return [json.loads(line) for line in path.with_suffix(".faces.jsonl").read_text().splitlines()]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def detail(picture, box):
    """Return the mean absolute difference between neighbours inside a box."""
    x1, y1, x2, y2 = (int(v) for v in box)
    part = picture[max(0, y1) : y2, max(0, x1) : x2].astype(int).mean(-1)
    return np.abs(np.diff(part, axis=0)).mean() + np.abs(np.diff(part, axis=1)).mean()


def ffmpeg(*arguments):
    subprocess.run([executable("ffmpeg"), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def phone(carphone, tmp_path_factory):
    """The blurred carphone, in three pieces, made by one process."""
    output = tmp_path_factory.mktemp("blur") / "carphone.mp4"
    return output, blur_video(carphone, output, QUICK)


def test_each_face_is_covered_and_the_rest_is_kept(carphone, phone):
    output, _ = phone
    found = lines_of(output)
    before, after = frames_of(carphone), frames_of(output)
    assert len(before) == len(after) == len(found) == 120
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        (face,) = found[number]["faces"]
        assert detail(new, face[:4]) < 0.35 * detail(old, face[:4])
        ((x1, y1, x2, y2),) = regions(np.array([face]), 176, 144, BlurConfig(mask_scale=1.5))
        outside = np.ones(old.shape[:2], bool)
        outside[y1:y2, x1:x2] = False
        error = (old[outside].astype(float) - new[outside]) ** 2
        assert 10 * np.log10(255**2 / error.mean()) > 32


def test_covering_one_frame_leaves_the_next_alone(carphone):
    """The decoder predicts later frames from the very memory that a frame stands in."""
    box = np.array([[60, 40, 100, 80, 0.9]], np.float32)
    settings = BlurConfig(method="solid", shape="box")
    expected = frames_of(carphone)
    with av.open(str(carphone)) as file:
        file.streams.video[0].thread_type = "NONE"
        for number, frame in enumerate(file.decode(video=0)):
            covered = blur._covered(frame, box if number % 10 == 0 else box[:0], settings)
            same = np.array_equal(covered.to_ndarray(format="rgb24"), expected[number])
            assert same == (number % 10 != 0)


def test_manifest(carphone, phone):
    output, manifest = phone
    assert manifest == read_manifest(output.with_suffix(".json"), "blurred-video")
    assert manifest["inputs"] == {carphone.name: sha256(carphone)}
    assert manifest["counts"] == {
        "frames": 120,
        "seconds": pytest.approx(4.004),
        "faces": 120,
        "frames_with_faces": 120,
        "pieces": 3,
    }
    assert manifest["faces_per_minute"] == [120]
    assert manifest["backend"] == "onnxruntime CPUExecutionProvider"
    assert manifest["sha256"] == sha256(output)
    assert manifest["detections"] == {
        "carphone.faces.jsonl": sha256(output.with_suffix(".faces.jsonl"))
    }
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


def test_contact_sheet(phone):
    with Image.open(phone[0].with_suffix(".png")) as sheet:
        assert sheet.size == (SHEET[0] * TILE[0], SHEET[1] * (TILE[1] + 16))
        tiles = np.asarray(sheet).reshape(SHEET[1], TILE[1] + 16, SHEET[0], TILE[0], 3)
    assert (tiles[:, : TILE[1]].std((1, 3)).max(-1) > 10).all()  # 24 pictures


def test_two_workers_write_the_same_bytes(carphone, phone, tmp_path):
    output = tmp_path / "two.mp4"
    blur_video(carphone, output, QUICK, workers=2)
    assert lines_of(output) == lines_of(phone[0])
    assert sha256(output) == sha256(phone[0])


def test_times_are_the_sources(carphone, phone):
    np.testing.assert_allclose(times_of(phone[0]), times_of(carphone), atol=1e-6)
    np.testing.assert_allclose(
        [n["time_s"] for n in lines_of(phone[0])], times_of(carphone), atol=1e-6
    )
    assert probe(phone[0]).fps == pytest.approx(30000 / 1001)


def test_pieces_do_not_change_detections(carphone, phone, tmp_path):
    whole = tmp_path / "whole.mp4"
    manifest = blur_video(carphone, whole, ONE_PIECE)
    assert manifest["counts"]["pieces"] < phone[1]["counts"]["pieces"]
    assert lines_of(whole) == lines_of(phone[0])


def test_bytes_do_not_depend_on_what_memory_held(carphone, phone, tmp_path):
    """x264's macroblock tree reads memory that nobody wrote: the C library fills it here."""
    output, script = tmp_path / "filled.mp4", tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(carphone), str(output), QUICK.model_dump_json()]
    subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": "1"})
    assert sha256(output) == sha256(phone[0])


# --- no frame lost -----------------------------------------------------------------------------


def numbers_of(path):
    return [read_number(frame) for frame in frames_of(path)]


@pytest.mark.parametrize(
    ("options", "suffix"),
    [
        ({"g": "7"}, ".mp4"),
        ({"g": "10", "x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}, ".mp4"),
        ({"g": "10", "x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}, ".ts"),
        ({"g": "250", "bf": "3"}, ".mkv"),
    ],
    ids=["closed", "open", "open-ts", "one-key-frame"],
)
@pytest.mark.parametrize("segment_s", [0.02, 0.5])
def test_every_frame_once_and_in_order(numbered, options, suffix, segment_s, tmp_path):
    source = numbered("n" + suffix, count=60, options=options)
    output = tmp_path / "out.mp4"
    manifest = blur_video(source, output, BlurConfig(**SMALL, segment_s=segment_s))
    assert numbers_of(output) == list(range(60))
    assert manifest["counts"]["pieces"] >= (3 if segment_s == 0.5 or options["g"] == "250" else 6)
    np.testing.assert_allclose(times_of(output), times_of(source), atol=1e-3)
    with av.open(str(output)) as file:
        late = [float((p.pts - p.dts) * p.time_base) for p in file.demux(video=0) if p.size]
    assert 0 <= min(late) <= max(late) < 0.3


def test_one_key_frame_with_audio(bigbuckbunny, tmp_path):
    part = tmp_path / "part.mp4"
    ffmpeg("-i", bigbuckbunny, "-t", 2, "-vf", "scale=320:-2", "-c:a", "copy", part)
    dropped, kept = tmp_path / "dropped.mp4", tmp_path / "kept.mp4"
    blur_video(part, dropped, QUICK)
    blur_video(part, kept, BlurConfig(**SMALL, segment_s=1, keep_audio=True))
    assert probe(part).keyframes == 1
    assert (probe(dropped).audio_streams, probe(kept).audio_streams) == (0, 1)
    assert sha256(dropped) != sha256(kept)
    for output in (dropped, kept):
        assert probe(output).frames == probe(part).frames
    sounds = []
    for path in (part, kept):
        with av.open(str(path)) as file:
            sounds.append([bytes(p) for p in file.demux(audio=0) if p.size])
    assert sounds[0] == sounds[1]


def test_audio_stays_in_time_when_the_video_starts_late(bigbuckbunny, tmp_path):
    late = tmp_path / "late.mkv"
    small = ("-t", 1, "-vf", "scale=160:-2", "-c:a", "copy")
    streams = ("-itsoffset", 0.6, "-i", bigbuckbunny, "-i", bigbuckbunny)
    ffmpeg(*streams, "-map", "0:v", "-map", "1:a", *small, late)
    output = tmp_path / "out.mp4"
    blur_video(late, output, BlurConfig(**SMALL, keep_audio=True))

    def gap(path):
        with av.open(str(path)) as file:
            first = {}
            for packet in file.demux():
                if packet.size:
                    stamp = float(packet.pts * packet.time_base)
                    kind = packet.stream.type
                    first[kind] = min(first.get(kind, stamp), stamp)
        return first["video"] - first["audio"]

    assert gap(output) == pytest.approx(gap(late), abs=0.05)


def test_audio_that_mp4_cannot_hold(tmp_path, bigbuckbunny):
    source = tmp_path / "pcm.avi"
    ffmpeg("-i", bigbuckbunny, "-t", 0.3, "-vf", "scale=64:-2", "-c:a", "adpcm_ms", source)
    with pytest.raises(UserError, match=r"pcm\.avi has audio that mp4 does not hold.*keep_audio"):
        blur_video(source, tmp_path / "out.mp4", BlurConfig(**SMALL, keep_audio=True))
    assert not (tmp_path / "out.mp4").exists()


def test_variable_frame_rate(numbered, tmp_path):
    times = np.cumsum([10, 40, 40, 200, 17, 33] * 8).tolist()
    source = numbered("vfr.mkv", count=len(times), times=times)
    output = tmp_path / "out.mp4"
    blur_video(source, output, BlurConfig(**SMALL, segment_s=0.5))
    assert numbers_of(output) == list(range(len(times)))
    np.testing.assert_allclose(times_of(output) * 1000, np.array(times) - times[0], atol=1)


def test_a_file_without_times(numbered, tmp_path):
    """MPEG-4 with B-frames in AVI."""
    source = tmp_path / "old.avi"
    ffmpeg("-i", numbered(count=40), "-c:v", "mpeg4", "-bf", 2, "-q:v", 2, source)
    output = tmp_path / "out.mp4"
    manifest = blur_video(source, output, QUICK)
    assert numbers_of(output) == numbers_of(source)
    assert len(manifest["warnings"]) == (manifest["counts"]["pieces"] == 1)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(numbered, degrees, tmp_path):
    turned, output, expected = (tmp_path / f"{n}.mp4" for n in ("turned", "out", "expected"))
    ffmpeg("-display_rotation", degrees, "-i", numbered(count=5), "-c", "copy", turned)
    ffmpeg("-i", turned, "-crf", 10, expected)
    manifest = blur_video(turned, output, ONE_PIECE)
    assert "turned upright" in manifest["warnings"][0]
    assert probe(output).rotation == 0
    ours, theirs = frames_of(output)[1], frames_of(expected)[1]
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 3


def test_odd_sizes_lose_a_row_and_others_none(tmp_path):
    source, output = tmp_path / "odd.mkv", tmp_path / "out.mp4"
    with av.open(str(source), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 51, 37, "yuv444p"
        for number in range(4):
            picture = numbered_picture(number, (51, 37))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    manifest = blur_video(source, output, ONE_PIECE)
    assert (probe(output).width, probe(output).height) == (50, 36)
    assert "odd size" in manifest["warnings"][0]


def test_1080_stays_1080(numbered, tmp_path):
    output = tmp_path / "out.mp4"
    manifest = blur_video(numbered(count=2, size=(1920, 1080)), output, ONE_PIECE)
    assert (manifest["video"]["width"], manifest["video"]["height"]) == (1920, 1080)
    assert manifest["warnings"] == []


@pytest.mark.parametrize("full", [False, True])
def test_colours_are_kept(carphone, full, tmp_path):
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    tags = "colorprim=bt709:transfer=bt709:colormatrix=bt709:range=" + ("pc" if full else "tv")
    reach = f"scale=out_color_matrix=bt709:out_range={'pc' if full else 'tv'}"
    ffmpeg("-i", carphone, "-frames:v", 4, "-vf", reach, "-x264-params", tags, source)
    blur_video(source, output, ONE_PIECE)
    about = []
    for path in (source, output):
        with av.open(str(path)) as file:
            frame = next(file.decode(video=0))
            about.append(
                (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
            )
    assert about[0] == about[1] == (1, 2 if full else 1, 1, 1)
    corner = np.s_[:30, :30]
    old, new = frames_of(source)[0][corner], frames_of(output)[0][corner]
    assert np.abs(old.astype(int) - new).mean() < 3


def test_pixels_that_are_not_square(carphone, tmp_path):
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    ffmpeg("-i", carphone, "-frames:v", 3, "-vf", "setsar=12/11", source)
    blur_video(source, output, ONE_PIECE)
    with av.open(str(output)) as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(12, 11)


def test_boxes_are_held_between(carphone, tmp_path):
    output = tmp_path / "out.mp4"
    manifest = blur_video(carphone, output, BlurConfig(**SMALL, segment_s=1, every=5))
    boxes = [line["faces"] for line in lines_of(output)]
    assert manifest["counts"]["frames_with_faces"] == 120
    assert boxes[5] == boxes[9] != boxes[10]
    assert "one frame in 5" in manifest["warnings"][0]


# --- faults ------------------------------------------------------------------------------------


def text_file(path, carphone):
    path.write_text("no video")


def truncated(path, carphone):
    path.write_bytes(carphone.read_bytes()[:300_000])


def empty(path, carphone):
    path.write_bytes(b"")


def absent(path, carphone):
    pass


@pytest.mark.parametrize("spoil", [text_file, truncated, empty, absent])
def test_bad_files_are_one_sentence(spoil, carphone, tmp_path):
    source = tmp_path / "bad.mp4"
    spoil(source, carphone)
    with pytest.raises(UserError, match=r"bad\.mp4.*(fetch|copy|check)") as caught:
        blur_video(source, tmp_path / "out.mp4", QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.mp4").exists()


def test_lost_frames_are_an_error_that_keeps_finished_pieces(carphone, tmp_path, monkeypatch):
    made = blur.decoded

    def lossy(piece):
        frames = list(made(piece))
        return iter(frames[:-1] if piece.first else frames)

    monkeypatch.setattr(blur, "decoded", lossy)
    with pytest.raises(UserError, match=r"frames 40 to 79\) gave 39 of 40 frames"):
        blur_video(carphone, tmp_path / "out.mp4", QUICK)
    (work,) = tmp_path.iterdir()
    assert sorted(path.suffix for path in work.iterdir() if path.suffix != ".png") == [
        ".jsonl",
        ".mp4",
    ]


RUN = """
import sys
from pathlib import Path
from timewalk.config import BlurConfig
from timewalk.video.blur import blur_video
if __name__ == "__main__":
    settings = BlurConfig.model_validate_json(sys.argv[3])
    blur_video(Path(sys.argv[1]), Path(sys.argv[2]), settings, workers=2)
"""
# The pool's processes run these lines too.
HALTED = """
import time
from timewalk.video import blur

decoded = blur.decoded

def halted(piece):
    yield from decoded(piece)
    if piece.first:
        time.sleep(600)

blur.decoded = halted
"""
"""in front of the other: comes to no other piece's end than the first one's"""


def children(pid):
    return [child.pid for child in psutil.Process(pid).children()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as about:
            return about.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends before it is read
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_a_killed_run_goes_on(carphone, phone, tmp_path, monkeypatch):
    output, script = tmp_path / "carphone.mp4", tmp_path / "run.py"
    script.write_text(HALTED + RUN)
    command = [sys.executable, str(script), str(carphone), str(output), QUICK.model_dump_json()]
    run = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".*.pieces/0*.mp4")):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(map(alive, workers))  # none goes on writing
    assert not output.exists()
    assert len(list(tmp_path.glob(".*.pieces/0*.mp4"))) == 1
    done = []
    monkeypatch.setattr(blur, "blur_piece", lambda *item: done.append(item) or blur_piece(*item))
    blur_video(carphone, output, QUICK)
    assert len(done) == 2
    assert sha256(output) == sha256(phone[0])
    assert lines_of(output) == lines_of(phone[0])
    assert not list(tmp_path.glob(".*"))


def test_other_settings_use_no_old_pieces(carphone, tmp_path):
    stale = tmp_path / ".out.0123456789ab.pieces"
    stale.mkdir()
    (tmp_path / ".out.0123abcd.part.mp4").write_bytes(b"x")
    other = tmp_path / ".out.b.0123456789ab.pieces"  # of another video, out.b.mp4
    other.mkdir()
    part = tmp_path / "part.mp4"
    ffmpeg("-i", carphone, "-frames:v", 3, part)
    blur_video(part, tmp_path / "out.mp4", ONE_PIECE)
    assert [path.name for path in tmp_path.glob(".*")] == [other.name]


# --- frames ------------------------------------------------------------------------------------


@pytest.fixture
def folder(carphone, tmp_path):
    """Twelve frames with a face and two blank ones."""
    folder = tmp_path / "frames"
    folder.mkdir()
    ffmpeg("-i", carphone, "-frames:v", 12, "-q:v", 2, folder / "%06d.jpg")
    for number in (13, 14):
        Image.new("RGB", (176, 144), "grey").save(folder / f"{number:06d}.jpg")
    return folder


def test_frames_are_blurred_in_place(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = blur_frames(folder, QUICK)
    assert (report["frames"], report["frames_with_faces"], report["faces"]) == (14, 12, 12)
    assert [found["frame"] for found in report["detections"]] == list(range(12))
    assert report["backend"] == "onnxruntime CPUExecutionProvider"
    assert sorted(path.name for path in folder.iterdir()) == [*sorted(before), "faces.png"]
    for number, name in enumerate(sorted(before)):
        if number >= 12:
            assert (folder / name).read_bytes() == before[name]
            continue
        with Image.open(folder / name) as new, Image.open(io.BytesIO(before[name])) as old:
            assert new.quantization == old.quantization
            pictures = [np.asarray(image.convert("RGB")) for image in (new, old)]
        box = report["detections"][number]["boxes"][0][:4]
        assert detail(pictures[0], box) < 0.35 * detail(pictures[1], box)
        corner = np.abs(pictures[0][100:, :50].astype(int) - pictures[1][100:, :50])
        assert corner.mean() < 1.5


def test_frames_by_two_workers_are_the_same(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert blur_frames(folder, QUICK) == blur_frames(copy, QUICK, workers=2)
    for path in folder.iterdir():
        assert path.read_bytes() == (copy / path.name).read_bytes()


def test_frames_hold_boxes(folder):
    settings = BlurConfig(**SMALL, every=4)
    boxes = [found["boxes"] for found in blur_frames(folder, settings)["detections"]]
    assert boxes[0] == boxes[3] != boxes[4]


def test_grey_and_single_files(folder):
    path = folder / "000001.jpg"
    with Image.open(path) as picture:
        picture.convert("L").save(path)
    assert blur_frames(folder, QUICK)["detections"][0]["frame"] == 0
    with Image.open(path) as picture:
        assert picture.size == (176, 144)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_frame_is_one_sentence(folder, content):
    path = folder / "000003.jpg"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=r"000003\.jpg cannot be read .*extract the frames again"):
        blur_frames(folder, QUICK)


def test_an_empty_folder(tmp_path):
    assert blur_frames(tmp_path, QUICK)["frames"] == 0


@pytest.mark.parametrize("count", [0, 1, 24, 100, 1000])
def test_spread_keeps_few_from_all_over(count):
    spread = Spread[int](47)
    for number in range(count):
        if spread.wants():
            spread.add(number)
    assert min(count, 24) <= len(spread.items) <= 47
    assert len(set(np.diff(spread.items))) <= 1
