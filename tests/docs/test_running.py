"""The commands of docs/commands.md, run as they stand there, in the page's order of stages.

What its sentences ask for beforehand is made: `run.yaml`, a second run, a folder of photos and one
of a video's frames. What other pages show of the same verbs is parsed by test_commands.py.
"""

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import ROOT
from tests.docs.reading import in_blocks
from tests.docs.shell import Command
from tests.workflow.conftest import TINY, Workflow, miniature

PAGE = "docs/commands.md"
EXCUSED = {
    "visor": "needs VISOR's archives: tests/data/test_visor.py makes small ones",
    "finetune": "needs ADE20K: tests/slurm/test_profile.py makes a small one",
    "align": "needs features of Pouring: tests/evaluation/test_alignment_video.py makes some",
    "dashboard": "serves until it is stopped: tests/report/test_dashboard.py does",
    "metrics": "needs masks and DAVIS: tests/evaluation/test_davis_folders.py makes small ones",
}
"""verbs that need a data set nobody may hand on, and who runs them"""
STAGES = ("download", "blur", "frames", "shards", "prepare", "images", "folders", "train", "embed")
STAGES += ("evaluate", "card", "report", "mlflow")


def commands(*verbs: str) -> list[Command]:
    """Return the page's commands of some verbs, in its order, without those on `make demo`."""
    shown = [c for c in in_blocks() if c.page == PAGE and c.program == "timewalk"]
    return [c for c in shown if c.words[1] in verbs and "results/demo" not in c.words]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workflow:
    """A folder with what the page's sentences ask for."""
    place = Workflow(tmp_path_factory.mktemp("commands"))
    folder = Path(place.folder)
    runs = miniature()["runs"]
    (folder / "run.yaml").write_text(yaml.safe_dump(runs["dora"] | {"dataset": "walk"}))
    random = {"method": "random", "encoder": TINY}
    (folder / "random.json").write_text(json.dumps(random))
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    rng = np.random.default_rng(0)
    for inner in ("data/photos", "data/YouTubeVOS/train/JPEGImages/0a1b"):
        (folder / inner).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
            Image.fromarray(pixels).save(folder / inner / f"{number:05d}.jpg")
    return place


def run(place: Workflow, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["timewalk", *words],
        cwd=place.folder,
        env=place.environment(),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def made(workplace) -> dict[str, str]:
    """What the stages print, by command, after all of them in the page's order."""
    said = {}
    for command in commands(*STAGES):
        if command.words[1] == "card":  # from here on the page speaks of a second run
            digits, random = "data/datasets/digits/manifest.json", "results/random"
            features = [
                f"{random}/embeddings/digits-{split}.safetensors" for split in ("train", "test")
            ]
            knn = '{"kind": "knn", "dataset": "digits", "k": [5, 20]}'
            second = [["train", "random", random, "--settings", "random.json"]]
            second += [
                ["embed", random, digits, split, path]
                for split, path in zip(("train", "test"), features, strict=True)
            ]
            score = ["evaluate", "knn", random, f"{random}/knn.json", "--settings", knn]
            second += [[*score, "--dataset", digits, "--embeddings", *features]]
            for words in second:
                assert (done := run(workplace, *words)).returncode == 0, done.stderr
        done = run(workplace, *command.words[1:])
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        said[shlex.join(command.words)] = done.stdout + done.stderr
    return said


def test_every_command_is_run_or_excused():
    """And an excuse is not a way out for a verb that the page no longer shows."""
    shown = {c.words[1] for c in in_blocks() if c.page == PAGE and c.program == "timewalk"}
    assert shown - set(STAGES) - set(EXCUSED) == {
        "runs", "show", "compare", "inspect", "doctor", "validate", "completion",
        "methods", "evaluations", "tasks", "videos", "schema",
    }  # fmt: skip
    assert set(EXCUSED) | set(STAGES) <= shown
    for verb, reason in EXCUSED.items():
        (test,) = (word for word in reason.split() if word.startswith("tests/"))
        assert verb in (ROOT / test).read_text(), test


def test_the_stages_write_what_the_page_says(made, workplace):
    folder = Path(workplace.folder)
    for name in (
        "data/blurred/carphone.mp4", "data/shards/walk/carphone.json",
        "data/shards/photos/images.json", "data/shards/ytvos/folders.json",
        "results/dora/encoder.safetensors", "results/dora/card.md", "results/summary.csv",
        "results/summary.md", "results/summary.tex", "results/mlflow.db",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    metrics = json.loads((folder / "results/dora/knn.json").read_text())["metrics"]
    text = next(said for words, said in made.items() if " evaluate knn " in words)
    assert f"20-NN classifier result: Top1: {metrics['top1_k20']}" in text
    mirrored = next(said for words, said in made.items() if words == "timewalk mlflow results")
    assert "dora: written as MLflow run" in mirrored
    assert "random: written as MLflow run" in mirrored


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("command", commands("runs", "show", "compare", "inspect"), ids=str)
def test_looking_at_what_is_there(command, workplace):
    done = run(workplace, *command.words[1:])
    assert done.returncode == 0, done.stderr
    assert "dora" in done.stdout or "carphone" in done.stdout
    if "--output" in command.words:
        assert (Path(workplace.folder) / command.words[-1]).is_file()


CHECKS = ("validate", "methods", "evaluations", "tasks", "videos", "schema")


@pytest.mark.parametrize("command", commands(*CHECKS), ids=str)
def test_checks_and_lists(command, workplace):
    done = run(workplace, *command.words[1:])
    assert done.returncode == 0, done.stderr
    told = {"validate": "no fault found", "schema": "data_dir", "videos": "venice"}
    told |= {"methods": "dora", "evaluations": "knn", "tasks": "detection"}
    verb, *name = command.words[1:]
    keys_of_one = name and verb in ("methods", "evaluations")
    wanted = f": {name[0]}`" if keys_of_one else told[verb]
    assert wanted in done.stdout


def test_the_doctor_says_what_the_suite_lacks(workplace):
    """Of the shipped suite a fresh machine lacks data sets, whatever else it has."""
    for command in commands("doctor"):
        done = run(workplace, *command.words[1:])
        assert done.returncode == 1, done.stderr
        assert "MISSING" in done.stdout
        assert "Traceback" not in done.stderr
