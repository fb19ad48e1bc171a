"""Shells complete verbs, options and files."""

import shutil
import subprocess
import sys

import pytest

from timewalk import cli

BASH = r"""
source {script}
complete_words() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
  COMPREPLY=(); _shtab_timewalk 2>/dev/null; printf '%s\n' "${{COMPREPLY[@]}}"
}}
complete_words {words}
"""


@pytest.fixture
def script(tmp_path, capsys):
    path = tmp_path / "completions" / "timewalk"
    assert cli.main(["completion", "bash", "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [("timewalk comp", {"compare", "completion"}), ("timewalk show --res", {"--results"})],
)
def test_bash_completes_verbs_and_options(script, words, expected):
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    text = BASH.format(script=script, words=words)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert expected <= set(done.stdout.split())


def test_bash_completes_files(script, tmp_path):
    (tmp_path / "mein_video.json").touch()
    text = BASH.format(script=script, words="timewalk validate mein")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["mein_video.json"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_know_every_verb(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("doctor", "compare", "runs", "evaluate"))


def test_without_the_library_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert "needs the Python package shtab" in capsys.readouterr().err
