"""Overlaps, scores, speed and result files of trackers against GOT-10k's official toolkit."""

import numpy as np
import pytest

from timewalk.evaluation.got10k_files import Records
from timewalk.metrics.tracking import (
    counted,
    frames_per_second,
    overlaps,
    pooled,
    scores,
    success_curve,
)


@pytest.fixture
def toolkit(golden):
    return golden("got10k", "tracking.json")


def recorded(sequence):
    """Return the boxes as they are in the result file, three decimals each."""
    return np.array([[float(x) for x in line.split(",")] for line in sequence["record"].split()])


def all_overlaps(sequence):
    width, height = sequence["resolution"]
    return overlaps(recorded(sequence), np.array(sequence["truth"]), (height, width))


def that_count(sequence):
    each = all_overlaps(sequence)
    return each[counted(len(each), np.array(sequence["cover"]))]


def seconds(sequence):
    return np.array([float(line) for line in sequence["time_record"].split()])


def test_overlaps(toolkit):
    for sequence in toolkit["sequences"].values():
        np.testing.assert_allclose(all_overlaps(sequence), sequence["overlaps"], 0, 1e-12)


def test_scores_of_a_sequence(toolkit):
    for sequence in toolkit["sequences"].values():
        expected, found = sequence["performance"], scores(that_count(sequence))
        assert found["ao"] == pytest.approx(expected["ao"], abs=1e-12)
        assert found["sr50"] == pytest.approx(expected["sr"], abs=1e-12)
        speed = frames_per_second(seconds(sequence))
        assert speed == pytest.approx(expected["speed_fps"], rel=1e-12)


def test_overall(toolkit):
    sequences, expected = toolkit["sequences"].values(), toolkit["overall"]
    joint = pooled(that_count(sequence) for sequence in sequences)
    assert scores(joint)["ao"] == pytest.approx(expected["ao"], abs=1e-12)
    assert scores(joint)["sr50"] == pytest.approx(expected["sr"], abs=1e-12)
    np.testing.assert_allclose(success_curve(joint), expected["succ_curve"], 0, 1e-12)
    speed = frames_per_second(np.concatenate([seconds(sequence) for sequence in sequences]))
    assert speed == pytest.approx(expected["speed_fps"], rel=1e-12)


def test_result_files(toolkit, tmp_path):
    records = Records(tmp_path / "tracker")
    for name, sequence in toolkit["sequences"].items():
        records.write(name, np.array(sequence["predicted"]), np.array(sequence["seconds"]))
        texts = [path.read_text() for path in records.paths(name)]
        assert texts == [sequence["record"], sequence["time_record"]]
