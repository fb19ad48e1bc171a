"""Verbs that check the machine and help at the shell."""

import json
from pathlib import Path
from typing import Any

from timewalk.artefacts import write_text
from timewalk.cli.common import Arguments, add_verb
from timewalk.errors import UserError

CONFIG = Path("config.yaml")
SHELLS = ("bash", "zsh", "tcsh")


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "doctor", doctor)
    verb.add_argument(
        "config",
        type=Path,
        nargs="*",
        help="configuration files of the suite, later over earlier (default: config.yaml, if any)",
    )
    verb.add_argument("--json", action="store_true", help="for programs: one JSON object")

    verb = add_verb(verbs, "completion", completion)
    verb.add_argument("shell", choices=SHELLS, metavar="shell", help="bash, zsh or tcsh")
    verb.add_argument("--output", type=Path, help="file instead of the terminal")


def doctor(arguments: Arguments) -> int:
    """Say what is here of what a suite needs, what is missing, and how to get it.

    Looks at packages, GPUs, ffmpeg, room on the disk, Slurm, the MLflow store, and the videos, data
    sets and weights of the suite. Nothing is fetched or changed. The exit code is 1 if something is
    MISSING; what a stage of the suite fetches or makes is still "to come".
    """
    from timewalk.doctor import as_json, examine, healthy
    from timewalk.doctor.text import as_text

    usual = [CONFIG] if CONFIG.is_file() else []
    findings = examine(arguments.config or usual)
    if arguments.json:
        print(json.dumps(as_json(findings), indent=2, ensure_ascii=False))
    else:
        print(as_text(findings, arguments.config or usual))
    return 0 if healthy(findings) else 1


def completion(arguments: Arguments) -> None:
    """Print what makes a shell complete verbs, options and files.

    bash: --output ~/.local/share/bash-completion/completions/timewalk. zsh: to a file _timewalk in
    a folder of $fpath. tcsh: to one that ~/.tcshrc sources.
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
    text = shtab.complete(root, shell=arguments.shell)
    if arguments.output is None:
        print(text)
    else:
        write_text(arguments.output, f"{text}\n")


def _complete_files(parser: Any, files: Any) -> None:
    """Say to the shell which arguments are paths."""
    for action in parser._actions:
        if action.type is Path or getattr(action.type, "__name__", "") == "read_settings":
            action.complete = files
        for inner in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            _complete_files(inner, files)
