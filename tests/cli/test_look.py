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
        "runs": {"dora": {}, "random": {}, "später": {}},
        "evaluations": {"knn": {"kind": "knn"}, "linear": {"kind": "linear", "runs": ["dora"]}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
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
    assert "später" in text
    assert "not started" in text
    (suite / "config.yaml").write_text("results_dir: elsewhere\n")
    text = said(["runs"], capsys)
    assert "1/2" not in text
    assert "später" not in text


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
    assert "+2.00" in text
    assert (suite / "c.png").stat().st_size > 1000
    assert cli.main(["compare", "dora"]) == 1
    assert "name the one to compare it with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["runs"], ["show", "dora"], ["compare", "dora", "random"], ["--help"], ["doctor"]]
)
def test_looking_does_not_wait_for_torch(suite, words):
    code = (
        "import sys, json; from timewalk import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "slow = {'torch', 'mlflow', 'pandas', 'matplotlib', 'snakemake'} & set(sys.modules)\n"
        "print(json.dumps(sorted(slow)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []
