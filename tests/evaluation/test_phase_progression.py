import csv

import numpy as np
import pytest

from tests.evaluation.phase_files import inputs_of, save, sequence, write
from timewalk.errors import UserError
from timewalk.evaluation.phase_progression import Config, evaluate
from timewalk.evaluation.phase_sequences import PhaseSequence, load_phase_embeddings

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


def test_each_share_learns_from_the_first_videos_and_the_last_share_places_the_events(tmp_path):
    inputs = write(tmp_path, noise=0.3)
    splits = [load_phase_embeddings(path).videos for path in (inputs.train, inputs.test)]
    train, test = ([(x.embeddings, targets(x.labels)) for x in videos] for videos in splits)
    metrics = evaluate(inputs, config(), tmp_path / "out").metrics
    errors = {}
    for share, count in (("0.1", 1), ("0.5", 3), ("1", 6)):
        x, y = (np.concatenate(part) for part in zip(*train[:count], strict=True))
        solution = np.linalg.lstsq(with_one(x), y, rcond=None)[0]
        guesses = [with_one(video) @ solution for video, _ in test]
        truth = np.concatenate([y for _, y in test])
        left = ((truth - np.concatenate(guesses)) ** 2).sum(0)
        expected = 1 - left / ((truth - truth.mean(0)) ** 2).sum(0)
        assert metrics[f"r2_{share}"] == pytest.approx(expected.mean())
        spread = ((y - y.mean(0)) ** 2).sum(0)
        learnt = 1 - ((y - with_one(x) @ solution) ** 2).sum(0) / spread
        assert metrics[f"train_r2_{share}"] == pytest.approx(learnt.mean())
        pairs = zip(test, guesses, strict=True)
        errors[share] = np.mean([np.abs((y - guess).mean(0)) for (_, y), guess in pairs])
    assert metrics["transition_error"] == pytest.approx(errors["1"])
    assert errors["1"] != pytest.approx(errors["0.1"])


def targets(labels):
    ends = [np.flatnonzero(labels <= phase)[-1] for phase in range(2)]
    return (np.arange(len(labels))[:, None] - ends) / len(labels)


def with_one(x):
    return np.concatenate([x.astype(float), np.ones((len(x), 1))], 1)


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
