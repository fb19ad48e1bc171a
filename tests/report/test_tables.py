import json
import re
import shutil
import subprocess

import pandas as pd
import pytest

from tests.report.written import write_result, write_run
from timewalk.report.square import square
from timewalk.report.tables import (
    LINE,
    decimals_of,
    escape_latex,
    headline_table,
    latex,
    latex_tables,
    long_table,
    markdown,
    tables,
    write_tables,
)

AWKWARD = r"50% of_a & b {c} \d ~e ^f #1 $2 <x> [g] | Straße"


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_protocols_never_share_a_table(tmp_path):
    paths = [
        write_result(tmp_path, "b", top1_k20=50.0),
        write_result(tmp_path, "a", protocol="knn-b", top1_k20=60.0),
        write_result(tmp_path, "c", dataset="shots", top1_k20=70.0),
    ]
    first, *others = tables(square(paths))
    assert [len(table.rows) for table in (first, *others)] == [3, 1, 1, 1]
    assert [row[0].text for row in first.rows] == ["b", "a", "c"]
    filled = [[cell.text != "–" for cell in row[2:]] for row in first.rows]
    assert filled == [[True, False, False], [False, True, False], [False, False, True]]
    assert [table.title for table in others] == [
        "knn: knn-a on digits (test, 10 samples)",
        "knn: knn-b on digits (test, 10 samples)",
        "knn: knn-a on shots (test, 10 samples)",
    ]


def test_the_headline_table_names_each_protocol(tmp_path):
    paths = [
        write_result(tmp_path, "a", top1_k5=1.0, top1_k20=2.0),
        write_result(tmp_path, "a", "loss", "tcc", kind="algorithm_loss", loss_test=3.0),
    ]
    table = headline_table(square(paths))
    assert table.header == ["run", "method", "knn [1]", "loss [2]↓"]
    assert table.notes == [
        "[1] knn: top1_k20 under knn-a on digits (test, 10 samples)",
        "[2] loss: loss_test under tcc on digits (test, 10 samples)",
    ]


def test_a_metric_without_meaning_is_a_dash(tmp_path):
    table = tables(square([write_result(tmp_path, "a", top1_k5=12.344, top5_k5=None)]))[1]
    assert cells(markdown(table).splitlines()[4]) == ["a", "dora", "12.34", "–"]


def test_a_column_of_shares_has_four_decimals():
    assert decimals_of([0.73284, -0.00512, None]) == 4
    assert decimals_of([1.0, 0.0]) == 2
    assert decimals_of([0.5, 50.0]) == 2
    assert decimals_of([None]) == 2


def test_metrics_in_the_order_of_their_numbers(tmp_path):
    table = tables(square([write_result(tmp_path, "a", top1_k10=1.0, top1_k5=2.0)]))[1]
    assert table.header[2:] == ["top1_k5", "top1_k10"]


@pytest.fixture
def seeds(tmp_path):
    """Results of three seeds, a baseline and a third run, with names that LaTeX minds."""
    for seed, value in enumerate((10.0, 12.0, 14.0)):
        write_run(tmp_path, f"dora_s{seed}", seed=seed)
        write_result(tmp_path, f"dora_s{seed}", protocol=AWKWARD, top1_k20=value)
    write_result(tmp_path, "random", protocol=AWKWARD, method="random", top1_k20=11.0)
    write_result(tmp_path, "x&y", protocol=AWKWARD, top1_k20=3.0)
    return sorted(tmp_path.glob("*/knn.json"))


def test_best_is_bold_and_second_underlined(seeds, tmp_path):
    write_tables(seeds, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    rows = [cells(line) for line in text.splitlines() if line.startswith("| dora")]
    assert rows[0] == ["dora (3 seeds)", "dora", "**12.00 ± 2.00**"]
    assert " <u>11.00</u> |" in text
    assert re.search(r"\| x&y +\| dora +\| +3\.00 \|", text)
    tex = (tmp_path / "summary.tex").read_text()
    assert r"dora (3 seeds) & dora & \textbf{12.00 $\pm$ 2.00} \\" in tex
    assert r"random & random & \underline{11.00} \\" in tex
    assert tex.count(r"\toprule") == tex.count(r"\midrule") == tex.count(r"\bottomrule") == 2


def test_latex_escapes_every_character_that_means_something():
    escaped = escape_latex(AWKWARD)
    plain = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|text\w+)\{\}", "", escaped)
    assert not re.search(r"(?<!\\)[&%$#_{}]", plain)
    assert not set("~^<>|") & set(plain)
    assert "Straße" in escaped


def test_a_wide_table_comes_in_parts_that_fit_a_page(tmp_path):
    metrics = {f"accuracy_of_part_{n}": 100.0 / (n + 1) for n in range(12)}
    table = tables(square([write_result(tmp_path, "a", "gone", metrics=metrics)]))[0]
    text = latex(table)
    lines = [line for line in text.splitlines() if line.startswith("run & method")]
    assert len(lines) > 2
    assert all(len(line.replace("\\", "")) <= LINE for line in lines)
    assert text.count("(continued)") == len(lines) - 1
    assert sum(line.count("accuracy") for line in lines) == 12


def test_many_tables_have_ends_of_pages_between(tmp_path):
    paths = [write_result(tmp_path, "a", f"e{n}", top1_k20=1.0, kind="knn") for n in range(40)]
    text = latex_tables(tables(square(paths)))
    for part in text.split("\\clearpage"):
        assert 0 < part.count("\\begin{table}") <= 12
    assert text.count("\\begin{table}") > 40


def test_latex_takes_it(seeds, tmp_path):
    seeds += [write_result(tmp_path, "b", f"e{n}", top1_k20=1.0, kind="knn") for n in range(40)]
    compiler = next(filter(shutil.which, ("pdflatex", "lualatex", "tectonic")), None)
    if compiler is None:
        pytest.skip("no LaTeX here; the structure is tested above")
    write_tables(seeds, tmp_path)
    document = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{summary}"
        "\\end{document}\n"
    )
    (tmp_path / "main.tex").write_text(document)
    options = [] if compiler == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([compiler, *options, "main.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert b"Missing character" not in done.stdout
    assert (tmp_path / "main.pdf").stat().st_size > 1000


def test_summary_csv_is_long(tmp_path):
    write_tables([write_result(tmp_path, "my_run", top1_k20=50.0, top1_k5=None)], tmp_path)
    csv = pd.read_csv(tmp_path / "summary.csv")
    assert list(csv.columns) == [
        *("run", "method", "evaluation", "protocol", "dataset", "split", "metric", "value"),
        *("samples", "seed", "source"),
    ]
    assert csv["metric"].tolist() == ["top1_k5", "top1_k20"]
    assert csv.loc[1, ["run", "value", "seed"]].tolist() == ["my_run", 50.0, 3]
    assert long_table([]).columns.tolist() == csv.columns.tolist()


@pytest.mark.parametrize(("render", "mark"), [(markdown, "|"), (latex, "&")])
def test_every_row_has_every_column(tmp_path, render, mark):
    pairs = [("a", "x"), ("a", "y"), ("b", "x")]
    paths = [write_result(tmp_path, r, e, kind="knn", top1_k20=1.0) for r, e in pairs]
    for table in tables(square(paths)):
        lines = [line for line in render(table).splitlines() if mark in line]
        assert len(lines) > 1
        assert len({line.count(mark) for line in lines}) == 1


def test_what_is_missing_and_what_failed_is_said(tmp_path):
    results, logs = tmp_path / "results", tmp_path / "logs" / "results"
    logs.mkdir(parents=True)
    (logs / "evaluate-b-knn.log").write_text("timewalk evaluate: no room.\n")
    write_tables(
        [write_result(results, "a", top1_k20=1.0)], results, {r: ["knn"] for r in ("a", "b", "c")}
    )
    text = (results / "summary.md").read_text()
    assert re.search(r"\| b +\| +\| +failed \|", text)
    assert re.search(r"\| c +\| +\| +missing \|", text)


def test_a_result_without_provenance(tmp_path):
    path = write_result(tmp_path, "a", top1_k20=1.0)
    content = json.loads(path.read_text())
    del content["provenance"]
    path.write_text(json.dumps(content))
    write_tables([path], tmp_path)
    assert ",,".join(["1.0,10", str(path)]) in (tmp_path / "summary.csv").read_text()


def test_notes_are_said_once(tmp_path):
    davis = {"method": "crw", "dataset_kind": "davis2017", "kind": "davis"}
    for name, rate in (("a", 1), ("b", 2)):
        write_run(tmp_path, name, method="crw", encoder={"name": "resnet18_s8"}, rate=rate)
        write_result(tmp_path, name, "davis", "davis2017-val-crw-s8", JF_mean=1.0, **davis)
    made = square(sorted(tmp_path.glob("*/davis.json")))
    assert sum("67.6" in note for note in tables(made)[0].notes) == 1


def test_published_figures_stand_below_all_tables_with_differences(tmp_path):
    weights = "https://host/dino_deitsmall16_pretrain.pth"
    encoder = {"name": "vit_small", "weights": weights}
    write_run(tmp_path, "given", method="pretrained", encoder=encoder)
    keys = {"method": "pretrained", "dataset": "imagenet", "dataset_kind": "folder"}
    scores = {"top1_final": 76.0, "top1_best": 76.5, "best_epoch": None}
    write_result(tmp_path, "given", "linear", "linear-n4-aug", metrics=scores, **keys)
    write_result(tmp_path, "given", "knn", "knn-cls-t0.07", metrics={"top1_k20": 74.0}, **keys)
    write_tables([tmp_path / "given" / f"{n}.json" for n in ("knn", "linear")], tmp_path)
    parts = (tmp_path / "summary.md").read_text().split("###")
    notes = {
        part.splitlines()[0].split(":")[0].strip(): [
            x for x in part.splitlines() if "Published" in x
        ]
        for part in parts[1:]
    }
    assert len(notes["linear"]) == len(notes["knn"]) == 1
    said = "- Published for pretrained (value - published): "
    assert notes["linear"][0].startswith(f"{said}top1_best 77 (given -0.50); DINO (ICCV 2021)")
    assert notes["linear"][0].endswith("(ImageNet).")
    headline = notes["The headline metric of each evaluation"]
    assert headline[0].startswith(f"{said}[1] 74.5 (given -0.50)")
    assert len(headline) == 1
    assert r"top1\_best 77 (given -0.50)" in (tmp_path / "summary.tex").read_text()


def test_why_nothing_is_ranked_stands_below_both_tables(tmp_path):
    paths = [
        write_result(tmp_path, name, top1_k20=value, digest=name)
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    for table in tables(square(paths)):
        assert sum("of other content" in note for note in table.notes) == 1
        assert all(cell.rank is None for row in table.rows for cell in row)
