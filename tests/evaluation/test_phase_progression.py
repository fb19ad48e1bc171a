import csv

import numpy as np
import pytest

from tests.evaluation.phase_files import inputs_of, save, sequence, write
from timewalk.errors import UserError
from timewalk.evaluation.phase_progression import Config, evaluate
from timewalk.evaluation.phase_sequences import PhaseSequence

pytest.importorskip("matplotlib")


def config(**keys):
    return Config(kind="phase_progression", dataset="toy", **keys)


def table(path):
    return list(csv.DictReader(path.open()))


def test_a_result_from_files(tmp_path):
    result = evaluate(write(tmp_path), config(), tmp_path / "out")
    metrics = result.metrics
    assert result.protocol == "progression-f0.1-0.5-1"
    assert metrics["r2"] == metrics["r2_1"]
    assert 0.5 < metrics["r2"] < metrics["train_r2_0.1"] < 1
    assert metrics["r2"] == pytest.approx((metrics["r2_event1"] + metrics["r2_event2"]) / 2)
    assert 0 < metrics["transition_error"] < 0.2
    picture, events, frames = result.artefacts
    assert picture.name == "progression.png"
    last = [row for row in table(events) if row["fraction"] == "1.0"]
    assert [row["event"] for row in last] == ["end of reach", "end of pour"]
    assert [float(row["r2"]) for row in last] == [metrics["r2_event1"], metrics["r2_event2"]]
    assert [row["videos"] for row in table(events)] == ["1", "1", "3", "3", "6", "6"]
    rows = [row for row in table(frames) if row["event"] == "end of pour"]
    assert len(rows) == result.samples
    y, guess = (np.array([float(row[key]) for row in rows]) for key in ("target", "predicted"))
    r2 = 1 - ((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert r2 == pytest.approx(metrics["r2_event2"], abs=1e-5)


def test_embeddings_that_are_the_progression(tmp_path):
    labels = np.repeat([0, 1, 2], 4)
    video = PhaseSequence("v", np.arange(12.0)[:, None] / 12, labels, np.arange(12))
    save(tmp_path / "a", [video])
    result = evaluate(inputs_of(tmp_path / "a", tmp_path / "a"), config(), tmp_path / "out")
    assert result.metrics["r2"] == pytest.approx(1)
    assert result.metrics["transition_error"] == pytest.approx(0, abs=1e-7)


def test_without_labels(tmp_path):
    with pytest.raises(UserError, match="the set 'toy' has frames without labels"):
        evaluate(write(tmp_path, labelled=False), config(), tmp_path / "out")


def test_one_phase(tmp_path):
    video = sequence(0)
    video.labels[:] = 0
    save(tmp_path / "a", [video], ["only"])
    with pytest.raises(UserError, match="the set 'toy' has one phase only"):
        evaluate(inputs_of(tmp_path / "a", tmp_path / "a"), config(), tmp_path / "out")


def test_many_videos_and_one(tmp_path):
    for count in (1, 18):
        result = evaluate(write(tmp_path, test=count), config(), tmp_path / "out")
        assert result.artefacts[0].is_file()
