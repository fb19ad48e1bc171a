"""Which change of a training's settings stops the workflow before it deletes what was finished."""

import json

import pytest

from timewalk.config.changes import (
    MACHINE_KEYS,
    decisive,
    refuse_other_settings,
    refuse_other_videos,
)
from timewalk.errors import UserError
from timewalk.methods.dora import DoraConfig

SETTINGS = DoraConfig(method="dora", dataset="walk").model_dump(mode="json")


def changed(key, value):
    """Return the settings with another value of `key`, `training.<name>` or of the run."""
    settings = json.loads(json.dumps(SETTINGS))
    *group, name = key.split(".")
    (settings[group[0]] if group else settings)[name] = value
    return settings


@pytest.fixture
def about(tmp_path):
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps({"provenance": {"config": SETTINGS}}))
    return path


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [("training.learning_rate", 0.5, 0.0005), ("seed", 7, 0), ("dataset", "run", "walk")],
)
def test_another_result_is_refused(about, key, value, before):
    message = rf"{about.parent} holds the finished .*\({key} was {before} and is {value}\);"
    with pytest.raises(UserError, match=message):
        refuse_other_settings(about, changed(key, value))


MACHINE = [
    ("nodes", 4),
    ("training.micro_batch_size", 2),
    ("training.compile", "default"),
    ("training.activation_checkpointing", "full"),
    ("training.checkpoint_minutes", 1.0),
    ("training.keep_checkpoints", 9),
]


@pytest.mark.parametrize(("key", "value"), MACHINE)
def test_another_way_to_the_same_decides_nothing(about, key, value):
    refuse_other_settings(about, changed(key, value))
    assert decisive(changed(key, value)) == decisive(SETTINGS)


def test_these_are_all_such_keys():
    named = {key for key, inner in MACHINE_KEYS.items() if inner is True}
    named |= {f"training.{key}" for key in MACHINE_KEYS["training"]}
    assert named == {key for key, _ in MACHINE}


def test_a_changed_validation_is_a_job_but_no_other_training(about):
    validation = {"evaluation": "knn", "every": 1, "every_steps": None, "metric": None}
    refuse_other_settings(about, changed("validation", validation))
    assert decisive(changed("validation", validation)) != decisive(SETTINGS)


def test_nothing_finished_and_a_new_key_are_fine(about, tmp_path):
    refuse_other_settings(tmp_path / "missing" / "encoder.json", SETTINGS)
    refuse_other_settings(about, SETTINGS | {"key_of_a_later_version": 1})


@pytest.fixture
def trained_on(tmp_path):
    """The card of an encoder trained on two videos."""
    path = tmp_path / "encoder.json"
    inputs = {f"data/shards/walk/{name}.json": "0" * 64 for name in ("venice", "zurich")}
    path.write_text(json.dumps({"provenance": {"config": SETTINGS, "inputs": inputs}}))
    return path


@pytest.mark.parametrize(
    ("videos", "told"),
    [
        (["venice", "zurich", "bangkok"], "added: bangkok"),
        (["venice"], "removed: zurich"),
        (["bangkok", "venice"], "added: bangkok; removed: zurich"),
        (
            ["venice", "zurich", *(f"v{number}" for number in range(7))],
            "added: v0, v1, v2, v3, v4 and 2 more",
        ),
    ],
)
def test_other_videos_are_refused(trained_on, videos, told):
    message = (
        rf"{trained_on.parent} holds the finished training on other videos of walk \({told}\);"
    )
    with pytest.raises(UserError, match=message):
        refuse_other_videos(trained_on, "walk", [f"data/shards/walk/{x}.json" for x in videos])


def test_the_same_videos_in_any_order_and_any_folder_are_not(trained_on, tmp_path):
    refuse_other_videos(trained_on, "walk", ["/disk/walk/zurich.json", "/disk/walk/venice.json"])
    refuse_other_videos(tmp_path / "none" / "encoder.json", "walk", ["bangkok.json"])
