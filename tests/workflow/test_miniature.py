"""The whole graph on one short real video: from raw video to numbers, twice, and after a kill."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.workflow.conftest import Workflow, miniature


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workflow = Workflow(tmp_path_factory.mktemp("miniature"))
    workflow.configure(miniature())
    outcome = workflow.run("all")
    assert outcome.code == 0, outcome.text
    return workflow


def knn(workflow, run="dora"):
    return json.loads((workflow.folder / "results" / run / "knn.json").read_text())


def test_from_raw_video_to_a_number(done):
    result = knn(done)
    assert result["run"] == result["method"] == "dora"
    assert 0 <= result["metrics"]["top1_k5"] <= 100
    assert result["provenance"]["training"]["steps"] == 4
    assert len(result["provenance"]["encoder_sha256"]) == 64
    for name in ("encoder.safetensors", "metrics.jsonl", "config.json"):
        assert (done.folder / "results" / "dora" / name).stat().st_size > 0
    assert list((done.folder / "results" / "dora" / "figures").glob("*.png"))


def test_tables_and_dashboard(done):
    table = (done.folder / "results" / "summary.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:] == ["random", "dora"]
    stamp = json.loads((done.folder / "results" / "mlflow.json").read_text())
    assert stamp["runs"].keys() == {"random", "dora"}


def test_faces_are_blurred_before_frames_exist(done):
    frames = done.folder / "data" / "frames" / "talk" / "carphone"
    report = json.loads((frames / "blur.json").read_text())
    assert report["frames_with_faces"] == report["frames"] == len(list(frames.glob("*.jpg")))


def test_a_second_run_does_nothing(done):
    outcome = done.run("all")
    assert outcome.code == 0
    assert "Nothing to be done" in outcome.text


def test_another_number_of_cores_or_a_comment_re_runs_nothing(done):
    outcome = done.run("all", cores=1)
    assert "Nothing to be done" in outcome.text


def test_a_changed_learning_rate_re_runs_that_run_alone(done):
    config = miniature()
    config["runs"]["dora"]["training"]["learning_rate"] = 1e-3
    done.configure(config)
    outcome = done.run("all", "--dry-run")
    done.configure(miniature())
    assert outcome.code == 0, outcome.text
    assert "Params have changed" in outcome.text
    assert "rule train" in outcome.text
    assert "rule frames" not in outcome.text
    assert "wildcards: run=random\n" not in outcome.text


def test_killed_in_training_it_ends_at_the_same_numbers(done, tmp_path):
    """SIGKILL to everything while DoRA trains; then the same command again."""
    workflow = Workflow(tmp_path)
    config = miniature()
    workflow.configure(config)
    process = subprocess.Popen(
        workflow.command("results/dora/knn.json"),
        cwd=tmp_path,
        env=workflow.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = tmp_path / "results" / "dora" / "checkpoints" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 1) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    workflow.run("results/dora/knn.json", "--unlock")
    outcome = workflow.run("results/dora/knn.json", "--rerun-incomplete")
    assert outcome.code == 0, outcome.text
    assert knn(workflow)["metrics"] == knn(done)["metrics"]
