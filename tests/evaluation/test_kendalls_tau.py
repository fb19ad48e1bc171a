import csv
import logging

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import kendalltau

from tests.evaluation.phase_files import inputs_of, save, write
from timewalk.evaluation.kendalls_tau import Config, evaluate
from timewalk.evaluation.phase_sequences import PhaseSequence, load_phase_embeddings

pytest.importorskip("matplotlib")


def config(**keys):
    return Config(kind="kendalls_tau", dataset="toy", **keys)


def slowly(videos, stride):
    """The definition, pair by pair."""
    found = []
    for i, one in enumerate(videos):
        for j, other in enumerate(videos):
            if i != j:
                q, c = (x.embeddings[::stride].astype(float) for x in (one, other))
                nearest = ((q[:, None] - c) ** 2).sum(2).argmin(1)
                found.append(kendalltau(np.arange(len(q)), nearest).statistic)
    return found


@pytest.mark.parametrize("labelled", [True, False])
def test_a_result_from_files(tmp_path, labelled):
    inputs = write(tmp_path, labelled=labelled)
    result = evaluate(inputs, config(stride=2), tmp_path / "out")
    assert (result.protocol, result.samples) == ("tau-b-sqeuclidean-s2", 4)
    train, test = (
        slowly(load_phase_embeddings(path).videos, 2) for path in (inputs.train, inputs.test)
    )
    assert list(result.metrics) == ["tau", "pairs", "train_tau", "train_pairs"]
    assert result.metrics["tau"] == pytest.approx(np.mean(test), abs=1e-12)
    assert result.metrics["train_tau"] == pytest.approx(np.mean(train), abs=1e-12)
    assert (result.metrics["pairs"], result.metrics["train_pairs"]) == (12, 30)
    picture, pairs = result.artefacts
    assert picture.name == "tau.png"
    rows = list(csv.DictReader(pairs.open()))
    assert [float(row["tau"]) for row in rows] == pytest.approx(test, abs=1e-12)
    assert [rows[0][key] for key in ("video", "other")] == ["test100", "test101"]


def test_protocol_names_what_changes_numbers(tmp_path):
    inputs = write(tmp_path, stride=2)
    result = evaluate(inputs, config(distance="cosine"), tmp_path / "out")
    assert result.protocol == "tau-b-cosine-s5-every2"


def still(seed):
    return PhaseSequence(f"s{seed}", np.ones((9, 3)) * seed, None, np.arange(9))


def test_pairs_without_order_are_dropped(tmp_path):
    inputs = write(tmp_path)
    videos = load_phase_embeddings(inputs.test).videos
    wide = PhaseSequence("s", np.ones((9, 4)), None, np.arange(9))
    save(inputs.test, [*videos, wide])
    result = evaluate(inputs, config(stride=2), tmp_path / "out")
    assert result.metrics["tau"] == pytest.approx(np.mean(slowly(videos, 2)), abs=1e-12)
    assert result.metrics["pairs"] == 12
    rows = list(csv.DictReader(result.artefacts[1].open()))
    assert [row["tau"] for row in rows if "s" in (row["video"], row["other"])] == [""] * 8


@pytest.mark.parametrize(
    ("videos", "warning"),
    [
        ([still(1)], "the test split has one video: there is no pair, and no tau"),
        ([still(1), still(2)], "no pair of videos of the test split has a tau"),
    ],
)
def test_no_pair_is_left(tmp_path, caplog, videos, warning):
    save(tmp_path / "a", videos)
    with caplog.at_level(logging.WARNING):
        result = evaluate(inputs_of(tmp_path / "a", tmp_path / "a"), config(), tmp_path / "out")
    assert result.metrics == {"tau": None, "pairs": 0, "train_tau": None, "train_pairs": 0}
    assert warning in caplog.text


@pytest.mark.parametrize("keys", [{"stride": 0}, {"distance": "manhattan"}])
def test_settings_out_of_range(keys):
    with pytest.raises(ValidationError):
        config(**keys)
