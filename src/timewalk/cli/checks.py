"""Verbs that check the machine and help at the shell."""

from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_verb
from timewalk.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "completion", completion)
    verb.add_argument("shell", choices=SHELLS, metavar="shell", help="bash, zsh or tcsh")


def completion(arguments: Arguments) -> None:
    """Print what makes a shell complete verbs, options and files.

    bash: put it into ~/.local/share/bash-completion/completions/timewalk. zsh: into a file
    _timewalk in a folder of $fpath. tcsh: source it from ~/.tcshrc.
    """
    from timewalk.cli import parser

    try:
        import shtab
    except ImportError:
        raise UserError(
            "completion needs the Python package shtab; pip install 'timewalk[workflow]'."
        ) from None
    root = parser()
    _complete_files(root, shtab.FILE)
    print(shtab.complete(root, shell=arguments.shell))


def _complete_files(parser: Any, files: Any) -> None:
    """Say to the shell which arguments are paths."""
    for action in parser._actions:
        if action.type is Path or getattr(action.type, "__name__", "") == "read_settings":
            action.complete = files
        for inner in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            _complete_files(inner, files)
