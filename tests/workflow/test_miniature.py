"""The whole graph on one short real video: from raw video to numbers, tables and the dashboard."""

import json


def knn(workflow, run="dora"):
    return json.loads((workflow.folder / "results" / run / "knn.json").read_text())


def test_from_raw_video_to_a_number(finished):
    result = knn(finished)
    assert result["run"] == result["method"] == "dora"
    assert 0 <= result["metrics"]["top1_k5"] <= 100
    assert result["provenance"]["training"]["steps"] == 4
    assert len(result["provenance"]["encoder_sha256"]) == 64
    for name in ("encoder.safetensors", "metrics.jsonl", "config.json"):
        assert (finished.folder / "results" / "dora" / name).stat().st_size > 0
    assert list((finished.folder / "results" / "dora" / "figures").glob("*.png"))


def test_tables_and_dashboard(finished):
    table = (finished.folder / "results" / "summary.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    # The headline figures, and all of knn's.
    assert rows[2:4] == rows[6:] == ["random", "dora"]
    stamp = json.loads((finished.folder / "results" / "mlflow.json").read_text())
    assert stamp["runs"].keys() == {"random", "dora"}


def test_faces_are_blurred_before_frames_exist(finished):
    frames = finished.folder / "data" / "frames" / "talk" / "carphone"
    report = json.loads((frames / "blur.json").read_text())
    assert report["frames_with_faces"] == report["frames"] == len(list(frames.glob("*.jpg")))
