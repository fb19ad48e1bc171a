import fcntl
import json
import os
import time

import pytest

from tests.report.written import write_curve, write_result, write_run
from timewalk.errors import UserError
from timewalk.report.runs import age, asked_for, find_run, read_curve, read_run, show_runs
from timewalk.report.show import show_run


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    write_run(folder, "dora")
    write_result(folder, "dora", top1_k20=50.0)
    write_run(folder, "größe", method="crw")
    write_result(folder, "größe", method="crw", top1_k20=60.0)
    (tmp_path / "logs" / "results").mkdir(parents=True)
    return folder


def row(text, name):
    """Return the cells of a run in all blocks of a table."""
    lines = [line.split("  ") for line in text.splitlines() if line.startswith(f"{name} ")]
    return [cell.strip() for line in lines for cell in line if cell.strip()]


def begin(results, name, steps=3):
    """Write what a training leaves that is not finished."""
    write_curve(results / name / "checkpoints" / "metrics.jsonl", steps, 9.0)
    settings = {"method": "dora", "training": {"max_steps": 10}}
    (results / name / "config.json").write_text(json.dumps(settings))
    return results / name


def test_finished_runs_with_their_figures(results):
    text = show_runs(results, {"dora": ["knn", "linear"], "größe": ["knn"]}, width=100)
    assert row(text, "dora")[:4] == ["dora", "finished", "4/4", "2"]
    assert {"1/2", "knn 50.00", "walk"} <= set(row(text, "dora"))
    assert {"1/1", "knn 60.00*", "crw"} <= set(row(text, "größe"))


def test_training_is_who_holds_the_lock(results):
    folder = begin(results, "mine")
    lock = folder / "checkpoints" / "lock"
    lock.touch()
    assert read_run(folder).state == "stopped"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # A lock belongs to an open file, so that the same process sees it, too.
        run = read_run(folder)
    assert (run.state, run.step, run.steps, run.loss) == ("training", 3, 10, 7.0)
    assert read_run(folder).state == "stopped"


def test_the_log_knows_the_steps_and_why_it_failed(results):
    begin(results, "mine")
    log = results.parent / "logs" / "results" / "train-mine.log"
    log.write_text("2026-01-01 00:00:00,000 INFO x: step 3 of 77: loss 1\n")
    assert read_run(results / "mine").steps == 77
    log.write_text(log.read_text() + "timewalk train: the loss is not finite; lower the rate.\n")
    text = show_runs(results, width=80)
    assert "failed" in row(text, "mine")
    assert "mine: the loss is not finite; lower the rate." in text


def test_an_evaluation_that_failed_and_a_run_that_has_not_begun(results):
    log = results.parent / "logs" / "results" / "evaluate-dora-linear.log"
    log.write_text("timewalk evaluate: no room.\n")
    text = show_runs(results, {"dora": ["knn", "linear"], "later": ["knn"]}, width=80)
    assert "dora, linear: no room." in text
    assert row(text, "later")[:2] == ["later", "not started"]


def test_nothing_is_wider_than_asked_for(results):
    begin(results, "a_run_with_quite_a_long_name_that_somebody_gave_it")
    for width in (60, 80, 120):
        lines = show_runs(results, {"dora": ["knn"]}, width=width).splitlines()
        assert max(map(len, lines)) <= width


def test_a_line_that_is_half_written_is_left_out(tmp_path):
    write_curve(tmp_path / "metrics.jsonl", 3, 5.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [record["step"] for record in read_curve(tmp_path)] == [0, 1, 2]
    (tmp_path / "metrics.jsonl").write_text("{no\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        read_curve(tmp_path)


def test_runs_are_found_by_name_and_by_path(results):
    assert find_run("dora", results) == results / "dora"
    assert find_run(str(results / "dora"), results.parent) == results / "dora"
    with pytest.raises(UserError, match=r"dorra is no run of .* did you mean 'dora'\?"):
        find_run("dorra", results)
    with pytest.raises(UserError, match="is no folder: run a suite"):
        show_runs(results / "none")
    (results / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        show_runs(results / "empty")


def test_what_a_configuration_asks_for():
    raw = {
        "runs": {"a": {}, "b": {}},
        "evaluations": {"knn": {"kind": "knn"}, "few": {"kind": "few_shot", "runs": ["b"]}},
    }
    assert asked_for(raw) == {"a": ["knn"], "b": ["knn", "few"]}
    assert asked_for({}) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (7300, "2 h"), (200000, "2 d"), (-3, "0 s")],
)
def test_ages(seconds, text):
    assert age(seconds) == text


def test_the_age_is_that_of_the_newest_sign(results):
    os.utime(results / "dora" / "encoder.json", (time.time() - 7300,) * 2)
    assert "2 h" in row(show_runs(results, width=100), "dora")


def test_the_mark_of_a_mean_stands_beside_no_single_run(results):
    write_run(results, "dora_s1", seed=1)
    write_result(results, "dora_s1", top1_k20=90.0)
    write_run(results, "random", method="random")
    write_result(results, "random", method="random", top1_k20=10.0)
    text = show_runs(results, width=100)
    assert "knn 50.00" in row(text, "dora")
    assert "knn 90.00" in row(text, "dora_s1")
    assert "knn 60.00'" in row(text, "größe")


def test_only_what_is_asked_for_is_counted(results):
    write_result(results, "dora", "old", top1_k20=1.0)
    assert "1/2" in row(show_runs(results, {"dora": ["knn", "tau"]}, width=100), "dora")


def test_features_that_failed_do_not_fail_every_evaluation(results):
    logs = results.parent / "logs" / "results"
    (logs / "embed-dora-pouring-test.log").write_text("timewalk embed: pouring is damaged.\n")
    text = show_runs(results, {"dora": ["knn", "davis", "tau"]}, width=80)
    assert text.count("pouring is damaged.") == 1
    assert "dora: pouring is damaged." in text


def test_a_path_that_does_not_end_in_a_name(results, monkeypatch):
    monkeypatch.chdir(results / "dora")
    assert find_run(".", results).name == "dora"
    assert find_run("../größe", results).name == "größe"


def test_fine_tunings_stand_below_their_run(results):
    tuned = results / "dora" / "finetuned"
    settings = {"task": "semantic_segmentation", "dataset": "rooms", "training": {}}
    write_curve(tuned / "ade20k" / "metrics.jsonl", 6, 4.0)
    about = {"steps": 6, "provenance": {"config": settings}}
    (tuned / "ade20k" / "network.json").write_text(json.dumps(about))
    write_curve(tuned / "coco" / "checkpoints" / "metrics.jsonl", 3, 9.0)
    log = results.parent / "logs" / "results" / "finetune-dora-coco.log"
    log.write_text("2026-01-01 00:00:00,000 INFO x: step 3 of 40: loss 7\n")
    (tuned / "not_begun").mkdir()
    text = show_runs(results, width=100)
    names = [line.split()[0] for line in text.splitlines() if line.startswith(("dora", "größe"))]
    assert names[:4] == ["dora", "dora/finetuned/ade20k", "dora/finetuned/coco", "größe"]
    assert row(text, "dora/finetuned/ade20k")[:4] == [
        "dora/finetuned/ade20k",
        "finished",
        "6/6",
        "-1",
    ]
    assert {"semantic_segmentation", "rooms"} <= set(row(text, "dora/finetuned/ade20k"))
    assert row(text, "dora/finetuned/coco")[1:4] == ["stopped", "3/40", "7"]
    log.write_text("timewalk finetune: no room.\n")
    text = show_runs(results, width=100)
    assert row(text, "dora/finetuned/coco")[1] == "failed"
    assert text.count("no room.") == 1
    assert "ade20k (finished, 6 of 6 steps), coco (failed: no room., 3 of ? steps)" in " ".join(
        show_run(results / "dora", width=200).split()
    )


def test_an_attempt_that_goes_on_after_a_failed_one_has_not_failed(results):
    begin(results, "mine")
    log = results.parent / "logs" / "results" / "train-mine.log"
    record = "2026-01-01 00:00:00,000 INFO timewalk.cli.logs: "
    begins = f"{record}an attempt begins: train, on node1, process 7\n"
    log.write_text(f"{begins}{record}step 3 of 77\ntimewalk train: no room.\n")
    run = read_run(results / "mine")
    assert (run.state, run.note, run.steps) == ("failed", "no room.", 77)
    log.write_text(f"{log.read_text()}\n{begins}")
    run = read_run(results / "mine")
    assert (run.state, run.note, run.steps) == ("stopped", None, 10), "running, without a step yet"
    log.write_text(f"{log.read_text()}{record}step 9 of 50\n")
    assert (read_run(results / "mine").state, read_run(results / "mine").steps) == ("stopped", 50)


def test_one_sentence_of_two_runs_is_said_of_both(results):
    logs = results.parent / "logs" / "results"
    begin(results, "mine")
    for name in ("train-mine", "evaluate-dora-linear"):
        (logs / f"{name}.log").write_text("timewalk evaluate: data/x.npz is missing.\n")
    text = show_runs(results, {"dora": ["knn", "linear"]}, width=100)
    assert "mine: data/x.npz is missing." in text
    assert "dora, linear: data/x.npz is missing." in text
