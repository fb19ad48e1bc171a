"""The MLflow mirror against a real store."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from mlflow import MlflowClient

from tests.report.mirrored import content, files, knn, loss, make_run, write
from timewalk import load_encoder
from timewalk.errors import UserError
from timewalk.report import mlflow as mirror_module
from timewalk.report import mlflow_models
from timewalk.report.mlflow import mirror, store_uri, suite_name

ROOT = Path(__file__).parents[2]
KINDS = {"dora": None, "dora/finetuned/segmented": "dora", "dora/knn": "dora"}
"""runs of MLflow's for one of ours, and what they hang on"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "results" / "dora").parent


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store with its tables, which take a second to make."""
    folder = tmp_path_factory.mktemp("store")
    mirror_module._create_store(folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def bare(made, tmp_path, monkeypatch):
    """Results without a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def results(bare, empty_store):
    shutil.copy(empty_store, bare / "mlflow.db")
    return bare


def call(results):
    mirror([results / "dora" / "knn.json"], results, "test", results / "mlflow.json")
    stamp = json.loads((results / "mlflow.json").read_text())["runs"]
    return stamp["dora"]["mlflow_run"]


def runs(results, query=""):
    client = MlflowClient(store_uri(results))
    experiment = client.get_experiment_by_name("test").experiment_id
    return {run.info.run_name: run for run in client.search_runs([experiment], query)}


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


def test_data_sets_with_their_digests(results):
    call(results)
    found = {
        name: [
            (x.dataset.name, x.dataset.digest, x.tags[0].value, json.loads(x.dataset.source))
            for x in run.inputs.dataset_inputs
        ]
        for name, run in runs(results).items()
    }
    [(name, _, context, source)] = found["dora"]
    assert (name, context) == ("talk", "training")
    assert source["manifests"]["data/shards/talk/b.json"] == "b" * 64
    evaluated = ("digits", "d" * 32, "evaluation (test)", {"manifest_sha256": "d" * 64})
    assert found["dora/knn"] == [evaluated]
    assert found["dora/finetuned/segmented"][0][:3] == ("scenes", "e" * 32, "training")


def test_the_encoder_is_a_model_that_mlflow_loads(results, monkeypatch):
    top = call(results)
    client = MlflowClient(store_uri(results))
    version = client.get_model_version_by_alias("dora", "current")
    assert str(version.version) == "1"
    assert version.run_id == top
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(results))
    loaded = mlflow.pytorch.load_model("models:/dora/1")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found, wanted = loaded(images), load_encoder(results / "dora")(images)
    assert torch.equal(found.summary, wanted.summary)
    assert torch.equal(found.patches, wanted.patches)
    assert loaded.spec == load_encoder(results / "dora").spec
    evaluated = client.get_run(runs(results)["dora/knn"].info.run_id).inputs.model_inputs
    trained = client.get_run(top).outputs.model_outputs
    assert [model.model_id for model in evaluated] == [model.model_id for model in trained]
    model = client.get_logged_model(evaluated[0].model_id)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "dora", "version": "1"}]
    assert (model.params["width"], model.params["depth"]) == ("24", "1")
    assert {metric.key: metric.value for metric in model.metrics}["knn/top1_k_10"] == 61.5


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
    write(results / "dora" / "knn.json", knn("dora", 70.0))
    second = call(results)
    assert second != first
    old = runs(results, "tags.`timewalk.superseded` = 'true'")
    new = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert old.keys() == new.keys() == KINDS.keys()
    assert (old["dora"].info.run_id, new["dora"].info.run_id) == (first, second)
    assert new["dora/knn"].data.metrics["knn/top1_k_10"] == 70.0
    assert len(list((results / "mlartifacts").rglob("model.pth"))) == 1
    write(results / "dora" / "knn.json", knn("dora"))
    assert runs(results, "tags.`timewalk.superseded` = 'false'")["dora"].info.run_id == second
    call(results)
    again = runs(results, "tags.`timewalk.superseded` = 'false'")
    assert again["dora/knn"].data.metrics["knn/top1_k_10"] == 61.5


def test_a_run_trained_anew_is_another_version(results):
    call(results)
    shutil.rmtree(results / "dora")
    make_run(results / "dora", seed=1)
    second = call(results)
    client = MlflowClient(store_uri(results))
    versions = {str(x.version): x for x in client.search_model_versions("name = 'dora'")}
    states = {number: x.tags["timewalk.superseded"] for number, x in versions.items()}
    assert states == {"1": "true", "2": "false"}
    current = client.get_model_version_by_alias("dora", "current")
    assert (str(current.version), current.run_id) == ("2", second)


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.mark.parametrize(
    "place",
    [
        (MlflowClient, "log_outputs"),
        (MlflowClient, "log_artifact"),
        (MlflowClient, "finalize_logged_model"),
        (MlflowClient, "set_terminated"),
        (MlflowClient, "set_registered_model_alias"),
        (mirror_module, "write_json"),
    ],
    ids=lambda place: place[1],
)
def test_killed_anywhere_it_ends_as_undisturbed(results, monkeypatch, place):
    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        with pytest.raises(Killed):
            call(results)
    done = call(results)
    assert runs(results).keys() == KINDS.keys()
    assert runs(results)["dora"].info.run_id == done
    client = MlflowClient(store_uri(results))
    assert len(client.search_model_versions("name = 'dora'")) == 1
    assert client.get_model_version_by_alias("dora", "current").run_id == done
    experiment = client.get_experiment_by_name("test").experiment_id
    models = client.search_logged_models([experiment])
    assert [model.source_run_id for model in models] == [done]
    assert not list((results / "mlartifacts").glob(f"{mlflow_models.HALF}*"))


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


def test_a_damaged_encoder_is_refused(results):
    with open(results / "dora" / "encoder.safetensors", "ab") as tensors:
        tensors.write(b"x")
    with pytest.raises(UserError, match=r"encoder\.json says"):
        call(results)
