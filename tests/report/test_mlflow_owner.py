"""Folders of results that share a server: each marks what it wrote, and nothing else."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.report.mirrored import KINDS, call, content, knn, make_run, write
from timewalk.report.mlflow import mirror, store_uri
from timewalk.report.mlflow_owner import FILE, OWNER, RESULTS, owner_of


@pytest.fixture
def shared(results, empty_store, tmp_path, monkeypatch):
    """Results of two people, `mine` and `yours`, and one store address."""
    shutil.copy(empty_store, tmp_path / "shared.db")
    monkeypatch.chdir(tmp_path)  # where such a store keeps artefacts
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    yours = shutil.copytree(results, tmp_path / "yours")
    shutil.rmtree(yours / "dora")
    make_run(yours / "dora", seed=1)
    return results, yours


def current(results):
    """Return who has how many runs of each name that are not superseded, and which versions."""
    client = MlflowClient(store_uri(results))
    number = client.get_experiment_by_name("test").experiment_id
    found = client.search_runs([number], "tags.timewalk.superseded = 'false'")
    whose = [(Path(run.data.tags["timewalk.results"]).name, run.info.run_name) for run in found]
    versions = client.search_model_versions("tags.`timewalk.superseded` = 'false'")
    tags = [(Path(x.tags["timewalk.results"]).name, f"model {x.name}") for x in versions]
    return sorted([*whose, *tags])


def all_of(*folders, runs=("dora",)):
    names = [kind.replace("dora", run) for run in runs for kind in (*KINDS, "model dora")]
    return sorted((folder, name) for folder in folders for name in names)


def test_two_people_on_one_server_mark_their_own_runs_alone(shared):
    mine, yours = shared
    for results in (mine, yours, mine):
        mirror([], results, "test")
    assert current(mine) == all_of("results", "yours")
    write(mine / "dora" / "knn.json", knn(mine / "dora", 70.0))
    make_run(mine / "other", seed=2)
    mirror([], mine, "test")
    mirror([], yours, "test")
    assert current(mine) == sorted([*all_of("results", runs=("dora", "other")), *all_of("yours")])
    shutil.rmtree(mine / "other")
    call(mine)
    assert current(mine) == all_of("results", "yours")
    shutil.rmtree(yours / "dora")
    mirror([], yours, "test")
    assert current(mine) == all_of("results")


def test_on_a_server_a_moved_folder_finds_its_runs_again(shared):
    mine, _ = shared
    mirror([], mine, "test")
    before = content(store_uri(mine))
    moved = mine.rename(mine.with_name("moved"))
    mirror([], moved, "test")
    assert content(store_uri(moved)) == before
    assert current(moved) == all_of("moved")
    write(moved / "dora" / "knn.json", knn(moved / "dora", 70.0))
    mirror([], moved, "test")
    assert current(moved) == all_of("moved")


def test_the_half_of_another_folder_is_left_to_it(shared, monkeypatch):
    mine, _ = shared
    copy = shutil.copytree(mine, mine.with_name("copy"))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", lambda *words, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mirror([], mine, "test")
    mirror([], copy, "test")
    assert current(mine) == sorted([*all_of("copy"), *((("results", kind)) for kind in KINDS)])
    mirror([], mine, "test")
    assert current(mine) == all_of("copy", "results")


def rewrite_tags(results, change):
    """Write the tags of all runs and versions as another version, or another folder, would."""
    client = MlflowClient(store_uri(results))
    number = client.get_experiment_by_name("test").experiment_id
    for run in client.search_runs([number]):
        for key, value in change(run.data.tags).items():
            client.set_tag(run.info.run_id, key, value)
        client.delete_tag(run.info.run_id, OWNER)
    for version in client.search_model_versions():
        client.delete_model_version_tag(version.name, version.version, OWNER)


def test_a_copy_leaves_the_runs_of_its_original_current(shared):
    mine, _ = shared
    make_run(mine / "other", seed=2)
    mirror([], mine, "test")
    before = current(mine)
    copy = shutil.copytree(mine, mine.with_name("copy"))
    mirror([], copy, "test")
    shutil.rmtree(copy / "other")
    mirror([], copy, "test")
    found = current(mine)
    assert [pair for pair in found if pair[0] == "results"] == before
    names = {name for folder, name in found if folder == "copy"}
    assert names == {*KINDS, "model dora"}
    mirror([], mine, "test")
    assert current(mine) == found


def test_from_another_machine_a_folder_is_the_same(shared, monkeypatch):
    mine, _ = shared
    mirror([], mine, "test")
    monkeypatch.setattr(socket, "gethostname", lambda: "login2")
    monkeypatch.setenv("LOGNAME", "eva")
    write(mine / "dora" / "knn.json", knn(mine / "dora", 70.0))
    mirror([], mine, "test")
    assert current(mine) == all_of("results")


def test_on_another_disk_a_moved_folder_takes_its_runs_over(shared):
    mine, _ = shared
    mirror([], mine, "test")
    before = content(store_uri(mine))
    moved = shutil.copytree(mine, mine.with_name("moved"))
    shutil.rmtree(mine)
    mirror([], moved, "test")
    assert content(store_uri(moved)) == before
    assert current(moved) == all_of("moved")


def test_what_has_no_number_yet_is_taken_over_by_the_folder_that_wrote_it(shared):
    mine, yours = shared
    mirror([], mine, "test")
    rewrite_tags(mine, lambda tags: {})
    mirror([], yours, "test")
    write(mine / "dora" / "knn.json", knn(mine / "dora", 70.0))
    (mine / FILE).unlink()
    mirror([], mine, "test")
    assert current(mine) == all_of("results", "yours")


def test_a_folder_keeps_its_number_and_a_copy_gets_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "eva")
    first = tmp_path / "first"
    first.mkdir()
    own = owner_of(first, remote=False)
    assert own.name == f"eva@{socket.gethostname()}:{first.resolve()}"
    assert own.has({})
    assert own.tags.keys() == {RESULTS}
    assert not (first / FILE).exists()
    owner = owner_of(first, remote=True)
    assert owner.has({OWNER: owner.number})
    assert not owner.has({RESULTS: owner.name})
    assert owner.inherits({RESULTS: owner.name})
    assert owner.inherits({})
    assert not owner.inherits({RESULTS: "eva@login2:/elsewhere"})
    moved = first.rename(tmp_path / "moved")
    assert owner_of(moved, remote=True).number == owner.number
    copy = owner_of(shutil.copytree(moved, tmp_path / "copy"), remote=True)
    assert copy.number not in (None, owner.number)
    assert owner_of(tmp_path / "copy", remote=True) == copy
    there = f"eva@{socket.gethostname()}:{moved}"
    assert not copy.succeeds({OWNER: owner.number, RESULTS: there})
    assert not copy.succeeds({OWNER: owner.number, RESULTS: f"eva@login2:{first}"})
    (moved / FILE).unlink()
    assert copy.succeeds({OWNER: owner.number, RESULTS: there})


def test_a_folder_that_cannot_be_written_marks_nothing_of_others(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    owner = owner_of(tmp_path, remote=True)
    assert owner.number is None
    assert not list(tmp_path.iterdir())
    assert not owner.has({})
    assert not owner.has({OWNER: "1", RESULTS: owner.name})
    assert not owner.inherits({RESULTS: owner.name})
    assert owner.has(owner.tags)
    assert [line for line in caplog.messages if "cannot be written" in line]
