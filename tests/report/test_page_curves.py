"""The learning curves of the report page: few points, of what was logged."""

import tracemalloc

import pytest

from tests.report import results
from timewalk.errors import UserError
from timewalk.report.page_html import curves as curves_module
from timewalk.report.page_html.curves import POINTS, read_curves


def test_curves_of_an_interrupted_training(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    records = [{"step": 0, "time": 1.0, "loss": 3.0}, {"step": 1, "loss": 9.0}]
    records += [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "epoch_loss": 5.0}]
    results.log(place, [*records, {"step": 2, "validation_miou": 40.0}])
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')
    curves = read_curves(tmp_path, ["dora"])
    assert curves[0].parts == [
        ([0, 1, 2], {"loss": [3.0, 2.0, None]}),
        ([2], {"validation_miou": [40.0]}),
    ]


def test_a_damaged_line_within_curves_is_named(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    (place / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\nx\n{"step": 1, "loss": 1}\n')
    with pytest.raises(UserError, match="damaged in line 2"):
        read_curves(tmp_path, ["dora"])


def test_long_curves_are_means(tmp_path):
    place = results.run(tmp_path, "dora", "dora")
    results.log(place, [{"step": n, "loss": float(n % 2)} for n in range(10 * POINTS)])
    results.log(place, [{"step": 0, "loss": 1.5}], "finetuned/parsing/metrics.jsonl")
    curves, tuned = read_curves(tmp_path, ["dora"])
    steps, values = curves.parts[0]
    assert len(steps) == POINTS
    assert set(values["loss"]) == {0.5}
    assert (steps[0], steps[-1], curves.mean_of) == (9, 10 * POINTS - 1, 10)
    assert (tuned.name, tuned.run) == ("dora: parsing", "dora")


def test_many_curves_have_fewer_points_and_the_same_means(tmp_path, monkeypatch):
    monkeypatch.setattr(curves_module, "BUDGET", 300)
    place = results.run(tmp_path, "dora", "dora")
    values = [float(n * n % 101) if n % 7 else None for n in range(10 * POINTS)]
    results.log(place, [{"step": n, "loss": value} for n, value in enumerate(values)])
    results.log(place, [{"step": 0, "loss": 1.5}], "finetuned/parsing/metrics.jsonl")
    curves, _ = read_curves(tmp_path, ["dora"])
    steps, found = curves.parts[0]
    assert (len(steps), curves.mean_of) == (67, 60)
    for number, value in enumerate(found["loss"]):
        finite = [x for x in values[60 * number : 60 * (number + 1)] if x is not None]
        assert value == pytest.approx(sum(finite) / len(finite), rel=1e-5)


def test_logs_are_not_held_together(tmp_path):
    def peak(count):
        tracemalloc.start()
        read_curves(tmp_path, [f"dora_{n}" for n in range(count)])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    for n in range(6):
        place = results.run(tmp_path, f"dora_{n}", "dora")
        results.log(place, [{"step": k, "loss": k / 7, "kl": k / 3} for k in range(4000)])
    assert peak(6) < 2 * peak(1)
