"""Lists of one's own beside a labelled set: a changed one is noticed, by real Snakemake."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.miniature import phase_sets, video_sets

VIDEOS = "data/datasets/vos/manifest.json"
STILLS = "data/datasets/stills/manifest.json"
PHASES = "data/datasets/phases/manifest.json"


@pytest.fixture
def suite(workflow):
    folder = workflow.folder
    video_sets.youtube_vos(folder / "vos", frames=1)
    (folder / "mine.txt").write_text("00a23ccf53\n")
    for split in ("training", "validation"):
        for place, value in (("images", (9, 9, 9)), ("annotations", 1)):
            path = folder / "stills" / place / split / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((8, 8, *np.shape(value)), value, np.uint8)).save(path)
    (folder / "classes.txt").write_text("sky\n")
    vos = {"kind": "youtube_vos", "root": "vos", "list_file": "mine.txt"}
    stills = {"kind": "segmentation_folder", "root": "stills", "classes": "classes.txt"}
    made = [phase_sets.video("a", (0, 0, 1))]
    phase_sets.records(folder / "raw", {"x_train-0.tfrecord": made, "x_val-0.tfrecord": made})
    phases = {"kind": "phase_records", "root": "raw"}
    workflow.configure({"labelled": {"vos": vos, "stills": stills, "phases": phases}})
    return workflow


def test_changed_lists_and_corrected_labels_prepare_anew(suite):
    def read(path):
        return json.loads((suite.folder / path).read_text())

    first = make(suite, VIDEOS, STILLS, PHASES)
    assert read(STILLS)["classes"] == ["sky"]
    before = read(VIDEOS)["inputs"]["mine.txt"], read(PHASES)["digest"]
    (suite.folder / "mine.txt").write_text("0043f083b5\n")
    (suite.folder / "classes.txt").write_text("water\n")
    corrected = [phase_sets.video("a", (0, 1, 1))]
    phase_sets.records(suite.folder / "raw", {"x_val-0.tfrecord": corrected})
    second = make(suite, VIDEOS, STILLS, PHASES)
    assert first.count("rule prepare:") == second.count("rule prepare:") == 3
    assert read(STILLS)["classes"] == ["water"]
    after = read(VIDEOS)["inputs"]["mine.txt"], read(PHASES)["digest"]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert "Nothing to be done" in make(suite, VIDEOS, STILLS, PHASES, "--dry-run")


def make(workflow, *words):
    outcome = workflow.run(*words)
    assert outcome.code == 0, outcome.text
    return outcome.text


def test_a_missing_list_is_named_with_its_key(suite):
    (suite.folder / "mine.txt").unlink()
    outcome = suite.run(VIDEOS)
    assert outcome.code != 0
    assert "the list mine.txt is missing" in outcome.text
    assert "correct 'list_file'." in outcome.text
    assert "Traceback" not in outcome.text
