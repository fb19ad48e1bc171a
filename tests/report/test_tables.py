import json

import pandas as pd
import pytest

from timewalk.report.tables import latex, long_table, markdown, sections, wide_table, write_tables


def result(folder, run, evaluation="knn", protocol="knn-a", dataset="digits", **metrics):
    path = folder / run / f"{evaluation}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "run": run,
        "method": "dora",
        "evaluation": evaluation,
        "protocol": protocol,
        "dataset": dataset,
        "split": "test",
        "samples": 10,
        "metrics": metrics,
        "provenance": {"training": {"seed": 3}},
    }
    path.write_text(json.dumps(record))
    return path


def test_protocols_never_share_a_column(tmp_path):
    paths = [
        result(tmp_path, "b", top1=50.0),
        result(tmp_path, "a", protocol="knn-b", top1=60.0),
        result(tmp_path, "c", dataset="shots", top1=70.0),
    ]
    wide = wide_table(long_table(paths))
    assert list(wide.index.get_level_values(0)) == ["b", "a", "c"]
    assert wide.shape == (3, 3)
    assert wide.notna().to_numpy().sum() == 3


def test_a_metric_without_meaning_is_a_dash(tmp_path):
    table = markdown(wide_table(long_table([result(tmp_path, "a", top1=12.344, top5=None)])))
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert cells == ["a", "dora", "12.34", "–"]


def test_a_column_of_shares_has_four_decimals(tmp_path):
    paths = [
        result(tmp_path, "a", tau=0.73284, pairs=1.0, top1=0.5),
        result(tmp_path, "b", tau=-0.00512, pairs=0.0, top1=50.0),
    ]
    rows = markdown(wide_table(long_table(paths))).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[3:-1]] for row in rows]
    assert cells == [["1.00", "0.7328", "0.50"], ["0.00", "-0.0051", "50.00"]]


def test_a_section_a_protocol_with_metrics_in_the_order_of_their_numbers(tmp_path):
    paths = [
        result(tmp_path, "a", top1_k10=1.0, top1_k5=2.0),
        result(tmp_path, "b", protocol="knn-b", top1_k5=3.0),
    ]
    text = sections(long_table(paths))
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### knn: knn-a on digits (test, 10 samples)",
        "### knn: knn-b on digits (test, 10 samples)",
    ]
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[3:5]] == [
        "top1_k5",
        "top1_k10",
    ]


def test_write_tables(tmp_path):
    write_tables([result(tmp_path, "my_run", top1=50.0)], tmp_path)
    csv = pd.read_csv(tmp_path / "summary.csv")
    assert csv.loc[0, ["run", "metric", "value", "seed"]].tolist() == ["my_run", "top1", 50.0, 3]
    assert "| my_run |" in (tmp_path / "summary.md").read_text()
    tex = (tmp_path / "summary.tex").read_text()
    assert r"my\_run & dora & 50.00 \\" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1


@pytest.mark.parametrize("render", [markdown, latex])
def test_every_row_has_every_column(tmp_path, render):
    paths = [result(tmp_path, r, e, top1=1.0) for r, e in [("a", "x"), ("a", "y"), ("b", "x")]]
    text = render(wide_table(long_table(paths)))
    mark = "|" if render is markdown else "&"
    counts = {line.count(mark) for line in text.splitlines() if mark in line}
    assert len(counts) == 1
