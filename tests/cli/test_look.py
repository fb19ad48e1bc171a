"""Verbs that show what came out, from the command line."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.report.written import write_result, write_run
from timewalk import cli


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A folder with two finished runs, of which one lacks an evaluation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    for run, method in (("dora", "dora"), ("random", "random")):
        write_run(tmp_path / "results", run, method=method)
        write_result(tmp_path / "results", run, method=method, top1_k20=50.0 + len(run))
    raw = {
        "runs": {"dora": {}, "random": {}, "later": {}},
        "evaluations": {"knn": {"kind": "knn"}, "linear": {"kind": "linear", "runs": ["dora"]}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path


def said(words, capsys):
    code = cli.main(words)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "\033" not in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80
    return captured.out


def test_runs_of_the_configuration_at_hand(suite, capsys):
    text = said(["runs"], capsys)
    assert "1/2" in text
    assert "later" in text
    assert "not started" in text
    (suite / "config.yaml").write_text("results_dir: elsewhere\n")
    text = said(["runs"], capsys)
    assert "1/2" not in text
    assert "later" not in text


def test_runs_of_other_configurations_laid_over_each_other(suite, capsys):
    (suite / "more.yaml").write_text("evaluations: {tsne: {kind: tsne}}\n")
    text = said(["runs", "results", "--config", "config.yaml", "more.yaml"], capsys)
    assert "1/3" in text


def test_show_takes_a_run_its_folder_or_a_suite(suite, capsys):
    by_name = said(["show", "dora"], capsys)
    assert by_name == said(["show", "results/dora"], capsys)
    assert by_name.startswith("dora\n")
    assert said(["show", "results"], capsys).startswith("The headline metric")
    assert cli.main(["show", "dorra"]) == 1
    assert "did you mean 'dora'?" in capsys.readouterr().err


def test_compare_and_its_picture(suite, capsys):
    text = said(["compare", "dora", "random", "--output", "c.png"], capsys)
    assert "-2.00" in text
    assert (suite / "c.png").stat().st_size > 1000
    assert cli.main(["compare", "dora"]) == 1
    assert "name the one to compare it with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["runs"], ["show", "dora"], ["compare", "dora", "random"], ["--help"], ["doctor"]]
)
def test_looking_does_not_wait_for_torch(suite, words):
    code = (
        "import sys, json; from timewalk import cli\n"
        "try:\n    code = cli.main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "slow = {'torch', 'mlflow', 'pandas', 'matplotlib', 'snakemake'} & set(sys.modules)\n"
        "print(json.dumps([code or 0, sorted(slow)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    code, slow = json.loads(done.stderr.splitlines()[-1])
    assert slow == []
    # The doctor says with 1 what this machine lacks, and lists it.
    assert code == 0 or (words == ["doctor"] and "MISSING" in done.stdout), done.stderr


def test_a_run_or_a_suite_from_within(suite, capsys, monkeypatch):
    monkeypatch.chdir(suite / "results" / "dora")
    # Paths are as long as they are, so that the lines may be, too.
    assert cli.main(["show", "."]) == 0
    assert capsys.readouterr().out.startswith("dora\n")
    assert "-2.00" in said(["compare", ".", "../random"], capsys)
    (suite / "results" / "dora" / "figures").mkdir()
    monkeypatch.chdir("figures")
    assert cli.main(["show", ".."]) == 0
    assert capsys.readouterr().out.startswith("dora\n")
    monkeypatch.chdir(suite / "results")
    assert said(["show", "."], capsys).startswith("The headline metric")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"runs: [a]", "runs is ['a']: Input should be a valid dictionary."),
        (b"evaluations: {knn: null}", "evaluations.knn is None"),
        (b"runs: {1: {method: random}}", "runs.1."),
        (b"evaluations: {knn: {kind: knn, runs: a}}", "evaluations.knn.runs: 'a' is no list"),
        ("a: \u00e4".encode("latin-1"), "wrong.yaml is no text in UTF-8"),
        (None, "wrong.yaml cannot be read (Is a directory)"),
    ],
)
def test_a_configuration_that_cannot_be_read(suite, capsys, content, sentence):
    path = suite / "wrong.yaml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert cli.main(["runs", "--config", "wrong.yaml"]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
