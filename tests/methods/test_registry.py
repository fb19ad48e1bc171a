import subprocess
import sys

import pytest

from timewalk import methods
from timewalk.errors import UserError
from timewalk.methods.base import Method


def test_every_name_is_a_method():
    assert {"dora", "pretrained", "random"} <= set(methods.method_names())
    for name in methods.method_names():
        assert issubclass(methods.get_method(name), Method)


def test_an_unknown_name_fails_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown method 'dorra'; did you mean 'dora'\?"):
        methods.get_method("dorra")


def test_a_name_is_given_once(monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    methods.register("new", "somewhere:New")
    with pytest.raises(ValueError, match="registered twice"):
        methods.register("new", "elsewhere:New")


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (
            "timewalk.methods.dora:DORA",
            r'methods/__init__\.py: register\("new", "timewalk\.methods\.dora:DORA"\): correct '
            r"this line, its module has no 'DORA'; did you mean 'DoRA'\?$",
        ),
        (
            "timewalk.methods.dorra:DoRA",
            r'"\): there is no module timewalk\.methods\.dorra; correct',
        ),
        ("timewalk.methods.random", r"its module has no ''; known: .*Random"),
    ],
)
def test_a_wrong_line_is_named(place, sentence, monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", {"new": place})
    with pytest.raises(UserError, match=sentence):
        methods.get_method("new")


def test_every_method_says_what_it_is():
    about = methods.method_summaries()
    assert list(about) == methods.method_names()
    assert all(text.endswith(".") for text in about.values())
    assert about["random"] == "No training: fresh weights."


def test_importing_all_methods_is_cheap():
    script = (
        "import sys\n"
        "from timewalk.methods import get_method, method_names\n"
        "[get_method(name) for name in method_names()]\n"
        "assert not {'timm', 'torchvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
