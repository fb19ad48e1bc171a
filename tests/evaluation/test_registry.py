"""The registry of evaluations: entries that agree with themselves, and sentences for others."""

from dataclasses import replace

import pytest

from timewalk import evaluation
from timewalk.errors import UserError

KNN = evaluation.get_evaluation("knn")


def test_every_entry_agrees_with_itself_and_its_module():
    for name in evaluation.evaluation_names():
        assert evaluation.get_evaluation(name).load().Config.model_fields["kind"], name


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"headline": ("top2_k*",)}, r"'new' has 'top2_k\*' as headline, .*\(top1_k\*, top5_k\*\)"),
        ({"falling": ("loss",)}, "'new' has 'loss' as falling, which fits none of its metrics"),
        ({"described": ("pairs",)}, "'new' has 'pairs' as described"),
        ({"metrics": ()}, r"'top1_k20' as headline, .*\(it has none\)"),
    ],
)
def test_a_pattern_that_fits_no_metric(keys, sentence, monkeypatch):
    monkeypatch.setitem(evaluation._ENTRIES, "new", replace(KNN, **keys))
    with pytest.raises(UserError, match=sentence):
        evaluation.get_evaluation("new")


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("timewalk.evaluation.knnn", "there is no module timewalk.evaluation.knnn; correct this"),
        ("timewalk.evaluation.base", "its module has no 'Config'; correct this line"),
    ],
)
def test_a_wrong_line_is_named(module, sentence):
    line = rf'evaluation/__init__\.py: Entry\("{module}"\): {sentence}'
    with pytest.raises(UserError, match=line):
        replace(KNN, module=module).load()


def test_every_evaluation_says_what_it_is():
    about = evaluation.evaluation_summaries()
    assert list(about) == evaluation.evaluation_names()
    assert all(text.endswith(".") for text in about.values())
