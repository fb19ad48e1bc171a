import csv
import logging

import numpy as np
import pytest
from pydantic import ValidationError

from tests.evaluation.phase_files import write
from timewalk.errors import UserError
from timewalk.evaluation.few_shot import Config, evaluate

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def config(**keys):
    return Config(kind="few_shot", dataset="toy", **keys)


def test_a_result_from_files(tmp_path):
    settings = config(labelled=[1, 3], episodes=6)
    result = evaluate(write(tmp_path), settings, tmp_path / "out")
    assert result.protocol == "few-shot-svm-scale-k1-3-e6"
    assert [path.name for path in result.artefacts] == ["few_shot.png", "episodes.csv"]
    rows = list(csv.DictReader(result.artefacts[1].open()))
    assert [(row["labelled"], row["episode"]) for row in rows] == [
        (k, str(i)) for k in "13" for i in range(6)
    ]
    rng = np.random.RandomState(42)
    drawn = [" ".join(map(str, rng.permutation(6)[:k])) for k in (1, 3) for _ in range(6)]
    assert [row["videos"] for row in rows] == drawn
    for k, some in ((1, rows[:6]), (3, rows[6:])):
        for prefix in ("", "train_"):
            found = np.array([float(row[f"{prefix}accuracy"]) for row in some])
            error = found.std(ddof=1) / 6**0.5
            assert result.metrics[f"{prefix}accuracy_k{k}"] == pytest.approx(found.mean())
            assert result.metrics[f"{prefix}sem_k{k}"] == pytest.approx(error)
            assert result.metrics[f"{prefix}ci95_k{k}"] == pytest.approx(2.57058184 * error)
    assert result.metrics["accuracy"] == result.metrics["accuracy_k3"]


def test_more_than_there_are_is_all(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate(
            write(tmp_path, train=2), config(labelled=[2, 9], episodes=2), tmp_path / "out"
        )
    assert "labelled [9]: there are 2 training videos, all of which are used" in caplog.text
    rows = list(csv.DictReader(result.artefacts[1].open()))
    assert all(sorted(row["videos"].split()) == ["0", "1"] for row in rows)


def test_one_episode_has_no_interval(tmp_path):
    result = evaluate(write(tmp_path), config(labelled=[2], episodes=1), tmp_path / "out")
    assert result.metrics["accuracy_k2"] > 0
    assert result.metrics["ci95_k2"] is result.metrics["sem_k2"] is None


def test_protocol_names_the_classifier(tmp_path):
    settings = config(labelled=[1], episodes=2, classifier="logistic")
    assert evaluate(write(tmp_path), settings, tmp_path / "out").protocol == (
        "few-shot-logistic-k1-e2"
    )


def test_without_labels(tmp_path):
    with pytest.raises(UserError, match="the set 'toy' has frames without labels"):
        evaluate(write(tmp_path, labelled=False), config(), tmp_path / "out")


@pytest.mark.parametrize(
    "keys", [{"labelled": []}, {"labelled": [0]}, {"labelled": [2, 2]}, {"episodes": 0}]
)
def test_settings_out_of_range(keys):
    with pytest.raises(ValidationError):
        config(**keys)
