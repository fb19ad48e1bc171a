import pytest

from tests.report.written import write_result, write_run
from timewalk.errors import UserError
from timewalk.report.compare import compare_runs, draw_curves


def lines(text, start):
    return [line.split() for line in text.splitlines() if line.startswith(start)]


@pytest.fixture
def folders(tmp_path):
    write_run(tmp_path, "a", local_crops=6, compat="published")
    write_run(tmp_path, "b", seed=1, local_crops=8)
    write_result(tmp_path, "a", top1_k20=50.0, top1_k5=40.0)
    write_result(tmp_path, "b", top1_k20=52.5, top1_k5=None)
    return [tmp_path / "a", tmp_path / "b"]


def test_settings_that_differ_and_no_others(folders):
    text = compare_runs(folders, width=80)
    assert lines(text, "local_crops") == [["local_crops", "6", "8"]]
    assert lines(text, "seed") == [["seed", "0", "1"]]
    assert "of a alone: compat" in text
    assert "training.max_steps" not in text
    assert "Settings: the same." in compare_runs([folders[0], folders[0]], width=80)


def test_differences_of_the_first(folders):
    text = compare_runs(folders, width=80)
    assert lines(text, "metric") == [["metric", "a", "b", "a", "-", "b"]]
    assert lines(text, "top1_k20") == [["top1_k20", "50.00", "52.50", "-2.50"]]
    assert lines(text, "top1_k5") == [["top1_k5", "40.00", "–", "–"]]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"protocol": "knn-b"}, "a has protocol knn-a, b has knn-b"),
        ({"dataset": "shots"}, "a has data set digits, b has shots"),
        ({"digest": "d2"}, "the labelled set of a and b are of other content"),
    ],
)
def test_what_may_not_be_subtracted_is_not(folders, keys, sentence):
    write_result(folders[1].parent, "b", top1_k20=52.5, **keys)
    text = compare_runs(folders, width=80)
    assert lines(text, "top1_k20") == [["top1_k20", "50.00", "52.50", "–"]]
    assert f"not subtracted: {sentence}" in text


def test_three_runs_and_a_missing_result(folders, tmp_path):
    write_run(tmp_path, "c")
    text = compare_runs([*folders, tmp_path / "c"], width=80)
    assert lines(text, "top1_k20") == [["top1_k20", "50.00", "52.50", "–", "-2.50", "–"]]
    assert "c: no result" in text
    assert max(map(len, text.splitlines())) <= 80


def test_last_and_least_of_curves(folders):
    text = compare_runs(folders, width=80)
    assert lines(text, "loss") == [["loss", "2", "2", "3", "3"]]


def test_two_runs_of_one_name_are_told_apart(folders, tmp_path):
    other = write_run(tmp_path / "elsewhere", "a", local_crops=2)
    text = compare_runs([folders[0], other], width=400)
    assert str(folders[0]) in text
    assert str(other) in text


def test_curves_are_drawn(folders, tmp_path):
    from PIL import Image

    target = tmp_path / "curves.png"
    draw_curves(folders, target)
    with Image.open(target) as image:
        assert image.size == (1050, 600)
        assert len(image.convert("RGB").getcolors(100000)) > 10
    with pytest.raises(UserError, match="give it a suffix that can be drawn"):
        draw_curves(folders, tmp_path / "curves.docx")
    for folder in folders:
        (folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="none of these runs has a curve"):
        draw_curves(folders, target)


def test_an_older_result_without_digests_is_subtracted_and_said_to_be_unknown(folders):
    write_result(folders[1].parent, "b", top1_k20=52.5, digest=None)
    text = compare_runs(folders, width=80)
    assert lines(text, "top1_k20") == [["top1_k20", "50.00", "52.50", "-2.50"]]
    assert "not known: the content of the labelled set of b" in text
    assert "other content" not in text


def test_numbers_that_are_not_finite(folders):
    write_result(folders[1].parent, "b", top1_k20=float("nan"), top1_k5=float("inf"))
    text = compare_runs(folders, width=80)
    assert lines(text, "top1_k20") == [["top1_k20", "50.00", "–", "–"]]
    assert lines(text, "top1_k5") == [["top1_k5", "40.00", "–", "–"]]


def test_secrets_of_addresses_are_not_compared(folders, tmp_path):
    for name, secret in (("c", "hunter2"), ("d", "hunter3")):
        address = f"https://me:{secret}@host/{name}.pth?token=abc"
        write_run(tmp_path, name, encoder={"name": "vit_small", "weights": address})
    text = compare_runs([tmp_path / "c", tmp_path / "d"], width=80)
    assert lines(text, "encoder.weights") == [
        ["encoder.weights", "https://host/c.pth", "https://host/d.pth"]
    ]
    assert "hunter" not in text
