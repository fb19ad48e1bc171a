"""A full disk in every stage: one sentence, nothing half taken for whole, with room it goes on.

Each stage's own command runs on a small disk that holds what the stage needs and a part of what it
writes, at several sizes one after the other, and in the end with room. The disk takes the logs too.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workflow.conftest import Workflow, miniature
from tests.workflow.forked import Forked, unshare

PLENTY = 1 << 30
PAGE = 4096
PICTURES = [
    *("pictures/a.jpg", "pictures/b.jpg"),
    *("movies/one/0.jpg", "movies/one/1.jpg", "movies/two/0.jpg"),
]
CLOCK = {"time", "data_s", "step_s", "clips_per_s", "peak_memory_mb", "seconds", "git_commit"}
SOME = (0.5,)
"""shares of what a stage writes for which there is room"""
SIZES = (100_000, 1_500_000, 4_000_000, 8_000_000, PLENTY)
"""of a disk for a whole run, in bytes"""
MANY = (0.0, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
ALIKE = {"embed-dora-digits-train", "report-card-random"}
"""stages that differ from another one in nothing that matters to a disk: for the long tests"""
VERBS = (
    *("download", "blur", "frames", "shards", "images", "folders", "prepare", "train", "finetune"),
    *("embed", "evaluate", "card", "report", "page", "mlflow"),
)
MODULES = (
    *("timewalk.cli", "timewalk.training.run", "timewalk.training.finetune", "matplotlib.pyplot"),
    *("timewalk.video.download", "timewalk.video.blur", "timewalk.video.frames"),
    *("timewalk.data.shards", "timewalk.data.prepare", "sklearn.datasets", "timewalk.validation"),
    *("timewalk.report.tables", "timewalk.report.card", "timewalk.report.mlflow", "pandas"),
    "timewalk.report.page_html",
)
"""what verbs import, once for all"""


def suite() -> dict:
    """Return the miniature with a stage of every kind."""
    config = miniature()
    config["blur"]["where"] = "video"
    config["datasets"] |= {"stills": {"images": "pictures"}, "some": {"folders": "movies"}}
    sizes = {"height": 64, "width": 64}
    config["labelled"] |= {
        "scenes": {"kind": "ade20k_shapes", "train": 4, "test": 3, **sizes},
        "shapes": {"kind": "moving_shapes", "sequences": 1, "frames": 3, "objects": 1, **sizes},
    }
    small = {"batch_size": 2, "learning_rate": 0.001, "warmup_steps": 0, "precision": "fp32"}
    config["finetuning"] = {
        "parse": {
            "task": "semantic_segmentation",
            "dataset": "scenes",
            **{"channels": 8, "crop": 32, "short_side": 32, "long_side": 64},
            "training": {**small, "max_steps": 2},
        }
    }
    one = {"runs": ["random"]}
    parse = {"kind": "ade20k", "dataset": "scenes", "network": "parse", "pictures": 2, **one}
    config["evaluations"]["knn"]["runs"] = ["dora"]
    config["evaluations"] |= {
        "ade20k": parse,
        "davis": {"kind": "davis", "dataset": "shapes", "overlays": True, "protocol": "crw", **one},
    }
    return config


@dataclass
class Stage:
    """One job of the workflow.

    Attributes:
        name: rule and what it is for.
        words: its command, but for the program.
        declared: files that are to be there afterwards.
        before: files that were there before it ran undisturbed.
        made: files that it made.
    """

    name: str
    words: list[str]
    declared: list[str]
    before: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


def stages_of(workflow: Workflow) -> list[Stage]:
    """Return the jobs of a whole run, in order, from Snakemake's own words."""
    outcome = workflow.run("all", "data", "--dry-run", "--printshellcmds")
    assert outcome.code == 0, outcome.text
    stages = []
    for text in re.split(r"\n(?:local)?rule ", outcome.text)[1:]:
        says = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
        if "log" in says:
            words = shlex.split(says["Shell command"])[1:]
            stages.append(Stage(Path(says["log"]).stem, words, says["output"].split(", ")))
    return stages + [variant for stage in stages for variant in variants(stage)]


def variants(stage: Stage) -> list[Stage]:
    """Return the same stage by another way, into another folder."""
    options = {
        "frames": ("--blur", json.dumps(miniature()["blur"] | {"where": "frames"})),
        "shards": ("--storage", "folder"),
    }
    verb = stage.words[2]
    if verb not in options:
        return []
    option, value = options[verb]
    folder = f"data/{verb}/talk"
    words = [word.replace(folder, f"{folder}2") for word in stage.words]
    words[words.index(option) + 1] = value
    declared = [name.replace(folder, f"{folder}2") for name in stage.declared]
    return [Stage(f"{stage.name}{option}", words, declared)]


def files_of(folder: Path) -> list[str]:
    """Return the files of a folder, without logs."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] not in ("logs", ".snakemake"))


def results_of(names: list[str]) -> list[str]:
    """Return the files without those that are of use only on the way, or have random names."""
    return [name for name in names if not {"checkpoints", "mlartifacts"} & set(Path(name).parts)]


@dataclass
class World:
    """An undisturbed run of every stage, and a small disk beside it."""

    stages: dict[str, Stage]
    done: Path
    small: Path
    forked: Forked

    @property
    def disk(self) -> Path:
        """The small disk, as the tests see it."""
        return self.forked.seen(self.small)

    def fill(self, stage: Stage) -> int:
        """Put what a stage needs on a fresh disk; return the bytes that are used."""
        self.forked.unmount(self.small)
        self.forked.mount(self.small, PLENTY)
        for name in stage.before:
            target = self.disk / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.done / name, target)
        (self.disk / "logs" / "data").mkdir(parents=True, exist_ok=True)
        words = ".snakemake/timewalk/words"  # of long commands, which name the file that has them
        shutil.copytree(self.done / words, self.disk / words)
        about = os.statvfs(self.disk)
        return (about.f_blocks - about.f_bfree) * about.f_bsize


def make_pictures(folder: Path) -> None:
    """Write what the data sets of images are made of."""
    rng = np.random.default_rng(0)
    for name in PICTURES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def forked():
    command = unshare()
    if command is None:
        warnings.warn("NO DISK WAS FILLED: no mount is allowed here", stacklevel=1)
        pytest.skip("a small disk needs root or user namespaces: mount is not allowed here")
    running = Forked(command, *MODULES)
    yield running
    running.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory, forked):
    folder = tmp_path_factory.mktemp("disk")
    done, small = folder / "done", folder / "small"
    done.mkdir()
    small.mkdir()
    workflow = Workflow(done)
    workflow.configure(suite())
    make_pictures(done)
    stages = stages_of(workflow)
    for stage in stages:
        stage.before = files_of(done)
        code, text = forked.verb(done, stage.words)
        assert code == 0, text
        stage.made = sorted(set(files_of(done)) - set(stage.before))
    return World({stage.name: stage for stage in stages}, done, small, forked)


def moments(world: World, stage: Stage, shares: tuple[float, ...]) -> list[str]:
    """Run a stage on a disk with room for these shares of what it writes, then with room for all.

    Returns:
        A word for each moment: `full`, or `room` where the stage found enough.
    """
    used = world.fill(stage)
    written = sum(pages(world.done / name) for name in stage.made)
    seen = []
    for share in shares:
        world.forked.mount(world.small, used + int(share * written))
        code, text = world.forked.verb(world.small, stage.words)
        if code == 0:
            assert_whole(world, stage, results_of(stage.made))
            seen.append("room")
            continue
        assert_sentence(code, text, stage)
        there = [name for name in stage.declared if (world.disk / name).exists()]
        assert_whole(world, stage, there)
        seen.append("full")
    world.forked.mount(world.small, PLENTY)
    code, text = world.forked.verb(world.small, stage.words)
    assert (code, text) == (0, ""), text
    assert_whole(world, stage, results_of(stage.made))
    return seen


def pages(path: Path) -> int:
    """Return the room that a file takes."""
    return -(-path.stat().st_size // PAGE) * PAGE


def assert_sentence(code: int, text: str, stage: Stage) -> None:
    assert code == 1, (stage.name, code, text)
    assert "Traceback" not in text
    lines = text.splitlines()
    assert len(lines) == 1, (stage.name, text)
    assert lines[0].startswith(f"timewalk {stage.words[2]}: ")
    assert "cannot be written: no room is left on its device; free some room there" in lines[0]


def assert_whole(world: World, stage: Stage, names: list[str]) -> None:
    """Check that files are those of the undisturbed run."""
    for name in names:
        assert essence(world.disk / name) == essence(world.done / name), (stage.name, name)


def plain(value: object) -> object:
    """Return a JSON value without times, and without the commit: somebody may be at work here."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in CLOCK}
    return [plain(item) for item in value] if isinstance(value, list) else value


def essence(path: Path) -> object:
    """Return what must not change: the bytes, but for times of day and random names."""
    if path.name == "mlflow.json":
        return sorted(json.loads(path.read_text())["runs"])
    if path.name == "mlflow.db":
        with contextlib.closing(sqlite3.connect(":memory:")) as store:
            store.deserialize(path.read_bytes())  # SQLite would open the path as it is seen here
            asked = "select name, status from runs where lifecycle_stage = 'active' order by name"
            return store.execute(asked).fetchall()
    if path.name == "report.html":
        return path.read_text().endswith("</html>\n")  # it says when the newest result was made
    if path.suffix == ".jsonl" or ("results" in path.parts and path.suffix == ".json"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        records = [json.loads(line) for line in lines]
        if path.name == "system.jsonl":  # how busy the machine was, as often as there was time
            return records[0]["step"], records[-1]["step"]
        return [plain(record) for record in records]
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk(world, verb):
    for stage in world.stages.values():
        if stage.words[2] == verb and stage.name not in ALIKE:
            assert "full" in moments(world, stage, SOME)


@pytest.mark.soak
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_at_many_moments(world, verb):
    for stage in world.stages.values():
        if stage.words[2] == verb:
            seen = moments(world, stage, MANY)
            assert len(seen) == len(MANY)
            assert "full" in seen
            print(f"{stage.name}: {len(seen)} moments tried, {seen.count('full')} full, 0 lost")


def test_every_stage_was_tried(world):
    assert {stage.words[2] for stage in world.stages.values()} == set(VERBS)


def timewalk(stage: Stage) -> list[str]:
    """Return a stage's command as a process of its own."""
    return [sys.executable, "-m", "timewalk.cli", *stage.words]


def test_a_full_disk_of_logs_stops_no_work(world):
    """A real process, since a stream that cannot be flushed at its end changes the exit code."""
    stage = world.stages["download-carphone"]
    world.fill(stage)
    logs = world.small / "logs" / "data"
    world.forked.mount(logs, PAGE)
    seen = world.forked.seen(logs)
    (seen / "other").write_bytes(bytes(PAGE))
    code, text = world.forked.command(world.small, timewalk(stage))
    assert (code, text) == (0, "")
    assert_whole(world, stage, results_of(stage.made))
    video = world.disk / "data" / "videos" / "carphone.mp4"
    video.with_suffix(".json").unlink()
    video.unlink()
    words = [word.replace("carphone_pristine", "no_such_video") for word in timewalk(stage)]
    code, text = world.forked.command(world.small, words)
    world.forked.unmount(logs)
    assert code == 1
    assert "no_such_video.mp4" in text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1


def test_a_limit_on_the_size_of_files(world):
    stage = world.stages["shards-talk-carphone"]
    world.fill(stage)
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *timewalk(stage)]
    code, text = world.forked.command(world.small, limited)
    assert code == 1
    assert "carphone.tfrecord cannot be written: files may not be that large here" in text
    assert len(text.splitlines()) == 1
    assert not (world.disk / stage.declared[0]).exists()


def test_full_shared_memory(world):
    stage = world.stages["embed-dora-digits-test"]
    world.fill(stage)
    shared = Path("/dev/shm")
    world.forked.mount(shared, PAGE)
    code, text = world.forked.verb(world.small, [*stage.words, "--threads", "2"])
    world.forked.unmount(shared)
    assert code == 1
    assert "/dev/shm" in text
    assert "Traceback" not in text
    assert not (world.disk / stage.declared[0]).exists()
    code, text = world.forked.verb(world.small, stage.words)
    assert code == 0, text
    assert_whole(world, stage, results_of(stage.made))


@pytest.mark.soak
def test_a_whole_run_on_a_disk_that_grows(world):
    """The whole workflow, its own notes on the disk too: again and again, each time larger."""
    first = world.stages["download-carphone"]
    world.fill(Stage("nothing", [], [], before=["suite.yaml", *PICTURES]))
    # Verbs as processes of their own: those that the tests' server forks do not see this disk.
    workflow = Workflow(world.small, forked=False)
    command = workflow.command("all", "data", "--rerun-incomplete", "--keep-going")
    environment = {"PATH": workflow.environment()["PATH"], "OMP_NUM_THREADS": "1"}
    codes = []
    for size in SIZES:
        world.forked.mount(world.small, size)
        world.forked.command(world.small, [*command, "--unlock"], **environment)
        code, text = world.forked.command(world.small, command, **environment)
        codes.append(code)
        said = [line for line in text.splitlines() if line.startswith("timewalk ")]
        assert all("cannot be written: no room is left" in line for line in said), text
    assert codes == [1] * (len(SIZES) - 1) + [0], text
    made = [n for s in world.stages.values() if "--" not in s.name for n in results_of(s.made)]
    made = [name for name in made if not name.endswith("card.md")]  # with the time of training
    assert_whole(world, first, made)
    print(f"a whole run on a disk of {len(SIZES)} sizes: {len(made)} files, 0 lost")
