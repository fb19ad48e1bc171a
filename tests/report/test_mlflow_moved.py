"""A store whose folder was moved, copied or renamed: real folders, real MLflow."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from mlflow import MlflowClient

from tests.ports import free_port
from tests.report.mirrored import KINDS, content, files, knn, make_run, write
from timewalk import load_encoder
from timewalk.artefacts import alone
from timewalk.errors import UserError
from timewalk.report.mlflow import mirror, store_uri
from timewalk.report.mlflow_dashboard import find_dashboard
from timewalk.report.mlflow_moved import ARTEFACTS, LOCK, artefacts_of, follow


@pytest.fixture(scope="module")
def mirrored(made, empty_store, tmp_path_factory):
    """Results in a store: not to be changed, but to be copied."""
    results = shutil.copytree(made, tmp_path_factory.mktemp("first") / "project" / "results")
    shutil.copy(empty_store, results / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        mirror([], results)
    return results


@pytest.fixture
def moved(mirrored, tmp_path, monkeypatch):
    """The results at a place that needs quoting, and nothing where they were."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    first = shutil.copytree(mirrored.parent, tmp_path / "first_place")
    mirror([], first / "results")
    return shutil.move(first, tmp_path / "größer, 2_") / "results"


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def addresses(results):
    """Return all that a store names as a place of files."""
    client, found = MlflowClient(store_uri(results)), []
    for experiment in client.search_experiments(filter_string="name != 'Default'"):
        number = [experiment.experiment_id]
        found.append(experiment.artifact_location)
        found += [run.info.artifact_uri for run in client.search_runs(number)]
        found += [model.artifact_location for model in client.search_logged_models(number)]
    versions = client.search_model_versions()
    return found + [client.get_model_version_download_uri(x.name, x.version) for x in versions]


def experiments(results):
    found = MlflowClient(store_uri(results)).search_experiments()
    return {experiment.name for experiment in found} - {"Default"}


def test_a_moved_folder_is_whole_and_leaves_nothing_behind(moved, monkeypatch):
    before = content(store_uri(moved))
    write(moved / "dora" / "knn.json", knn(moved / "dora", 70.0))
    make_run(moved / "other", seed=2)
    mirror([], moved)
    assert not (moved.parent.parent / "first_place").exists()
    found = addresses(moved)
    assert len(found) >= 3 * len(KINDS) + 4
    assert all(f"{x}/".startswith(f"{artefacts_of(moved)}/") for x in found)
    assert experiments(moved) == {"timewalk"}
    client = MlflowClient(store_uri(moved))
    number = client.get_experiment_by_name("timewalk").experiment_id
    runs = client.search_runs([number])
    states = [(run.info.run_name, run.data.tags["timewalk.superseded"]) for run in runs]
    assert sorted(state for name, state in states if name == "dora") == ["false", "true"]
    for run in runs:
        for name in files(client, run.info.run_id):
            assert Path(client.download_artifacts(run.info.run_id, name)).read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(moved))
    loaded, images = mlflow.pytorch.load_model("models:/dora@current"), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = load_encoder(moved / "dora")(images)
        assert torch.equal(loaded(images).summary, wanted.summary)
    assert len(before) < len(content(store_uri(moved)))


def test_unchanged_results_stay_the_same_runs(moved):
    before = content(store_uri(moved))
    follow(moved / "mlflow.db")
    follow(moved / "mlflow.db")
    kept = sorted((moved / "mlartifacts").rglob("*"))
    assert [row[6] for row in content(store_uri(moved)) if len(row) == 8] > []
    mirror([], moved)
    now = content(store_uri(moved))
    assert [row[:3] for row in now] == [row[:3] for row in before]
    assert sorted((moved / "mlartifacts").rglob("*")) == kept


def test_a_copy_leaves_its_original_as_it_was(mirrored, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    kept = everything(mirrored.parent)
    copy = shutil.copytree(mirrored, tmp_path / "results_of_may")
    write(copy / "dora" / "knn.json", knn(copy / "dora", 70.0))
    mirror([], copy)
    assert everything(mirrored.parent) == kept
    assert all(f"{x}/".startswith(f"{artefacts_of(copy)}/") for x in addresses(copy))
    assert experiments(copy) == {"timewalk"}, "the only one keeps its name"
    mirror([], copy, "own")
    assert experiments(copy) == {"timewalk", "own"}


def test_a_folder_of_another_name_at_the_start_is_not_taken_for_ours(moved):
    """`…/mlartifacts2` begins as `…/mlartifacts` does, and `_` is any character to SQL's LIKE."""
    with closing(sqlite3.connect(moved / "mlflow.db")) as base, base:
        [(there,)] = base.execute(
            "SELECT artifact_location FROM experiments WHERE name = 'timewalk'"
        )
        others = [f"{there}2/x", there.replace("_", "-") + "/x", f"models:/{there}/x"]
        number = base.execute("SELECT run_uuid FROM runs").fetchone()[0]
        rows = [(str(key), other, number) for key, other in enumerate([*others, f"{there}/x"])]
        base.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", rows)
    follow(moved / "mlflow.db")
    with closing(sqlite3.connect(moved / "mlflow.db")) as base:
        query = "SELECT value FROM tags WHERE key IN ('0', '1', '2', '3') ORDER BY key"
        found = [value for (value,) in base.execute(query)]
    assert found == [*others, f"{artefacts_of(moved)}/x"]


def test_killed_half_way_nothing_is_rewritten(moved, monkeypatch):
    from timewalk.report import mlflow_moved

    whole = mlflow_moved._columns

    def killed(base, table):
        yield from whole(base, table)
        if table == "experiments":
            raise KeyboardInterrupt

    before = addresses(moved)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_moved, "_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            follow(moved / "mlflow.db")
    assert addresses(moved) == before
    follow(moved / "mlflow.db")
    assert all(f"{x}/".startswith(f"{artefacts_of(moved)}/") for x in addresses(moved))


def forbid_writing(patch):
    """As a folder of another user does, but to the super-user too, who may write everywhere."""
    whole = os.access
    patch.setattr(os, "access", lambda path, mode: mode != os.W_OK and whole(path, mode))


def test_who_may_not_write_sees_a_moved_dashboard(moved, monkeypatch, caplog):
    renamed = moved.rename(moved.with_name("renamed"))
    kept = everything(renamed)
    with monkeypatch.context() as patch:
        forbid_writing(patch)
        found = find_dashboard(renamed, "127.0.0.1", free_port())
    assert "/#/experiments/1/runs?" in found.address
    [line] = [line for line in caplog.messages if "pictures" in line]
    assert "first_place" in line
    assert f"its owner calls `timewalk mlflow {renamed}`" in line
    assert everything(renamed) == kept
    caplog.clear()
    find_dashboard(renamed, "127.0.0.1", free_port())
    assert addresses(renamed)[0] == artefacts_of(renamed)
    caplog.clear()
    forbid_writing(monkeypatch)
    find_dashboard(renamed, "127.0.0.1", free_port())
    assert not caplog.messages


def test_a_dashboard_waits_for_no_mirror(moved, caplog):
    before = addresses(moved)
    with alone(moved / ARTEFACTS / "store", moved / ARTEFACTS / LOCK):
        find_dashboard(moved, "127.0.0.1", free_port())
    assert addresses(moved) == before
    assert [line for line in caplog.messages if "a mirror writes" in line]
    find_dashboard(moved, "127.0.0.1", free_port())
    assert addresses(moved)[0] == artefacts_of(moved) != before[0]


def test_what_is_no_store_is_refused(tmp_path):
    follow(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").touch()
    follow(tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db").write_bytes(b"nothing" * 300)
    with pytest.raises(UserError, match=r"mlflow\.db is no store of MLflow's .* `timewalk mlflow"):
        follow(tmp_path / "mlflow.db")
