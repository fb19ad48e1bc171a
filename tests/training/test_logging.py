"""The log: means of an epoch, a warning about slow data."""

import json

import pytest
import torch

from timewalk.training.logging import EpochMeans, MetricsLog, Progress, SlowData


def test_means_of_an_epoch_survive_a_resume():
    means = EpochMeans()
    means.add({"loss": torch.tensor(1.0), "rate": 0.5})
    again = EpochMeans()
    again.load_state(json.loads(json.dumps(means.state())))
    for half in (means, again):
        half.add({"loss": torch.tensor(4.0), "rate": 0.25})
        assert half.take() == {"epoch_loss": 2.5, "epoch_rate": 0.375}
        half.add({"loss": torch.tensor(3.0)})
        assert half.take() == {"epoch_loss": 3.0}


def test_what_is_not_finite_is_left_out_and_null(tmp_path):
    means = EpochMeans()
    for norm in (1.0, float("inf"), 3.0):
        means.add({"norm": torch.tensor(norm), "other": float("nan")})
    again = EpochMeans()
    again.load_state(json.loads(json.dumps(means.state())))
    assert again.take() == {"epoch_norm": 2.0, "epoch_other": None}
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, 1)
    log.write({"step": 0, "norm": float("inf"), "loss": 1.5, "epoch_other": None})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 0,
        "norm": None,
        "loss": 1.5,
        "epoch_other": None,
    }


@pytest.mark.parametrize(("data_s", "warns"), [(0.2, True), (0.05, False)])
def test_slow_data_is_told_once_in_a_while(caplog, data_s, warns):
    slow = SlowData(every_s=10)
    for _ in range(15):
        slow.add(data_s, 1.0)
    assert ("waiting for data" in caplog.text) == warns
    assert caplog.text.count("waiting for data") <= 1


def test_only_the_main_process_shows_progress(caplog):
    with caplog.at_level("INFO"):
        Progress(2, 0, quiet=True).update(1, "quiet")
        assert not caplog.records
        Progress(2, 0).update(1, "heard")
    assert "heard" in caplog.text


def test_long_trainings_write_fewer_lines(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, 100, max_lines=10)
    assert [step for step in range(100) if log.due(step)] == list(range(0, 100, 10))
    log.close()
