"""Folders in the official layout: what is scored, what is written, and every fault."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timewalk import cli
from timewalk.errors import UserError
from timewalk.evaluation import davis_folders
from timewalk.evaluation.davis_folders import ANNOTATIONS, MAX_PROPOSALS, score_folders
from timewalk.evaluation.davis_tables import tables, write_csv, write_scores

SHAPE = (48, 64)
FRAMES = 5
SEQUENCES = {"ant": 2, "bee": 3, "cow": 1}
SEMI, UNSUP = "semi-supervised", "unsupervised"
CSV = ("global_results-val.csv", "per-sequence_results-val.csv")


def squares(count, shift=0):
    """Return an id map with ``count`` squares."""
    ids = np.zeros(SHAPE, np.uint8)
    for number in range(count):
        top, left = 4 + 15 * (number % 3), 3 + 18 * (number // 3) + shift
        ids[top : top + 10, left : left + 12] = number + 1
    return ids


def save(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if ids.ndim == 2:
        image.putpalette([n * 7 % 256 for n in range(768)])
    image.save(path)


def add_sequence(davis, name, maps):
    for number, ids in enumerate(maps):
        for folder in ANNOTATIONS.values():
            save(davis / folder / "480p" / name / f"{number:05d}.png", ids)
        jpeg = davis / "JPEGImages" / "480p" / name / f"{number:05d}.jpg"
        jpeg.parent.mkdir(parents=True, exist_ok=True)
        jpeg.write_bytes(b"only listed")


def write_set(davis, names, year="2017", subset="val"):
    path = davis / "ImageSets" / year / f"{subset}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


@pytest.fixture
def davis(tmp_path):
    """Return a small DAVIS folder; objects move two pixels a frame."""
    root = tmp_path / "DAVIS"
    for name, count in SEQUENCES.items():
        add_sequence(root, name, [squares(count, 2 * t) for t in range(FRAMES)])
    write_set(root, SEQUENCES)
    return root


@pytest.fixture
def results(tmp_path):
    """Return results that lag by one pixel."""
    root = tmp_path / "results"
    for name, count in SEQUENCES.items():
        for t in range(FRAMES):
            save(root / name / f"{t:05d}.png", squares(count, 2 * t + 1))
    return root


def frame(root, name, number=2):
    return root / name / f"{number:05d}.png"


def annotation(davis, task, name, number=2):
    return davis / ANNOTATIONS[task] / "480p" / name / f"{number:05d}.png"


def command(results, davis, task, *more):
    words = ["metrics", "davis", "--results", results, "--davis", davis, "--task", task, *more]
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("task", [SEMI, UNSUP])
def test_a_perfect_result(davis, task):
    scores = score_folders(davis / ANNOTATIONS[task] / "480p", davis, task)
    assert [row.name for row in scores.rows()] == [
        f"{name}_{k + 1}" for name, count in SEQUENCES.items() for k in range(count)
    ]
    assert scores.means() == {
        "J&F-Mean": 1.0,
        "J-Mean": 1.0,
        "J-Recall": 1.0,
        "J-Decay": 0.0,
        "F-Mean": 1.0,
        "F-Recall": 1.0,
        "F-Decay": 0.0,
    }


def test_the_frames_that_are_scored(davis, results):
    every = tuple(f"{t:05d}" for t in range(FRAMES))
    for task, expected in ((SEMI, every[1:-1]), (UNSUP, every)):
        scores = score_folders(results, davis, task)
        for entry in scores.sequences:
            assert entry.frames == expected
            for row in entry.objects:
                # squares of 10 x 12, one pixel off
                np.testing.assert_allclose(row.J, np.full(len(expected), 110 / 130), atol=1e-12)
                assert (row.F == 1).all()


def test_first_and_last_results_of_the_given_task_are_not_opened(davis, results):
    frame(results, "ant", 0).unlink()
    frame(results, "ant", FRAMES - 1).write_bytes(b"no image")
    assert score_folders(results, davis, SEMI).failures == {}
    assert list(score_folders(results, davis, UNSUP).failures) == ["ant"]


def test_void_is_background_in_one_task_and_left_out_in_the_other(davis):
    """A result that covers the void area besides its object."""
    results = davis.parent / "over"
    for t in range(FRAMES):
        ids, over = squares(1, 2 * t), squares(1, 2 * t)
        ids[4:14, 40:46], over[4:14, 40:46] = 255, 1
        save(results / "cow" / f"{t:05d}.png", over)
        for task in (SEMI, UNSUP):
            save(annotation(davis, task, "cow", t), ids)
    given_ids = score_folders(results, davis, SEMI, sequences=["cow"])
    assert given_ids.rows()[0].J.tolist() == [120 / 180] * 3
    matched = score_folders(results, davis, UNSUP, sequences=["cow"])
    assert matched.rows()[0].J.tolist() == [1.0] * 5
    assert matched.rows()[0].F.tolist() == [1.0] * 5


def test_ids_that_come_later_and_gaps(davis, results):
    """The objects are the ids up to the highest of the first frame; a gap is an empty object."""
    for t in range(FRAMES):
        ids = squares(1, 2 * t)
        ids[ids == 1] = 2
        if t:
            ids[30:40, 30:40] = 3
        save(annotation(davis, SEMI, "cow", t), ids)
    rows = score_folders(results, davis, SEMI, sequences=["cow"]).rows()
    assert [row.name for row in rows] == ["cow_1", "cow_2"]
    assert rows[0].J.tolist() == rows[1].J.tolist() == [0, 0, 0]
    empty = davis.parent / "empty"
    for t in range(FRAMES):
        save(frame(empty, "cow", t), np.zeros(SHAPE, np.uint8))
    rows = score_folders(empty, davis, SEMI, sequences=["cow"]).rows()
    assert rows[0].J.tolist() == rows[0].F.tolist() == [1, 1, 1]
    assert rows[1].J.tolist() == rows[1].F.tolist() == [0, 0, 0]


@pytest.mark.parametrize("task", [SEMI, UNSUP])
def test_fewer_ids_than_objects(davis, results, task):
    for t in range(FRAMES):
        save(frame(results, "bee", t), np.zeros(SHAPE, np.uint8))
        save(frame(results, "ant", t), squares(1, 2 * t))
    scores = score_folders(results, davis, task)
    means = {row.name: row.J_statistics.mean for row in scores.rows()}
    assert scores.failures == {}
    assert [means[f"bee_{k}"] for k in (1, 2, 3)] == [0, 0, 0]
    assert [means["ant_1"], means["ant_2"]] == [1, 0]


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(1, 7)))
def test_proposal_ids_are_names_only(order, tmp_path_factory):
    root = tmp_path_factory.mktemp("davis")
    davis, plain, renamed = root / "DAVIS", root / "plain", root / "renamed"
    table = np.array([0, *order], np.uint8)
    truth = [squares(4, 2 * t) for t in range(3)]
    add_sequence(davis, "ant", truth)
    write_set(davis, ["ant"])
    for t in range(3):
        ids = squares(6, 2 * t + t % 2)
        save(frame(plain, "ant", t), ids)
        save(frame(renamed, "ant", t), table[ids])
    expected, found = (score_folders(folder, davis, UNSUP) for folder in (plain, renamed))
    assert found.means() == pytest.approx(expected.means(), abs=1e-12)
    by_object = {row.object: row.proposal for row in found.rows()}
    assert by_object == {row.object: table[row.proposal] for row in expected.rows()}
    proposals = [row.proposal for row in found.rows()]
    assert proposals == sorted(proposals)


def test_the_rows_are_in_the_order_of_proposals_and_the_json_says_the_object(davis, results):
    for t in range(FRAMES):
        swapped = np.array([0, 5, 2], np.uint8)[squares(2, 2 * t)]
        save(frame(results, "ant", t), swapped)
    rows = score_folders(results, davis, UNSUP).sequences[0].objects
    found = [(row.name, row.proposal, row.object) for row in rows]
    assert found == [("ant_1", 2, 2), ("ant_2", 5, 1)]


def test_kinds_of_id_images(davis, results):
    """Gray and one-bit masks are id maps too."""
    path = frame(results, "cow")
    Image.fromarray(squares(1, 5)).save(path)
    gray = score_folders(results, davis, SEMI).means()
    Image.fromarray(squares(1, 5) == 1).save(path)
    assert score_folders(results, davis, SEMI).means() == gray


def test_workers_change_nothing(davis, results):
    frame(results, "bee").unlink()
    one, two = (score_folders(results, davis, UNSUP, workers=n) for n in (1, 2))
    assert tables(one) == tables(two)
    assert one.failures == two.failures
    assert list(one.failures) == ["bee"]


def end(job):
    os._exit(9)


def test_a_killed_worker_is_said(davis, results, monkeypatch):
    monkeypatch.setattr(davis_folders, "_score", end)
    with pytest.raises(UserError, match=r"a process of the scoring was killed.* fewer workers\."):
        score_folders(results, davis, SEMI, workers=2)


@pytest.mark.parametrize("task", [SEMI, UNSUP])
def test_memory_is_that_of_a_frame(davis, task):
    """Ten frames of 480x854 in one stack of float64 would be 33 MB, and one for each object."""
    ids = squares(3).repeat(10, 0).repeat(13, 1)
    add_sequence(davis, "big", [ids] * 10)
    write_set(davis, ["big"])
    results = davis / ANNOTATIONS[task] / "480p"
    score_folders(results, davis, task)  # imports
    tracemalloc.start()
    score_folders(results, davis, task)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_sets_and_years(davis, results):
    """The test sets of the unsupervised task are listed under 2019."""
    write_set(davis, ["ant"], "2017", "test-dev")
    write_set(davis, ["bee", "", "bee"], "2019", "test-dev")
    names = {
        task: [
            entry.sequence for entry in score_folders(results, davis, task, "test-dev").sequences
        ]
        for task in (SEMI, UNSUP)
    }
    assert names == {SEMI: ["ant"], UNSUP: ["bee"]}
    chosen = score_folders(results, davis, UNSUP, "test-dev", year="2017")
    assert [entry.sequence for entry in chosen.sequences] == ["ant"]
    chosen = score_folders(results, davis, SEMI, sequences=["cow", "ant"])
    assert [entry.sequence for entry in chosen.sequences] == ["ant", "cow"]


def test_existing_tables_are_replaced(davis, results):
    for name in CSV:
        (results / name).write_text("old\n")
    (results / "partial_per-sequence_results-val.csv").write_text("old\n")
    (results / f"partial_davis_{SEMI}-val.json").write_text("old\n")
    assert command(results, davis, SEMI) == 0
    assert (results / CSV[0]).read_text().splitlines() == [
        "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay",
        "0.923,0.846,1.000,0.000,1.000,1.000,0.000",
    ]
    assert (results / CSV[1]).read_text().splitlines()[:2] == [
        "Sequence,J-Mean,F-Mean",
        "ant_1,0.846,1.000",
    ]
    assert sorted(path.name for path in results.iterdir() if path.is_file()) == sorted(
        [*CSV, f"davis_{SEMI}-val.json"]
    )


def test_the_json_has_everything(davis, results, tmp_path):
    scores = score_folders(results, davis, UNSUP)
    written = json.loads(write_scores(scores, tmp_path / "out").read_text())
    assert (written["task"], written["set"], written["failures"]) == (UNSUP, "val", {})
    assert written["global"] == scores.means()
    bee = written["sequences"]["bee"]
    assert bee["frames"] == [f"{t:05d}" for t in range(FRAMES)]
    assert [(row["object"], row["proposal"]) for row in bee["objects"]] == [(1, 1), (2, 2), (3, 3)]
    row = scores.sequences[1].objects[2]
    assert bee["objects"][2]["J"]["frames"] == row.J.tolist()
    assert bee["objects"][2]["F"]["decay"] == row.F_statistics.decay


def test_the_command_prints_both_tables_in_full(davis, results, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(results, davis, UNSUP, "--output", out, "--workers", 1) == 0
    text = capsys.readouterr().out
    assert repr(score_folders(results, davis, UNSUP).means()["J&F-Mean"]) in text
    assert "bee_3" in text
    assert text.splitlines()[-1].endswith(" s")
    assert sorted(path.name for path in out.iterdir()) == [f"davis_{UNSUP}-val.json", *CSV]
    assert not list(results.glob("*.csv"))


def remove(path, *_):
    path.unlink()


def rename(path, *_):
    path.rename(path.with_name("00099.png"))


def shrink(path, *_):
    save(path, squares(1)[:-2])


def colour(path, *_):
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(path)


def garble(path, *_):
    path.write_bytes(b"no image")


def truncate(path, *_):
    path.write_bytes(path.read_bytes()[:60])


def fill(value):
    def write(path, *_):
        ids = squares(1)
        ids[0, 0] = value
        save(path, ids)

    return write


RESULT_FAULTS = [
    (SEMI, remove, "00002.png is missing"),
    (UNSUP, remove, "00002.png is missing"),
    (SEMI, lambda path: save(path.with_name("00005.png"), squares(1)), "00005.png has no annot"),
    (SEMI, rename, "00099.png has no annotation"),
    (SEMI, shrink, "00002.png is 64x46 pixels, but the sequence is 64x48"),
    (UNSUP, shrink, "00002.png is 64x46 pixels, but the sequence is 64x48"),
    (SEMI, colour, "00002.png is of the kind RGB: expected an id (palette or gray) PNG"),
    (SEMI, garble, "00002.png cannot be read (not an image)"),
    (UNSUP, truncate, "00002.png cannot be read"),
    (SEMI, fill(3), "00002.png has the id 3, but the sequence has 2 objects: only ids 0 to 2"),
    (SEMI, fill(255), "00002.png has the id 255, but the sequence has 2 objects"),
    (UNSUP, fill(21), "00002.png has the id 21, but at most 20 proposals"),
    (UNSUP, fill(255), "00002.png has the id 255, but at most 20 proposals"),
    (SEMI, lambda path: shutil.rmtree(path.parent), "ant is missing: predict the sequence first"),
]


@pytest.mark.parametrize(("task", "harm", "message"), RESULT_FAULTS)
def test_a_fault_in_the_results_of_one_sequence(davis, results, task, harm, message, capsys):
    harm(frame(results, "ant"))
    check_fault(davis, results, task, message, capsys)


ANNOTATION_FAULTS = [
    (SEMI, 2, shrink, "00002.png is 64x46 pixels, but the sequence is 64x48"),
    (SEMI, FRAMES - 1, shrink, "00004.png is 64x46 pixels, but the sequence is 64x48"),
    (UNSUP, 2, shrink, "00002.png is 64x46 pixels, but the sequence is 64x48"),
    (UNSUP, 2, colour, "00002.png is of the kind RGB"),
    (SEMI, 0, garble, "00000.png cannot be read (not an image)"),
    (SEMI, FRAMES - 1, remove, "5 images but only 4 annotations, the last of them 00003.png"),
    (UNSUP, 0, lambda path: shutil.rmtree(path.parent), "ant has no PNG masks"),
]


@pytest.mark.parametrize(("task", "number", "harm", "message"), ANNOTATION_FAULTS)
def test_a_fault_in_the_truth_of_one_sequence(davis, results, task, number, harm, message, capsys):
    harm(annotation(davis, task, "ant", number))
    check_fault(davis, results, task, message, capsys)


def test_a_sequence_without_images(davis, results, capsys):
    shutil.rmtree(davis / "JPEGImages" / "480p" / "ant")
    check_fault(davis, results, SEMI, "ant has no JPEG images", capsys)


def test_too_short_for_the_given_task(davis, results, capsys):
    for root in (*(davis / folder / "480p" for folder in ANNOTATIONS.values()), results):
        for number in range(2, FRAMES):
            frame(root, "ant", number).unlink()
    for path in sorted((davis / "JPEGImages" / "480p" / "ant").iterdir())[2:]:
        path.unlink()
    check_fault(davis, results, SEMI, "it has 2 frames (00001.png the last)", capsys)
    assert score_folders(results, davis, UNSUP).failures == {}


def test_a_whole_sequence_of_another_size(davis, results, capsys):
    for number in range(FRAMES):
        shrink(frame(results, "ant", number))
    check_fault(davis, results, UNSUP, "00000.png is 64x46 pixels, but", capsys)


def check_fault(davis, results, task, message, capsys):
    """One sentence, exit code 1; the others' scores as they are, under a name of their own."""
    for name in (*CSV, f"davis_{task}-val.json"):
        (results / name).write_text("of an earlier run\n")
    assert command(results, davis, task) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    (sentence,) = [line for line in printed.err.splitlines() if "timewalk metrics" in line]
    assert sentence.startswith("timewalk metrics: sequence ant: ")
    assert message in sentence
    assert sentence.endswith(".")
    assert "bee_3" in printed.out
    assert "ant_1" not in printed.out
    assert "J-Recall" not in printed.out
    names = [f"partial_davis_{task}-val.json", "partial_per-sequence_results-val.csv"]
    assert sorted(path.name for path in results.iterdir() if path.is_file()) == names
    written = json.loads((results / names[0]).read_text())
    assert written["failures"] == {"ant": sentence.removeprefix("timewalk metrics: ")}
    assert written["global"] is None
    assert sorted(written["sequences"]) == ["bee", "cow"]
    rows = (results / names[1]).read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Sequence", "bee_1", "bee_2", "bee_3", "cow_1"]


def test_several_faults_a_line_each(davis, results, capsys):
    frame(results, "ant").unlink()
    garble(frame(results, "cow"))
    assert command(results, davis, SEMI) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "sequence ant" in lines[-2]
    assert lines[-1].startswith("sequence cow")


def test_no_sequence_can_be_scored(davis, results, capsys):
    for name in SEQUENCES:
        shutil.rmtree(results / name)
    assert command(results, davis, SEMI) == 1
    assert not list(results.glob("global*"))


SET_FAULTS = [
    (lambda d, r: shutil.rmtree(r), "results is missing: give the folder of results"),
    (lambda d, r: shutil.rmtree(d), "DAVIS is missing: give the DAVIS folder"),
    (lambda d, r: shutil.rmtree(d / "Annotations"), "480p is missing: the semi-supervised task"),
    (lambda d, r: shutil.rmtree(d / "JPEGImages"), "480p is missing: the semi-supervised task"),
    (lambda d, r: shutil.rmtree(d / "ImageSets"), "val.txt is missing: it is to list"),
    (lambda d, r: write_set(d, [""]), "val.txt is empty: it is to list"),
]


@pytest.mark.parametrize(("harm", "message"), SET_FAULTS)
def test_a_fault_of_the_whole_set(davis, results, harm, message, capsys):
    harm(davis, results)
    assert command(results, davis, SEMI) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_unknown_names(davis, results, capsys):
    assert command(results, davis, SEMI, "--set", "vla") == 1
    assert "the set 'vla' is unknown; did you mean 'val'?" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"val\.txt does not list the sequence 'ants'; did you"):
        score_folders(results, davis, SEMI, sequences=["ants"])
    with pytest.raises(UserError, match="task is 'semi', which is unknown; known: semi-"):
        score_folders(results, davis, "semi")


def test_a_sequence_without_objects_counts_for_nothing(davis, results, caplog):
    for task in (SEMI, UNSUP):
        save(annotation(davis, task, "cow", 0), squares(0))
    for t in range(FRAMES):
        save(frame(results, "cow", t), squares(0))
    scores = score_folders(results, davis, SEMI)
    assert len(scores.rows()) == 5
    assert "sequence cow: no object in its first frame" in caplog.text
    assert score_folders(results, davis, UNSUP).means()["J-Mean"] == pytest.approx(110 / 130)
    with pytest.raises(UserError, match="no sequence of 'val' has an object to score"):
        score_folders(results, davis, SEMI, sequences=["cow"])


def test_more_objects_than_proposals_are_allowed(davis):
    """Padding goes beyond 20 where the truth does."""
    count = MAX_PROPOSALS + 5
    ids = np.zeros(SHAPE, np.uint8)
    ids[10] = np.arange(64).clip(0, count)
    results = davis.parent / "few"
    for t in range(FRAMES):
        for task in (SEMI, UNSUP):
            save(annotation(davis, task, "cow", t), ids)
        save(frame(results, "cow", t), ids * (ids <= MAX_PROPOSALS))
    rows = score_folders(results, davis, UNSUP, sequences=["cow"]).rows()
    assert [row.J_statistics.mean for row in rows] == [1.0] * 20 + [0.0] * 5


def test_the_tables_are_quoted_where_a_name_needs_it(davis, results, tmp_path):
    for root in (*(davis / folder / "480p" for folder in ANNOTATIONS.values()), results):
        (root / "cow").rename(root / "cow, left")
    (davis / "JPEGImages" / "480p" / "cow").rename(davis / "JPEGImages" / "480p" / "cow, left")
    write_set(davis, ["cow, left"])
    _, objects = write_csv(score_folders(results, davis, SEMI), tmp_path / "out")
    assert Path(objects).read_text().splitlines()[1] == '"cow, left_1",0.846,1.000'


def test_the_command_imports_no_torch(davis, results):
    code = (
        "import sys; from timewalk import cli; "
        "code = cli.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    words = ["metrics", "davis", "--results", results, "--davis", davis, "--task", UNSUP]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
