"""`timewalk validate`: faults that would otherwise stop a suite after hours."""

import pytest
import yaml

from timewalk import cli

RUN = {"method": "dora", "dataset": "walk", "encoder": {"name": "vit_tiny"}}
LABELLED = {"digits": {"kind": "arrays", "path": "digits"}}
EVALUATION = {"kind": "knn", "dataset": "digits", "k": [5, 20]}


def validate(tmp_path, capsys, **keys):
    path = tmp_path / "suite.yaml"
    raw = {
        "videos": {"mine": {"source": "mine.mp4"}},
        "datasets": {"walk": {"videos": ["mine"]}},
        "labelled": LABELLED,
        "runs": {"mine": RUN},
        "evaluations": {"near": EVALUATION},
        **keys,
    }
    path.write_text(yaml.safe_dump(raw))
    code = cli.main(["validate", str(path)])
    captured = capsys.readouterr()
    return code, captured.err + captured.out


@pytest.mark.parametrize("metric", ["top1_k5", "top5_k20", None])
def test_a_metric_between_epochs_that_there_is(metric, tmp_path, capsys):
    run = RUN | {"validation": {"evaluation": "near", "metric": metric}}
    code, said = validate(tmp_path, capsys, runs={"mine": run})
    assert code == 0, said


@pytest.mark.parametrize(
    ("metric", "near"),
    [("top1_k50", "did you mean 'top1_k5'?"), ("miou", "known: top1_k20, top1_k5, top5_k20")],
)
def test_a_metric_between_epochs_that_there_is_not(metric, near, tmp_path, capsys):
    run = RUN | {"validation": {"evaluation": "near", "metric": metric}}
    code, said = validate(tmp_path, capsys, runs={"mine": run})
    assert code == 1
    assert f"runs.mine.validation.metric: 'near' gives no metric '{metric}'" in said
    assert near in said


def test_a_label_file_that_is_not_there(tmp_path, capsys):
    golf = {"kind": "penn_action", "root": "Penn", "action": "golf_swing"}
    path = tmp_path / "golf.json"
    labelled = LABELLED | {"golf": golf | {"label_file": str(path)}}
    code, said = validate(tmp_path, capsys, labelled=labelled)
    assert code == 1
    assert f"labelled.golf.label_file: {path} is missing; put it there" in said
    path.touch()
    assert validate(tmp_path, capsys, labelled=labelled)[0] == 0


def test_every_evaluation_declares_its_metrics():
    from timewalk.evaluation import evaluation_names, get_evaluation

    drawing = {"attention", "pca"}
    for name in evaluation_names():
        entry = get_evaluation(name)
        assert entry.metrics, name
        assert bool(entry.headline) == (name not in drawing)
