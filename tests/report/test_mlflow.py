"""The MLflow mirror against a real store."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.report.mirrored import (
    KINDS,
    call,
    content,
    files,
    knn,
    loss,
    make_run,
    runs,
    write,
)
from timewalk.errors import UserError
from timewalk.report import mlflow as mirror_module
from timewalk.report.mlflow import mirror, store_uri, suite_name

ROOT = Path(__file__).parents[2]


def test_a_store_is_whole_or_absent(bare, monkeypatch):
    """MLflow makes its tables in dozens of steps and does not go on from a half."""
    store = bare / "mlflow.db"

    def killed(client):
        assert not store.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_experiments", killed)
        with pytest.raises(KeyboardInterrupt):
            call(bare)
    assert not list(bare.glob(".mlflow*"))
    assert not store.exists()
    assert MlflowClient(store_uri(bare)).get_run(call(bare)).info.status == "FINISHED"
    assert not list(bare.glob(".mlflow*"))
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_training_with_its_fine_tunings_and_evaluations(results):
    client = MlflowClient(store_uri(results))
    top = call(results)
    found = runs(results)
    names = {run.info.run_id: name for name, run in found.items()}
    assert names[top] == "dora"
    parents = {
        name: names.get(run.data.tags.get("mlflow.parentRunId")) for name, run in found.items()
    }
    assert parents == KINDS
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    data = found["dora"].data
    one, tuned = found["dora/knn"].data, found["dora/finetuned/segmented"].data
    assert data.params["training.epochs"] == "2"
    assert data.metrics["knn/top1_k_10"] == one.metrics["knn/top1_k_10"] == 61.5
    assert data.tags["timewalk.protocol.knn"] == one.tags["timewalk.protocol"] == "knn-x"
    wanted = {
        "run": "dora",
        "method": "dora",
        "git_commit": "abcdef",
        "config_sha256": "c0ffee",
        "seed": "3",
        "device": "cpu (test)",
    }
    assert {key: data.tags[f"timewalk.{key}"] for key in wanted} == wanted
    assert data.tags["mlflow.note.content"] == "What it is.\n\n## Results\n\nknn: 61.5"
    assert one.tags["timewalk.seed"] == "3"
    assert tuned.params["task"] == "semantic_segmentation"
    assert tuned.metrics["train/loss"] == loss(1)
    own = {"config.json", "card.md", "encoder.json", "metrics.jsonl", "figures/objects-0.png"}
    assert own <= set(files(client, top))
    assert not [path for path in files(client, top) if path.endswith(".safetensors")]
    kept = files(client, found["dora/knn"].info.run_id)
    assert kept == ["confusion.csv", "knn.json"]
    assert one.tags["timewalk.files_kept_outside"] == "1"


def test_curves_keep_their_steps_and_times(results):
    top, client = call(results), MlflowClient(store_uri(results))

    def history(name):
        return [(m.step, m.value, m.timestamp) for m in client.get_metric_history(top, name)]

    first = 1_700_000_000_000
    assert history("train/loss") == [(n, loss(n), first + 1000 * n) for n in range(3)]
    assert [point[:2] for point in history("epoch/loss")] == [(2, 4.0)]
    assert [point[:2] for point in history("validation/tau")] == [(2, 0.25)]
    assert history("system/cpu_utilization_percentage") == [(0, 50.0, first)]
    metrics = client.get_run(top).data.metrics
    assert not {"train/odd", "validation/r2", "train/epoch"} & metrics.keys()


def test_twice_changes_nothing(results):
    first = call(results)
    before, stamp = content(store_uri(results)), (results / "mlflow.json").read_text()
    kept = sorted((results / "mlartifacts").rglob("*"))
    assert call(results) == first
    assert content(store_uri(results)) == before
    assert sorted((results / "mlartifacts").rglob("*")) == kept
    assert (results / "mlflow.json").read_text() == stamp


def test_a_changed_result_supersedes_without_another_copy_of_the_weights(results):
    first = call(results)
    write(results / "dora" / "knn.json", knn(results / "dora", 70.0))
    second = call(results)
    assert second != first
    old = runs(results, "tags.`timewalk.superseded` = 'true'")
    new = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert old.keys() == new.keys() == KINDS.keys()
    assert (old["dora"].info.run_id, new["dora"].info.run_id) == (first, second)
    assert new["dora/knn"].data.metrics["knn/top1_k_10"] == 70.0
    assert len(list((results / "mlartifacts").rglob("model.pth"))) == 1
    write(results / "dora" / "knn.json", knn(results / "dora"))
    assert runs(results, "tags.`timewalk.superseded` = 'false'")["dora"].info.run_id == second
    call(results)
    again = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert again["dora/knn"].data.metrics["knn/top1_k_10"] == 61.5


def test_a_deleted_store_is_rebuilt_to_the_same_content(results, empty_store):
    call(results)
    before = content(store_uri(results))
    assert len(before) == len(KINDS) + 2
    shutil.rmtree(results / "mlartifacts")
    shutil.copy(empty_store, results / "mlflow.db")
    call(results)
    assert content(store_uri(results)) == before


def test_without_names_it_takes_whatever_is_there(results):
    make_run(results / "other", seed=2)
    (results / "other" / "knn.json").unlink()
    (results / "training" / "checkpoints").mkdir(parents=True)
    mirror([], results, "test")
    assert not (results / "mlflow.json").exists()
    assert runs(results).keys() == KINDS.keys() | {"other", "other/finetuned/segmented"}


def test_the_searches_of_the_documentation_find_something(results):
    call(results)
    page = (ROOT / "docs" / "dashboard.md").read_text()
    queries = re.findall(r"```text\n(.*?)```", page, re.DOTALL)[0].splitlines()
    found = {query: sorted(runs(results, query)) for query in queries}
    assert list(found.values()) == [sorted(KINDS), ["dora/knn"], ["dora", "dora/knn"], ["dora"]]


def test_a_card_stands_for_a_run_without_evaluations(results):
    mirror([results / "dora" / "card.md"], results, "test")
    assert runs(results).keys() == KINDS.keys() - {"dora/knn"}


def test_a_dead_server_is_one_sentence_and_loses_nothing(results, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(UserError, match=r"//127\.0\.0\.1:9 does not answer") as caught:
            call(results)
        assert "secret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert not (results / "mlflow.json").exists()
    assert MlflowClient(store_uri(results)).get_run(call(results)).info.status == "FINISHED"


def test_a_server_that_hangs_is_given_up(results, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        host, port = deaf.getsockname()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(mirror_module, "AT_FIRST", ("0", "1"))
        with pytest.raises(UserError, match="does not answer"):
            call(results)
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_experiments_are_named_after_their_suites(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert suite_name(tmp_path / "results") == "timewalk"
    assert suite_name(tmp_path / "results" / "demo") == "timewalk-demo"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert suite_name(tmp_path / "results") == "mine"


def states(results):
    """Return which runs and versions are marked as superseded."""
    found = {name: run.data.tags["timewalk.superseded"] for name, run in runs(results).items()}
    versions = MlflowClient(store_uri(results)).search_model_versions()
    return found | {version.name: version.tags["timewalk.superseded"] for version in versions}


def test_what_is_of_a_removed_run_is_superseded(results):
    make_run(results / "other", seed=2)
    mirror([], results, "test")
    others = {"other", "other/finetuned/segmented", "other/knn"}
    assert states(results) == dict.fromkeys(KINDS.keys() | others, "false")
    (results / "other").rename(results / "renamed")
    mirror([], results, "test")
    marked = {name for name, state in states(results).items() if state == "true"}
    assert marked == others
    renamed = {name.replace("other", "renamed") for name in others}
    assert states(results).keys() == KINDS.keys() | others | renamed
    (results / "renamed").rename(results / "other")
    mirror([], results, "test")
    assert {name for name, state in states(results).items() if state == "true"} == renamed
