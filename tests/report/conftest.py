"""Results to mirror, with and without a store. What takes long to import waits until then."""

import shutil

import pytest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of one run."""
    from tests.report.mirrored import make_run

    return make_run(tmp_path_factory.mktemp("made") / "results" / "dora").parent


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store with its tables, which take a second to make."""
    from timewalk.report.mlflow import _create_store

    folder = tmp_path_factory.mktemp("store")
    _create_store(folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def bare(made, tmp_path, monkeypatch):
    """Results without a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def results(bare, empty_store):
    """Results beside an empty store."""
    shutil.copy(empty_store, bare / "mlflow.db")
    return bare
