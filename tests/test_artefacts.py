import json

import pytest

from timewalk import artefacts
from timewalk.errors import UserError, nearest


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
