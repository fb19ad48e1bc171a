"""How the report page is asked for: on the command line, with make."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report import results
from tests.report.test_page import Elements, cells
from timewalk.cli import main, parser

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return results.some(tmp_path_factory.mktemp("suite"))


def test_the_verb_takes_a_plan(suite, capsys):
    folder, plan = suite
    assert main(["page", str(folder), "--planned", json.dumps(plan)]) == 0
    assert capsys.readouterr().out == f"{folder}/report.html\n"
    assert "1  failed" in " ".join(Elements((folder / "report.html").read_text()).text)


def configured(tmp_path, results_dir):
    path = tmp_path / "suite.yaml"
    path.write_text(
        f"results_dir: {results_dir}\nruns: {{dora: {{method: dora}}}}\n"
        "evaluations: {knn: {kind: knn}}\n"
    )
    return str(path)


def test_the_configuration_of_other_results_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    other = configured(tmp_path, "results/demo")
    assert main(["page", "results", "--config", other]) == 1
    said = capsys.readouterr().err
    assert "suite.yaml: results_dir is results/demo, not results; name the" in said
    assert "Traceback" not in said
    assert not (tmp_path / "results" / "report.html").exists()
    configured(tmp_path, "./results/")
    assert main(["page", str(tmp_path / "results"), "--config", other]) == 0
    assert 'class="missing"' in cells((tmp_path / "results" / "report.html").read_text(), "dora")[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "timewalk page results/demo --config workflow/demo.yaml"),
        (["RESULTS=results"], "timewalk page results"),
        (["RESULTS=results", "SUITE=my.yaml"], "timewalk page results --config my.yaml"),
    ],
)
def test_make_names_a_configuration_only_with_its_results(words, said):
    command = ["make", "--dry-run", "--no-print-directory", "report", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == said


def test_the_verbs_of_all_results_take_a_file_of_them(suite, tmp_path):
    listed = tmp_path / "inputs.txt"
    listed.write_text("\n".join(map(str, sorted(suite[0].glob("*/knn.json")))))
    assert main(["report", str(tmp_path), f"@{listed}"]) == 0
    assert "pretrained" in (tmp_path / "summary.md").read_text()
    words = parser().parse_args(["mlflow", str(tmp_path), f"@{listed}", "--stamp", "x.json"])
    assert len(words.inputs) == 5


def test_neither_torch_nor_pandas_is_needed(suite):
    """The page of what there is comes on top of a failure: in no time, and without more to fail."""
    code = (
        "import sys; from pathlib import Path; from timewalk.report.page_html import write_page; "
        "write_page(Path(sys.argv[1])); print({'torch', 'pandas', 'mlflow'} & {*sys.modules})"
    )
    words = [sys.executable, "-c", code, str(suite[0])]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "set()\n"
