"""`timewalk methods` and `timewalk evaluations`: what there is, and the keys of one."""

import pytest
import yaml

from timewalk import cli, evaluation, methods


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("methods", "random          No training: fresh weights."),
        ("evaluations", "few_shot                 Phase of each frame with few labelled videos."),
    ],
)
def test_a_line_each_with_what_it_is(verb, line, capsys):
    assert cli.main([verb]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_the_keys_of_a_method_and_of_what_it_holds(capsys, root):
    assert cli.main(["methods", "crw"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("## A run, `method: crw`\n")
    assert "| `step_between_frames` | whole number" in text
    assert text.index("## WalkEncoder") < text.index("## CrwTraining") < text.index("## Validation")
    page = (root / "docs/configuration.md").read_text()
    assert all(part.strip() in page for part in text.split("\n\n## "))


def test_the_keys_of_an_evaluation(capsys):
    assert cli.main(["evaluations", "knn"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("## An evaluation, `kind: knn`\n")
    assert "| `temperature` |" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["methods", "dorra"], "timewalk methods: unknown method 'dorra'; did you mean 'dora'?"),
        (["evaluations", "knnn"], "unknown evaluation 'knnn'; did you mean 'knn'?"),
    ],
)
def test_a_name_that_there_is_not(words, sentence, capsys):
    assert cli.main(words) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "kind", "sentence"),
    [
        ("moco", "knn", "runs.mine.method: "),
        ("dora", "mean", "there is no module timewalk.evaluation.mean;"),
    ],
)
def test_validate_names_a_wrong_line_of_a_registry(
    method, kind, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(methods._METHODS, "moco", "timewalk.methods.moco:MoCo")
    entry = evaluation.Entry("timewalk.evaluation.mean", needs="encoder")
    monkeypatch.setitem(evaluation._ENTRIES, "mean", entry)
    suite = {
        "videos": {"mine": {"source": "mine.mp4"}},
        "datasets": {"walk": {"videos": ["mine"]}},
        "labelled": {"digits": {"kind": "arrays", "path": "digits"}},
        "runs": {"mine": {"method": method, "dataset": "walk", "encoder": {"name": "vit_tiny"}}},
        "evaluations": {"near": {"kind": kind, "dataset": "digits"}},
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    assert cli.main(["validate", str(path)]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
