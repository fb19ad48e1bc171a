"""Encoders in a real store: one copy of each, whatever happens."""

import json
import shutil

import mlflow.pytorch
import pytest
import torch
from mlflow import MlflowClient

from tests.report.mirrored import (
    KINDS,
    call,
    knn,
    make_run,
    runs,
    write,
)
from timewalk import load_encoder
from timewalk.errors import UserError
from timewalk.report import mlflow as mirror_module
from timewalk.report import mlflow_models
from timewalk.report.mlflow import store_uri
from timewalk.report.mlflow_store import remove_files


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


def kill_at(patch, place, after):
    """Let a function kill its process when it is called, or when it has done its work."""
    whole = getattr(*place)

    def killed(*words, **settings):
        if after:
            whole(*words, **settings)
        raise Killed

    patch.setattr(*place, killed)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "place",
    [
        (MlflowClient, "log_artifact"),
        (MlflowClient, "log_model_artifacts"),
        (MlflowClient, "log_outputs"),
        (MlflowClient, "set_terminated"),
        (MlflowClient, "set_registered_model_alias"),
        (mirror_module, "write_json"),
    ],
    ids=lambda place: place[1],
)
def test_killed_anywhere_it_ends_as_undisturbed(results, monkeypatch, place, after):
    with monkeypatch.context() as patch:
        kill_at(patch, place, after)
        with pytest.raises(Killed):
            call(results)
    done = call(results)
    assert runs(results).keys() == KINDS.keys()
    assert runs(results)["dora"].info.run_id == done
    client = MlflowClient(store_uri(results))
    assert len(client.search_model_versions("name = 'dora'")) == 1
    assert client.get_model_version_by_alias("dora", "current").run_id == done
    experiment = client.get_experiment_by_name("test").experiment_id
    [model] = client.search_logged_models([experiment])
    linked = client.get_run(done).outputs.model_outputs
    assert [output.model_id for output in linked] == [model.model_id]
    assert kept(results) == {run.info.run_id for run in runs(results).values()} | {model.model_id}
    assert not list((results / "mlartifacts").glob(f"{mlflow_models.HALF}*"))


def kept(results):
    """Return the numbers of the runs and models that have files."""
    artefacts = results / "mlartifacts"
    models = artefacts.glob("models/*")
    found = [path for path in (*artefacts.iterdir(), *models) if (path / "artifacts").is_dir()]
    return {path.name for path in found}


def test_one_that_fails_again_and_again_makes_no_copies(results, monkeypatch):
    copying = ["log_model_artifacts"] * 2
    for name in ("log_artifact", *copying, "finalize_logged_model", "log_outputs", "log_outputs"):
        with monkeypatch.context() as patch:
            kill_at(patch, (MlflowClient, name), after=True)
            with pytest.raises(Killed):
                call(results)
        weights = list((results / "mlartifacts").rglob("model.pth"))
        assert len(weights) == (name != "log_artifact"), name


def test_nothing_outside_of_our_own_store_is_removed(tmp_path):
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours / "m-1" / "artifacts", other / "m-1" / "artifacts"):
        folder.mkdir(parents=True)
    remove_files((other / "m-1" / "artifacts").as_uri(), "m-1", ours)
    remove_files((ours / "m-1" / "artifacts").as_uri(), "m-2", ours)
    remove_files("mlflow-artifacts:/1/models/m-1/artifacts", "m-1", ours)
    assert (ours / "m-1").exists()
    assert (other / "m-1").exists()
    remove_files((ours / "m-1" / "artifacts").as_uri(), "m-1", ours)
    assert not (ours / "m-1").exists()


def test_deleting_superseded_runs_makes_no_copy_of_an_encoder(results):
    client = MlflowClient(store_uri(results))
    for top1 in (61.5, 70.0, 80.0):
        write(results / "dora" / "knn.json", knn(results / "dora", top1))
        call(results)
        for old in runs(results, "tags.`timewalk.superseded` = 'true'").values():
            client.delete_run(old.info.run_id)
    assert len(list((results / "mlartifacts").rglob("model.pth"))) == 1
    assert len(client.search_model_versions("name = 'dora'")) == 1
    for run in runs(results).values():
        client.delete_run(run.info.run_id)
    assert client.get_run(call(results)).info.status == "FINISHED"
    assert len(list((results / "mlartifacts").rglob("model.pth"))) == 1


def test_a_model_without_its_files_is_logged_again(results):
    call(results)
    shutil.rmtree(results / "mlartifacts" / "models")
    call(results)
    assert len(list((results / "mlartifacts").rglob("model.pth"))) == 1
    current = MlflowClient(store_uri(results)).get_model_version_by_alias("dora", "current")
    assert str(current.version) == "2"


def test_a_damaged_encoder_is_refused(results):
    with open(results / "dora" / "encoder.safetensors", "ab") as tensors:
        tensors.write(b"x")
    with pytest.raises(UserError, match=r"encoder\.json says"):
        call(results)
