import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from timewalk import artefacts
from timewalk.errors import DiskFull, UserError, nearest


def test_atomic_path_renames_only_on_success(tmp_path):
    target = tmp_path / "a" / "value.txt"
    with artefacts.atomic_path(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"

    def killed():
        with artefacts.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        killed()
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["value.txt"]


def test_atomic_path_replaces_a_folder(tmp_path):
    target = tmp_path / "frames"
    target.mkdir()
    (target / "old").touch()
    with artefacts.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]


def test_manifest_round_trip_and_wrong_kind(tmp_path):
    path = tmp_path / "m.json"
    artefacts.write_manifest(path, "frames", inputs={"v": "0" * 64}, parameters={}, counts={"n": 1})
    assert artefacts.read_manifest(path, "frames")["counts"] == {"n": 1}
    with pytest.raises(UserError, match="'frames', but a manifest of 'shards'"):
        artefacts.read_manifest(path, "shards")


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_read_json_names_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.json"):
        artefacts.read_json(path)


def test_sha256_json_ignores_the_order_of_keys():
    one, two = json.loads('{"a": 1, "b": 2}'), json.loads('{"b": 2, "a": 1}')
    assert artefacts.sha256_json(one) == artefacts.sha256_json(two)
    assert artefacts.sha256_json(one) != artefacts.sha256_json({"a": 1, "b": 3})


def test_nearest():
    assert nearest("dorra", ["dora", "dino"]) == "; did you mean 'dora'?"
    assert nearest("xyz", ["dora", "dino"]) == "; known: dino, dora"


def test_atomic_path_says_that_the_disk_is_full(tmp_path, monkeypatch):
    """Whatever the library said, and only there."""

    def fails():
        with (
            artefacts.atomic_path(tmp_path / "folder") as folder,
            artefacts.atomic_path(folder / "step.pt") as temporary,
        ):
            temporary.write_bytes(b"half")
            raise RuntimeError("unexpected pos 576 vs 534")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        fails()
    monkeypatch.setattr(artefacts, "refusal", lambda file: errno.ENOSPC)
    with pytest.raises(DiskFull, match=r"step\.pt cannot be written: no room") as caught:
        fails()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert list(tmp_path.iterdir()) == []


def test_a_device_with_room_refuses_nothing(tmp_path):
    assert artefacts.refusal(tmp_path / "file") is None
    assert artefacts.refusal(tmp_path / "no folder" / "file") is None
    assert artefacts.refusal(Path("/dev/full")) == errno.ENOSPC


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    file = tmp_path / "encoder.safetensors"
    with artefacts.atomic_path(file) as temporary:
        save_file({"weight": torch.zeros(2)}, temporary)
    (tmp_path / "usual").touch()
    assert file.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_killed_processes_left_is_removed_by_the_next(tmp_path):
    host = artefacts.HOST
    halves = [tmp_path / f".walk [4k].{host}{half}.part" for half in ("0123abcd", "abcd0123")]
    others = [
        tmp_path / f".walk.{host}0123abcd.part",
        tmp_path / f".walk [4k].{host}0123abcd.part.json",
        tmp_path / ".walk [4k].ffffffff0123abcd.part",  # another machine's
    ]
    for folder in halves:
        (folder / "deeper").mkdir(parents=True)
    for file in others:
        file.touch()
    with artefacts.alone(tmp_path / "walk [4k]"):
        assert not any(half.exists() for half in halves)
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch, caplog, number):
    def refuse(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artefacts.fcntl, "flock", refuse)
    half = tmp_path / f".frames.{artefacts.HOST}0123abcd.part"
    half.mkdir()
    with artefacts.alone(tmp_path / "frames"):
        assert half.exists()  # it may be another's
    assert f"no lock on {tmp_path / 'frames'} ({os.strerror(number)})" in caplog.text


def test_an_interrupt_between_two_renames_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "frames"
    target.mkdir()
    (target / "old.jpg").touch()
    renamed = os.replace

    def interrupted(source, destination):
        if Path(destination) == target and not target.exists() and calls.pop():
            raise KeyboardInterrupt
        return renamed(source, destination)

    calls = [False, True]
    monkeypatch.setattr(artefacts.os, "replace", interrupted)

    def replace_it():
        with artefacts.atomic_path(target) as temporary:
            temporary.mkdir()

    with pytest.raises(KeyboardInterrupt):
        replace_it()
    assert [path.name for path in tmp_path.rglob("*")] == ["frames", "old.jpg"]
