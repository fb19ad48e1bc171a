import csv
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from tests.evaluation.phase_files import ABOUT, FILES, inputs_of, save, sequence, write
from timewalk.errors import UserError
from timewalk.evaluation import get_evaluation
from timewalk.evaluation.phase_classification import Config, evaluate
from timewalk.evaluation.phase_sequences import load_phase_embeddings
from timewalk.metrics.phases import fit_classifier

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def config(**keys):
    return Config(kind="phase_classification", dataset="toy", **keys)


def table(path):
    return list(csv.DictReader(path.open()))


@pytest.mark.parametrize(
    ("keys", "protocol"),
    [
        ({}, "phase-svm-scale-f0.1-0.5-1"),
        ({"gamma": "auto"}, "phase-svm-auto-f0.1-0.5-1"),
        ({"classifier": "logistic", "fractions": [0.5]}, "phase-logistic-f0.5"),
    ],
)
def test_a_result_from_files(tmp_path, keys, protocol):
    inputs = write(tmp_path)
    settings = config(**keys)
    result = evaluate(inputs, settings, tmp_path / "out")
    assert result.protocol == protocol
    train, test = (load_phase_embeddings(path).videos for path in (inputs.train, inputs.test))
    x, y = (np.concatenate([getattr(v, key) for v in test]) for key in ("embeddings", "labels"))
    assert result.samples == len(x)
    for fraction in settings.fractions:
        some = train[: max(1, int(fraction * 6))]
        known, truth = (
            np.concatenate([getattr(v, key) for v in some]) for key in ("embeddings", "labels")
        )
        predict = fit_classifier(known, truth, settings.classifier, settings.gamma)
        name = f"accuracy_{fraction:g}"
        assert result.metrics[name] == pytest.approx(100 * (predict(x) == y).mean())
        assert result.metrics[f"train_{name}"] == pytest.approx(
            100 * (predict(known) == truth).mean()
        )
    assert result.metrics["accuracy"] == result.metrics[f"accuracy_{settings.fractions[-1]:g}"]
    assert result.metrics["accuracy"] > 80


def test_tables(tmp_path):
    result = evaluate(write(tmp_path), config(), tmp_path / "out")
    picture, *tables = result.artefacts
    assert picture.name == "confusion.png"
    fractions, per_class, pairs = (table(path) for path in tables)
    assert [(row["fraction"], row["videos"]) for row in fractions] == [
        ("0.1", "1"), ("0.5", "3"), ("1.0", "6"),
    ]  # fmt: skip
    assert [float(row["accuracy"]) for row in fractions] == [
        result.metrics[f"accuracy_{key}"] for key in ("0.1", "0.5", "1")
    ]
    assert [row["class"] for row in per_class] == ["reach", "pour", "leave"]
    right = sum(int(row["frames"]) * float(row["accuracy_1"]) / 100 for row in per_class)
    assert 100 * right / result.samples == pytest.approx(result.metrics["accuracy"])
    last = [row for row in pairs if row["fraction"] == "1"]
    assert sum(int(row["frames"]) for row in last) == result.samples


def test_first_videos_of_one_phase_predict_it(tmp_path):
    videos = [sequence(i) for i in range(3)]
    videos[0].labels[:] = 2
    save(tmp_path / "a", videos)
    save(tmp_path / "b", videos[1:])
    result = evaluate(inputs_of(tmp_path / "a", tmp_path / "b"), config(), tmp_path / "out")
    truth = np.concatenate([video.labels for video in videos[1:]])
    assert result.metrics["accuracy_0.1"] == pytest.approx(100 * (truth == 2).mean())
    assert result.metrics["train_accuracy_0.1"] == 100


def test_phases_without_names_are_numbered(tmp_path):
    result = evaluate(write(tmp_path, classes=[]), config(), tmp_path / "out")
    assert [row["class"] for row in table(result.artefacts[2])] == ["0", "1", "2"]


def test_a_set_that_leaves_frames_out_has_its_own_protocol(tmp_path):
    result = evaluate(write(tmp_path, stride=3), config(fractions=[1]), tmp_path / "out")
    assert result.protocol == "phase-svm-scale-f1-every3"


def test_without_labels(tmp_path):
    with pytest.raises(UserError, match="the set 'toy' has frames without labels of phases; give"):
        evaluate(write(tmp_path, labelled=False), config(), tmp_path / "out")


def test_a_frame_without_label(tmp_path):
    video = sequence(0)
    video.labels[3] = -1
    save(tmp_path / "a", [video])
    with pytest.raises(UserError, match="the set 'toy' has frames without labels of phases"):
        evaluate(inputs_of(tmp_path / "a", tmp_path / "a"), config(), tmp_path / "out")


SETTINGS = ["image_size", "crop", "stride", "max_videos"]


@pytest.mark.parametrize("key", [*FILES, *SETTINGS])
def test_files_that_do_not_belong_together(tmp_path, key):
    inputs = write(tmp_path)
    save(inputs.test, [sequence(0)], **ABOUT | {"split": "test", key: 7})
    with pytest.raises(
        UserError, match=rf"train\.safetensors and .*test\.safetensors differ in {key}"
    ):
        evaluate(inputs, config(), tmp_path / "out")


@pytest.mark.parametrize("key", FILES)
def test_files_of_another_run_or_set(tmp_path, key):
    inputs = write(tmp_path)
    (tmp_path / FILES[key]).write_text("another")
    with pytest.raises(UserError, match=rf"train\.safetensors was not made with .*\({key}\)"):
        evaluate(inputs, config(), tmp_path / "out")


def test_a_run_with_a_head_that_the_embeddings_are_not_of(tmp_path):
    inputs = write(tmp_path, head_sha256=None)
    with pytest.raises(UserError, match=r"was not made with .*head\.safetensors"):
        evaluate(inputs, config(), tmp_path / "out")
    (tmp_path / FILES["head_sha256"]).unlink()
    assert evaluate(inputs, config(), tmp_path / "out").samples > 0


def test_files_in_the_wrong_order(tmp_path):
    inputs = write(tmp_path)
    swapped = replace(inputs, train=inputs.test, test=inputs.train)
    with pytest.raises(UserError, match=r"test\.safetensors holds the split 'test' where 'train'"):
        evaluate(swapped, config(), tmp_path / "out")
    again = replace(inputs, test=inputs.train)
    with pytest.raises(UserError, match=r"train\.safetensors holds the split 'train' where 'test'"):
        evaluate(again, config(), tmp_path / "out")


def test_splits_of_different_widths(tmp_path):
    inputs = write(tmp_path)
    narrow = sequence(0, "narrow")
    narrow = replace(narrow, embeddings=narrow.embeddings[:, :3])
    save(inputs.test, [narrow], **ABOUT | {"split": "test"})
    expected = r"test\.safetensors holds embeddings of 3 numbers for video 'narrow0' but .*train"
    with pytest.raises(UserError, match=expected + r"\.safetensors of 4 for video 'train0'"):
        evaluate(inputs, config(), tmp_path / "out")


def test_a_part_of_the_videos_has_its_own_protocol(tmp_path):
    result = evaluate(
        write(tmp_path, max_videos=3, stride=2), config(fractions=[1]), tmp_path / "o"
    )
    assert result.protocol == "phase-svm-scale-f1-every2-first3"


def test_several_actions(tmp_path):
    save(tmp_path / "a", [sequence(i, action=i) for i in range(2)])
    with pytest.raises(UserError, match="the set 'toy' holds videos of several actions"):
        evaluate(inputs_of(tmp_path / "a", tmp_path / "a"), config(), tmp_path / "out")


@pytest.mark.parametrize(
    "keys",
    [
        {"fractions": []},
        {"fractions": [0]},
        {"fractions": [1.1]},
        {"fractions": [0.5, 0.5]},
        {"fractions": [1, 0.5]},
        {"gamma": "wide"},
        {"classifier": "forest"},
    ],
)
def test_settings_out_of_range(keys):
    with pytest.raises(ValidationError):
        config(**keys)


@pytest.mark.parametrize(
    "name", ["phase_classification", "few_shot", "phase_progression", "kendalls_tau"]
)
def test_registry(name):
    entry = get_evaluation(name)
    assert (entry.needs, entry.labels) == ("embeddings", ("phases",))
    assert entry.load().Config(dataset="toy").kind == name
