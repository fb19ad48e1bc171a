"""The MLflow mirror against a real store."""

import json

import pytest
from mlflow import MlflowClient

from timewalk.errors import UserError
from timewalk.report import mlflow as mirror_module
from timewalk.report.mlflow import flatten, metric_name, mirror, store_uri


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "results" / "dora"
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "objects-0.png").write_bytes(b"png")
    (run / "knn").mkdir()
    (run / "knn" / "confusion.csv").write_text("a,b\n")
    (run / "encoder.safetensors").write_bytes(b"weights")
    config = {"method": "dora", "training": {"epochs": 2}}
    origin = {"config": config, "git_commit": None, "config_sha256": "0", "device": "cpu"}
    (run / "encoder.json").write_text(json.dumps({"provenance": origin}))
    lines = [
        {"step": n, "epoch": 0, "time": 100.0 + n, "loss": 5.0 - n, "odd": float("inf")}
        for n in range(3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    knn = {
        "protocol": "knn-x",
        "metrics": {"top1@k=10": 61.5, "top5@k=10": None},
        "artefacts": ["knn/confusion.csv"],
    }
    (run / "knn.json").write_text(json.dumps(knn))
    return tmp_path / "results"


def call(results):
    mirror([results / "dora" / "knn.json"], results, "test", results / "mlflow.json")
    stamp = json.loads((results / "mlflow.json").read_text())["runs"]
    return stamp["dora"]["mlflow_run"]


def test_a_store_is_whole_or_absent(results, monkeypatch):
    """MLflow makes its tables in dozens of steps and does not go on from a half."""
    store = results / "mlflow.db"

    def killed(client):
        assert not store.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_experiments", killed)
        with pytest.raises(KeyboardInterrupt):
            call(results)
    assert not list(results.glob(".mlflow*"))
    assert not store.exists()
    assert MlflowClient(store_uri(results)).get_run(call(results)).info.status == "FINISHED"
    assert not list(results.glob(".mlflow*"))


def test_a_run_with_parameters_curves_metrics_and_artefacts(results):
    client = MlflowClient(store_uri(results))
    run = client.get_run(call(results))
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.metrics["knn/top1_k_10"] == 61.5
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert "train/odd" not in run.data.metrics
    assert run.data.tags["timewalk.protocol.knn"] == "knn-x"
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"encoder.safetensors", "figures", "results"} <= names
    assert [a.path for a in client.list_artifacts(run.info.run_id, "results/knn")] == [
        "results/knn/confusion.csv"
    ]


def test_twice_changes_nothing_and_a_change_supersedes(results):
    first = call(results)
    client = MlflowClient(store_uri(results))
    experiment = client.get_experiment_by_name("test").experiment_id
    assert call(results) == first
    assert len(client.search_runs([experiment])) == 1
    knn = results / "dora" / "knn.json"
    changed = json.loads(knn.read_text())
    changed["metrics"]["top1@k=10"] = 70.0
    knn.write_text(json.dumps(changed))
    second = call(results)
    assert second != first
    assert client.get_run(first).data.tags["timewalk.superseded"] == "true"
    assert "timewalk.superseded" not in client.get_run(second).data.tags


def test_killed_half_way_it_starts_that_run_anew(results, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(mirror_module, "_log_artefacts", killed)
        with pytest.raises(Killed):
            call(results)
    done = call(results)
    client = MlflowClient(store_uri(results))
    experiment = client.get_experiment_by_name("test").experiment_id
    active = client.search_runs([experiment])
    assert [run.info.run_id for run in active] == [done]


def test_a_deleted_store_is_rebuilt(results):
    call(results)
    (results / "mlflow.db").unlink()
    run = MlflowClient(store_uri(results)).get_run(call(results))
    assert run.data.metrics["knn/top1_k_10"] == 61.5


def test_a_dead_server_is_one_sentence(results, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="does not answer"):
        call(results)


def test_names_and_parameters():
    assert metric_name("davis", "J&F_mean") == "davis/J_F_mean"
    assert dict(flatten({"a": {"b": 1}, "c": [2]})) == {"a.b": "1", "c": "[2]"}
