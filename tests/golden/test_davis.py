"""DAVIS scores against the official tool's: its CSV files byte for byte, every frame's value."""

import numpy as np
import pytest

from timewalk.evaluation.davis_folders import score_folders
from timewalk.evaluation.davis_tables import write_csv
from timewalk.metrics import davis

TASKS = {"semi": "semi-supervised", "unsup": "unsupervised"}
OBJECTS = {"alpha": 2, "bravo": 3, "charlie": 2}
LENGTHS = (1, 2, 3, 4, 5, 7, 10, 23, 68, 102, 300)


@pytest.fixture(scope="module")
def values(golden):
    return golden("davis", "perframe.npz")


@pytest.fixture(scope="module", params=TASKS)
def scored(golden, request):
    """Return the set's short name, its folder of results and the scores."""
    results = golden("davis", f"results_{request.param}")
    scores = score_folders(results, golden("davis", "DAVIS"), TASKS[request.param])
    assert scores.failures == {}
    assert [entry.sequence for entry in scores.sequences] == list(OBJECTS)
    return request.param, results, scores


def test_tables_are_equal_byte_for_byte(scored, tmp_path):
    _, results, scores = scored
    written = write_csv(scores, tmp_path)
    assert [path.name for path in written] == [
        "global_results-val.csv",
        "per-sequence_results-val.csv",
    ]
    for path in written:
        assert path.read_bytes() == (results / path.name).read_bytes()


@pytest.mark.parametrize("sequence", OBJECTS)
def test_values_of_every_frame(scored, values, sequence):
    short, _, scores = scored
    rows = next(entry.objects for entry in scores.sequences if entry.sequence == sequence)
    assert len(rows) == OBJECTS[sequence]
    for metric in ("J", "F"):
        expected = values[f"{short}.{sequence}.{metric}"]
        found = np.stack([getattr(row, metric) for row in rows])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        each = [getattr(row, f"{metric}_statistics") for row in rows]
        found = [[entry.mean, entry.recall, entry.decay] for entry in each]
        expected = values[f"{short}.{sequence}.{metric}_stats"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_assignment(scored, values):
    short, _, scores = scored
    for entry in scores.sequences:
        ids = [(row.proposal, row.object) for row in entry.objects]
        expected = [(k, k) for k in range(1, len(ids) + 1)]
        if short == "unsup":
            names = [f"unsup.{entry.sequence}.{what}" for what in ("proposal", "object")]
            expected = list(zip(*(values[name].tolist() for name in names), strict=True))
        assert ids == expected
        assert [row.name for row in entry.objects] == [
            f"{entry.sequence}_{k}" for k in range(1, len(ids) + 1)
        ]


@pytest.mark.parametrize("number", range(5))
def test_single_masks(values, number):
    shape = tuple(values[f"unit.{number}.hw"])

    def image(name):
        bits = np.unpackbits(values[f"unit.{number}.{name}"], count=shape[0] * shape[1])
        return bits.reshape(shape).astype(bool)

    truth, result, void = image("gt"), image("pred"), image("void")
    assert (davis.boundary_map(truth) == image("bmap_gt")).all()
    found = [
        davis.region_similarity(truth, result),
        davis.contour_accuracy(truth, result),
        davis.region_similarity(truth, result, void),
        davis.contour_accuracy(truth, result, void),
    ]
    np.testing.assert_allclose(found, values[f"unit.{number}.JF"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_statistics(values, length):
    series, expected = values[f"stats.{length}.x"], values[f"stats.{length}.MRD"]
    assert len(series) == length
    found = davis.statistics(series, eight_bit_edges=True)
    found = [found.mean, found.recall, found.decay]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, equal_nan=True)
    wide = davis.statistics(series)
    assert np.isnan(expected[2]) == (length == 300)
    if length < 257:
        assert wide.decay == pytest.approx(expected[2], abs=1e-12)
    else:
        assert wide.decay == pytest.approx(series[:76].mean() - series[224:].mean())


def test_nothing_of_the_set_is_left_out(values):
    known = {f"unit.{i}.{k}" for i in range(5) for k in ("gt", "pred", "void", "hw", "bmap_gt")}
    known |= {f"unit.{i}.JF" for i in range(5)}
    known |= {f"stats.{n}.{k}" for n in LENGTHS for k in ("x", "MRD")}
    for short in TASKS:
        for sequence in OBJECTS:
            known |= {f"{short}.{sequence}.{k}" for k in ("J", "F", "J_stats", "F_stats")}
    known |= {f"unsup.{sequence}.{k}" for sequence in OBJECTS for k in ("proposal", "object")}
    assert set(values) == known
