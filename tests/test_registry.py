"""Lines of registries: what is wrong is named, in the registry or in the module."""

import subprocess
import sys
from fnmatch import fnmatchcase

import pytest

from timewalk.errors import UserError
from timewalk.registry import load_module, patterns_meet, summary


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize("module", ["no_such_module", "timewalk.methods.tmocco", "json.a.b"])
def test_a_module_that_is_not_there(module):
    with pytest.raises(UserError, match=r"^the line: there is no module .*; correct this line"):
        load_module(module, "the line")


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("import foo_bar", "No module named 'foo_bar'"),
        ("from json import lodas", "cannot import name 'lodas' from 'json'"),
        ("import json.lodas", "No module named 'json.lodas'"),
    ],
)
def test_an_import_that_fails_inside_keeps_its_message(text, own, written):
    name = written("imports_" + text.replace(".", "_").replace(" ", "_"), text)
    with pytest.raises(UserError, match=f"^module {name} fails to import: {own}") as found:
        load_module(name, "the line")
    assert isinstance(found.value.__cause__, ImportError)


def test_other_faults_of_a_module_keep_their_traceback(written):
    with pytest.raises(ZeroDivisionError):
        load_module(written("divides", "1 / 0"), "the line")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('"""One: a\nthing of v1.5 kind. And more.\n\nOthers.\n"""', "One: a thing of v1.5 kind."),
        ("import torch_of_nowhere", ""),
    ],
)
def test_the_first_sentence_is_read(text, sentence, written):
    assert summary(written("says", text)) == sentence


def test_a_summary_that_cannot_be_read_says_why(written):
    assert summary("no_such_module") == "(there is no module no_such_module)"
    assert summary("no_such.module") == "(no_such.module cannot be read: No module named 'no_such')"
    assert summary(written("torn", "def x(:")).startswith("(torn cannot be read: invalid syntax")


@pytest.mark.parametrize(
    ("one", "other", "example"),
    [
        ("miou", "miou", "miou"),
        ("top1_k20", "top1_k*", "top1_k20"),
        ("*_test", "tcc_*", "tcc_test"),
        ("*_k*", "a*b", "a_kb"),
        ("m?o*", "*ou", "miou"),
        ("*", "", ""),
    ],
)
def test_patterns_that_meet(one, other, example):
    assert fnmatchcase(example, one)
    assert fnmatchcase(example, other)
    assert patterns_meet(one, other)
    assert patterns_meet(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("a*", "b*"), ("miou", "mious"), ("*x", "*y"), ("?", "")]
)
def test_patterns_that_do_not(one, other):
    assert not patterns_meet(one, other)
    assert not patterns_meet(other, one)


@pytest.mark.parametrize(
    ("package", "summaries"),
    [("methods", "method_summaries"), ("evaluation", "evaluation_summaries")],
)
def test_what_there_is_can_be_said_without_torch(package, summaries):
    script = (
        f"import sys; from timewalk.{package} import {summaries} as summaries\n"
        "assert summaries()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
