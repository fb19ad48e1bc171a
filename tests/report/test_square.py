import json
import math
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.written import write_result, write_run
from timewalk.errors import UserError
from timewalk.report.published import load_published, published
from timewalk.report.square import BASELINES, decimals_of, kind_of, result_files, square

METHODS = ("dora", "crw", "random", "pretrained")


def get_kind(model):
    """Return the kind of a labelled set in a configuration."""
    return model.model_fields["kind"].annotation.__args__[0]


def column(made, metric, **keys):
    return next(
        c
        for c in made.columns
        if c.metric == metric and all(getattr(c, k) == v for k, v in keys.items())
    )


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path):
    for seed, value in enumerate((10.0, 12.0, 14.0)):
        write_run(tmp_path, f"dora_seed{seed}", seed=seed)
        write_result(tmp_path, f"dora_seed{seed}", top1_k20=value)
    write_run(tmp_path, "dora_long", steps=8)
    write_result(tmp_path, "dora_long", top1_k20=20.0)
    made = square(sorted(tmp_path.glob("*/knn.json")))
    assert [(row.name, row.seeds) for row in made.rows] == [
        ("dora_long", [0]),
        ("dora", [0, 1, 2]),
    ]
    cell = made.cell("dora", made.columns[0])
    assert (cell.mean, cell.std) == (12.0, 2.0)
    assert cell.values == {"dora_seed0": 10.0, "dora_seed1": 12.0, "dora_seed2": 14.0}
    assert made.cell("dora_long", made.columns[0]).std is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("dora", "dora_s1"), "dora"),
        (("dora_300ep_s1", "dora_300ep_s2"), "dora_300ep"),
        (("dora_300", "dora_300_s1"), "dora_300"),
        (("dora-seed10", "dora-seed11"), "dora"),
        (("alpha", "beta"), "alpha"),
    ],
)
def test_the_name_of_a_row_of_seeds(tmp_path, names, expected):
    for seed, name in enumerate(names):
        write_run(tmp_path, name, seed=seed)
        write_result(tmp_path, name, top1_k20=1.0)
    made = square([tmp_path / name / "knn.json" for name in names])
    assert [row.name for row in made.rows] == [expected]


def test_the_same_seed_twice_is_no_sample_of_seeds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 0), ("d", 1)):
        write_run(tmp_path, name, seed=seed)
        write_result(tmp_path, name, top1_k20=1.0)
    made = square([tmp_path / name / "knn.json" for name in "abcd"])
    assert [row.runs for row in made.rows] == [["a", "d"], ["b"], ["c"]]


def test_a_row_of_seeds_does_not_take_the_name_of_another_run(tmp_path):
    for name, seed, steps in (("dora_s1", 1, 4), ("dora_s2", 2, 4), ("dora", 0, 8)):
        write_run(tmp_path, name, seed=seed, steps=steps)
        write_result(tmp_path, name, top1_k20=1.0)
    made = square([tmp_path / name / "knn.json" for name in ("dora_s1", "dora_s2", "dora")])
    assert [row.name for row in made.rows] == ["dora_s1", "dora"]


def test_other_data_is_another_row(tmp_path):
    for name in ("a_s1", "a_s2"):
        run = write_run(tmp_path, name, seed=int(name[-1]))
        write_result(tmp_path, name, top1_k20=1.0)
    card = json.loads((run / "encoder.json").read_text())
    card["provenance"]["inputs"] = {"walk.json": "other"}
    (run / "encoder.json").write_text(json.dumps(card))
    assert len(square(sorted(tmp_path.glob("*/knn.json"))).rows) == 2


def test_a_headline_a_direction_and_what_is_no_score(tmp_path):
    paths = [
        write_result(tmp_path, "a", "mine", kind="kendalls_tau", tau=0.5, pairs=3),
        write_result(tmp_path, "a", "loss", kind="algorithm_loss", loss_test=2.0, accuracy_test=1),
        write_result(tmp_path, "a", "old", kind="gone", score=1.0),
    ]
    made = square(paths)
    assert [(c.evaluation, c.metric) for c in made.headlines()] == [
        ("mine", "tau"),
        ("loss", "loss_test"),
    ]
    assert column(made, "loss_test").lower_is_better
    assert not column(made, "accuracy_test").lower_is_better
    assert not column(made, "pairs").ranked


def test_ranks_share_ties_and_follow_the_direction(tmp_path):
    values = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 2.0, "e": None}
    paths = [
        write_result(tmp_path, run, "loss", kind="algorithm_loss", loss_test=value, pairs=value)
        for run, value in values.items()
    ]
    made = square(paths)
    ranks = {run: made.cell(run, column(made, "loss_test")).rank for run in values}
    assert ranks == {"a": None, "b": 1, "c": 1, "d": 2, "e": None}
    assert made.cell("e", column(made, "loss_test")).state == "no meaning"


def test_one_row_has_no_rank_and_baselines_are_subtracted(tmp_path):
    alone = square([write_result(tmp_path / "x", "a", top1_k20=1.0)])
    assert alone.cell("a", alone.columns[0]).rank is None
    paths = [
        write_result(tmp_path, "dora", top1_k20=5.0),
        write_result(tmp_path, "fresh", method="random", top1_k20=2.0),
        write_result(tmp_path, "given", method="pretrained", top1_k20=6.0),
        write_result(tmp_path, "other", protocol="knn-b", method="random", top1_k20=0.0),
    ]
    made = square(paths)
    assert made.cell("dora", made.columns[0]).deltas == {"fresh": 3.0, "given": -1.0}
    assert made.cell("fresh", made.columns[0]).deltas == {"given": -4.0}


def test_what_was_asked_for_and_is_not_there(tmp_path):
    results, logs = tmp_path / "results", tmp_path / "logs" / "results"
    logs.mkdir(parents=True)
    paths = [write_result(results, "dora", top1_k20=5.0)]
    (logs / "evaluate-crw-knn.log").write_text(
        "2026-01-01 00:00:00,000 INFO x: running\ntimewalk evaluate: Größe 3 fehlt; add\nit.\n"
    )
    (logs / "train-broken.log").write_text(
        "Traceback (most recent call last):\n  File 'x', line 1\nValueError: two\n"
    )
    (logs / "train-going.log").write_text(
        "timewalk train: an old sentence.\n2026-01-01 00:00:00,000 INFO x: step 3 of 9\n"
    )
    asked = {run: ["knn"] for run in ("dora", "crw", "broken", "going")} | {"no": []}
    made = square(paths, asked | {"dora": ["knn", "linear"]}, results)
    knn, linear = made.columns
    assert {run: made.cell(run, knn).state for run in asked} == {
        "dora": "value",
        "crw": "failed",
        "broken": "failed",
        "going": "missing",
        "no": "not asked for",
    }
    assert made.cell("crw", knn).note == "Größe 3 fehlt; add it."
    assert made.cell("broken", knn).note == "ValueError: two"
    assert (linear.evaluation, linear.protocol, linear.metric) == ("linear", "", "")
    assert made.cell("dora", linear).state == "missing"
    assert made.cell("crw", linear).state == "not asked for"


def test_published_figures_stand_beside_their_own_protocol(tmp_path):
    encoder = {"name": "resnet18_s8"}
    for run, method in (("crw", "crw"), ("mine", "dora")):
        write_run(tmp_path, run, method=method, encoder=encoder)
    davis = {"JF_mean": 1.0, "dataset_kind": "davis2017"}
    paths = [
        write_result(tmp_path, run, "davis", "davis2017-val-crw-s8", method=run, **davis)
        for run in ("crw", "mine")
    ]
    made = square(paths)
    figure = made.cell("crw", made.columns[0]).published
    assert figure is not None
    assert figure.value == 67.6
    assert "CRW (NeurIPS 2020)" in figure.source
    assert made.cell("mine", made.columns[0]).published is None
    changed = write_result(tmp_path, "crw", "davis", "davis2017-val-crw-s8-k5", **davis)
    again = square([changed])
    assert again.cell("crw", again.columns[0]).published is None


@pytest.mark.parametrize("kind", ["moving_shapes", None])
def test_a_published_figure_is_not_of_generated_shapes(tmp_path, kind):
    write_run(tmp_path, "crw", method="crw", encoder={"name": "resnet18_s8"})
    keys = {"method": "crw", "dataset_kind": kind}
    path = write_result(tmp_path, "crw", "davis", "davis2017-val-crw-s8", JF_mean=1.0, **keys)
    made = square([path])
    assert made.cell("crw", made.columns[0]).published is None


def test_a_published_figure_stands_only_beside_a_result(tmp_path):
    davis = {"JF_mean": 1.0, "dataset_kind": "davis2017"}
    for run, rate in (("crw", 1), ("fast", 2)):
        write_run(tmp_path, run, method="crw", encoder={"name": "resnet18_s8"}, rate=rate)
    paths = [
        write_result(tmp_path, "crw", "davis", "davis2017-val-crw-s8", method="crw", **davis),
        write_result(tmp_path, "fast", method="crw", top1_k20=1.0),
    ]
    made = square(paths)
    assert made.cell("crw", column(made, "JF_mean")).published is not None
    assert made.cell("fast", column(made, "JF_mean")).published is None


@pytest.mark.parametrize(
    ("method", "protocol", "kind", "dataset", "metric", "value"),
    [
        ("pretrained", "linear-n4-aug", "folder", "imagenet", "top1_best", 77.0),
        ("pretrained", "linear-n4-aug", "folder", "photos", "top1_best", None),
        ("pretrained", "linear-n4-aug-1ep", "folder", "imagenet", "top1_best", None),
        ("pretrained", "linear-n1-aug", "folder", "imagenet", "top1_best", None),
        ("pretrained", "knn-cls-t0.07", "folder", "imagenet", "top1_k20", 74.5),
        ("pretrained", "knn-cls-t0.07", "folder", "imagenet", "top1_k10", None),
        ("pretrained", "knn-cls-t0.1", "folder", "imagenet", "top1_k20", None),
        ("pretrained", "knn-cls-t0.07", "folder", "imagenette", "top1_k20", None),
        ("dino", "knn-cls-t0.07", "folder", "imagenet", "top1_k20", None),
        ("smtc", "davis2017-val-unsupervised", "davis2017", "d", "frame_matched_JF_mean", 44.8),
        ("smtc", "davis2017-val-unsupervised-n3", "davis2017", "d", "frame_matched_JF_mean", None),
    ],
)
def test_a_published_figure_is_of_its_exact_protocol(
    method, protocol, kind, dataset, metric, value
):
    encoder = {"name": "vit_small", "weights": "https://x/dino_deitsmall16_pretrain.pth"}
    place = {"protocol": protocol, "kind": kind, "dataset": dataset, "metric": metric}
    figure = published(method, encoder, **place)
    assert (figure and figure.value) == value


@pytest.mark.parametrize(
    ("method", "encoder", "protocol", "kind", "metric", "value"),
    [
        ("dino", "vit_small", "knn-cls-t0.07", "folder", "top1_k20", 69.3),
        ("dino", "vit_base", "knn-cls-t0.07", "folder", "top1_k20", None),
        ("crw", "resnet18_s8", "davis2017-val-crw-s8", "davis2017", "F_decay", 24.7),
        ("crw", "resnet18_s8", "jhmdb-test-crw-s8-320px", "jhmdb", "PCK_0.2", 79.59),
        ("crw", "resnet18_s8", "jhmdb-test2-crw-s8-320px", "jhmdb", "PCK_0.2", None),
        ("crw", "resnet18_s8", "vip-val-crw-s8-560px", "vip", "mIoU", 37.12),
        ("crw", "resnet18_s8", "vip-val-crw-s8-560px-k5", "vip", "mIoU", None),
    ],
)
def test_a_published_figure_of_a_training(method, encoder, protocol, kind, metric, value):
    place = {"protocol": protocol, "kind": kind, "dataset": "imagenet", "metric": metric}
    figure = published(method, {"name": encoder}, **place)
    assert (figure and figure.value) == value


def test_every_published_figure_can_be_read():
    from timewalk.config.labelled import JHMDB, VIP, Davis2017, FolderLabels
    from timewalk.evaluation import evaluation_names, get_evaluation
    from timewalk.methods import method_names

    headlines = {p for n in evaluation_names() for p in get_evaluation(n).headline}
    rows = load_published()
    assert len(rows) > 15
    of_kind = {get_kind(model) for model in (JHMDB, VIP, Davis2017, FolderLabels)} | {"ade20k"}
    assert {row["kind"] for row in rows} <= of_kind
    keys = ("method", "encoder", "weights", "protocol", "kind", "dataset", "metric")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    for row in rows:
        assert row["method"] in method_names()
        assert float(row["value"]) > 0
        assert row["source"]
    assert {"JF_mean", "miou"} <= headlines & {row["metric"] for row in rows}


def test_a_file_that_is_no_result(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"kind": "encoder"}')
    with pytest.raises(UserError, match=r"x\.json is no result of an evaluation"):
        square([path])
    write_result(tmp_path, "a", top1_k20=1.0)
    write_run(tmp_path, "a")
    assert [p.name for p in result_files(tmp_path / "a")] == ["knn.json"]


def test_nothing_at_all():
    made = square([])
    assert (made.rows, made.columns, made.cells) == ([], [], {})


RESULT = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "protocol": st.sampled_from(["p1", "p2"]),
        "evaluation": st.sampled_from(["knn", "algorithm_loss"]),
        "value": st.one_of(
            st.none(),
            st.integers(-3, 3).map(float),
            st.floats(-1, 60).map(lambda x: round(x, 3)),
            st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
        "seed": st.integers(0, 2),
        "digest": st.sampled_from([None, "d1", "d1", "d2"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(drawn=st.lists(RESULT, min_size=1, max_size=8), order=st.randoms(use_true_random=False))
def test_whatever_the_results(tmp_path_factory, drawn, order: random.Random):
    folder = tmp_path_factory.mktemp("suite")
    paths = []
    for number, item in enumerate(drawn):
        run = f"run{number}"
        write_run(folder, run, method=item["method"], seed=item["seed"])
        metric = "loss_test" if item["evaluation"] == "algorithm_loss" else "top1_k20"
        keys = {"method": item["method"], "metrics": {metric: item["value"]}}
        keys["digest"] = item["digest"]
        paths.append(write_result(folder, run, item["evaluation"], item["protocol"], **keys))
    made = square(paths)
    _check(made)
    shuffled = list(paths)
    order.shuffle(shuffled)
    again = square(shuffled)
    assert _content(again) == _content(made)


def _content(made):
    """Return all cells, by the runs of their rows: names of rows of seeds follow the order."""
    rows = {row.name: frozenset(row.runs) for row in made.rows}
    return {
        (rows[name], c): (cell.mean, cell.rank, cell.state, sorted(cell.values.items()))
        for (name, c), cell in made.cells.items()
    }


def _check(made):
    runs = [run for row in made.rows for run in row.runs]
    assert len(runs) == len(set(runs))
    assert len({row.name for row in made.rows}) == len(made.rows)
    assert set(made.cells) == {(row.name, c) for row in made.rows for c in made.columns}
    for c in made.columns:
        cells = {row.name: made.cell(row, c) for row in made.rows}
        valued = {name: x for name, x in cells.items() if x.mean is not None}
        decimals = decimals_of(x.mean for x in valued.values())
        shown = {name: round(x.mean, decimals) for name, x in valued.items()}
        best = sorted(set(shown.values()), reverse=not c.lower_is_better)
        known = {d["dataset_sha256"] for x in valued.values() for d in x.digests if d}
        ranked = len(valued) > 1 and len(known) < 2
        for row in made.rows:
            cell, text = cells[row.name], shown.get(row.name)
            assert (cell.mean is None) == (cell.state != "value")
            numbers = [cell.mean, cell.std, *cell.values.values(), *cell.deltas.values()]
            assert all(math.isfinite(n) for n in numbers if n is not None)
            marked = best[: 2 if len(valued) > 2 else 1] if ranked and len(best) > 1 else []
            assert cell.rank == (marked.index(text) + 1 if text in marked else None)
            assert cell.comparable or cell.note
            assert all(
                next(r for r in made.rows if r.name == n).method in BASELINES for n in cell.deltas
            )


def test_the_kind_of_an_old_result():
    assert kind_of({"evaluation": "knn"}) == "knn"
    assert kind_of({"evaluation": "x", "provenance": {"settings": {"kind": "knn"}}}) == "knn"


def test_logs_are_found_below_any_parent(tmp_path, monkeypatch):
    from timewalk.report.failures import logs_of

    (tmp_path / "logs" / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert logs_of(Path("out/demo")) == tmp_path / "logs" / "out" / "demo"
    assert logs_of(tmp_path / "elsewhere") is None


def test_results_on_other_data_are_not_ranked_subtracted_or_averaged(tmp_path):
    for run, method, seed in (("dora_s0", "dora", 0), ("dora_s1", "dora", 1), ("x", "random", 0)):
        write_run(tmp_path, run, method=method, seed=seed)
    paths = [
        write_result(tmp_path, "dora_s0", top1_k20=10.0),
        write_result(tmp_path, "dora_s1", top1_k20=20.0, digest=None),
        write_result(tmp_path, "x", method="random", top1_k20=5.0),
    ]
    made = square(paths)
    knn = made.columns[0]
    assert (made.cell("dora", knn).mean, made.cell("dora", knn).rank) == (15.0, 1)
    assert made.cell("dora", knn).deltas == {"x": 10.0}
    assert made.cell("dora", knn).note is None

    write_result(tmp_path, "x", method="random", top1_k20=5.0, digest="d2")
    made = square(paths)
    cells = [made.cell(name, knn) for name in ("dora", "x")]
    assert [(cell.mean, cell.rank, cell.deltas) for cell in cells] == [
        (15.0, None, {}),
        (5.0, None, {}),
    ]
    assert all("not ranked" in cell.note and not cell.comparable for cell in cells)

    write_result(tmp_path, "dora_s1", top1_k20=20.0, digest="d2")
    cell = square(paths).cell("dora", knn)
    assert (cell.mean, cell.std, cell.state) == (None, None, "no meaning")
    assert cell.values == {"dora_s0": 10.0, "dora_s1": 20.0}
    assert "the runs of dora have no mean" in cell.note


def test_training_sets_of_other_content_are_not_compared(tmp_path):
    paths = [write_result(tmp_path, run, top1_k20=1.0) for run in "ab"]
    for path in paths:
        content = json.loads(path.read_text())
        content["provenance"]["train_dataset_sha256"] = path.parent.name
        path.write_text(json.dumps(content))
    made = square(paths)
    assert made.cell("a", made.columns[0]).rank is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_has_no_meaning(tmp_path, value):
    for seed, number in ((0, value), (1, 2.0)):
        write_run(tmp_path, f"dora_s{seed}", seed=seed)
        write_result(tmp_path, f"dora_s{seed}", top1_k20=number)
    write_run(tmp_path, "x", method="random")
    write_result(tmp_path, "x", method="random", top1_k20=1.0)
    made = square(sorted(tmp_path.glob("*/knn.json")))
    cell = made.cell("dora", made.columns[0])
    assert (cell.state, cell.mean, cell.std, cell.rank) == ("no meaning", None, None, None)
    assert (cell.deltas, cell.values) == ({}, {"dora_s1": 2.0})
    assert made.cell("x", made.columns[0]).rank is None


def test_what_reads_the_same_shares_a_rank(tmp_path):
    values = {"a": 50.001, "b": 50.004, "c": 49.99}
    made = square([write_result(tmp_path, run, top1_k20=x) for run, x in values.items()])
    assert [made.cell(run, made.columns[0]).rank for run in "abc"] == [1, 1, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 2.0], [1, None]),
        ([2.0, 2.0], [None, None]),
        ([2.0, 2.0, 2.001], [None, None, None]),
        ([3.0, None, 2.0], [1, None, None]),
        ([3.0, 3.0, 2.0], [1, 1, 2]),
        ([1.0, 3.0, 2.0], [None, 1, 2]),
    ],
)
def test_the_worse_of_two_is_no_second_and_a_tie_has_no_best(tmp_path, values, expected):
    runs = [f"run{number}" for number in range(len(values))]
    pairs = zip(runs, values, strict=True)
    made = square([write_result(tmp_path, run, top1_k20=value) for run, value in pairs])
    assert [made.cell(run, made.columns[0]).rank for run in runs] == expected


def test_a_copied_run_has_the_name_of_its_folder(tmp_path):
    write_run(tmp_path, "a")
    write_result(tmp_path, "a", top1_k20=1.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    made = square(sorted(tmp_path.glob("*/knn.json")))
    assert [row.name for row in made.rows] == ["a", "b"]
    assert made.cell("b", made.columns[0]).values == {"b": 1.0}


def test_the_settings_of_a_row_hold_no_secret(tmp_path):
    weights = "https://me:hunter2@host/x.pth?token=abc"
    write_run(tmp_path, "a", encoder={"name": "vit_small", "weights": weights})
    (row,) = square([write_result(tmp_path, "a", top1_k20=1.0)]).rows
    assert row.encoder["weights"] == "https://host/x.pth"


def test_features_that_failed_fail_the_evaluations_that_read_them(tmp_path):
    results, logs = tmp_path / "results", tmp_path / "logs" / "results"
    logs.mkdir(parents=True)
    ade = {"kind": "ade20k", "dataset": "ade", "settings": {"network": "upernet"}, "miou": 3.0}
    paths = [
        write_result(results, "done", dataset="pouring", top1_k20=1.0),
        write_result(results, "done", "davis", dataset="pouring", JF_mean=1.0),
        write_result(results, "done", "scenes", **ade),
    ]
    for run in ("a", "done"):
        write_run(results, run, lr=len(run))
    (logs / "embed-a-pouring-test.log").write_text("timewalk embed: pouring is damaged.\n")
    (logs / "finetune-a-upernet.log").write_text("timewalk finetune: no room.\n")
    (logs / "embed-a-x-digits-test.log").write_text("timewalk embed: of a-x.\n")
    names = ["knn", "davis", "scenes", "tau"]
    made = square(paths, {"a": names, "done": [], "a-x": []}, results)
    states = {c.evaluation: made.cell("a", c).state for c in made.columns}
    assert states == {"knn": "failed", "davis": "missing", "scenes": "failed", "tau": "missing"}
    assert made.problems == {("a", "knn"): "pouring is damaged.", ("a", "scenes"): "no room."}
    # Of `tau` there is no result that would tell what it reads.
    assert made.unclear == {"a": ["pouring is damaged.", "no room."]}


def test_fresh_weights_are_those_of_the_same_network(tmp_path):
    """A residual network is not said to beat a transformer that nobody trained."""
    for name, method, encoder, score in (
        ("random", "random", "vit_small", 20.0),
        ("random_resnet", "random", "resnet18", 50.0),
        ("pretrained", "pretrained", "vit_base", 80.0),
        ("dora", "dora", "vit_small", 30.0),
        ("crw", "crw", "resnet18", 45.0),
        ("timet", "timet", "vit_tiny", 25.0),
    ):
        write_run(tmp_path, name, method, encoder={"name": encoder, "weights": None})
        write_result(tmp_path, name, method=method, top1_k20=score)
    made = square(sorted(tmp_path.glob("*/knn.json")))
    (column,) = made.headlines()
    deltas = {row.name: made.cell(row, column).deltas for row in made.rows}
    assert deltas["dora"] == {"random": 10.0, "pretrained": -50.0}
    assert deltas["crw"] == {"random_resnet": -5.0, "pretrained": -35.0}
    assert deltas["timet"] == {"random": 5.0, "random_resnet": -25.0, "pretrained": -55.0}
    fresh = {row.name: made.cell(row, column).fresh for row in made.rows}
    assert (fresh["dora"], fresh["crw"], fresh["random"]) == ("random", "random_resnet", None)
