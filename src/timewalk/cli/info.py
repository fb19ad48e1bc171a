"""Verbs that say what is there, and whether a configuration is right."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_verb
from timewalk.errors import UserError


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "validate", validate)
    verb.add_argument(
        "config", type=Path, nargs="+", help="configuration files, later over earlier"
    )
    verb = add_verb(verbs, "schema", schema)
    verb.add_argument("--output", type=Path, default=None, help="file instead of the terminal")
    verb.add_argument("--markdown", action="store_true", help="as a page of all keys")
    add_verb(verbs, "videos", videos)
    verb = add_verb(verbs, "methods", list_methods)
    verb.add_argument("name", nargs="?", help="of a method: its keys")
    add_verb(verbs, "tasks", list_tasks)
    verb = add_verb(verbs, "evaluations", list_evaluations)
    verb.add_argument("name", nargs="?", help="of an evaluation: its keys")


def validate(arguments: Arguments) -> None:
    """Check configuration files, merged in order, as the workflow does before its first job.

    Lists and label files that the configuration names must be there, too. What else is missing on
    this machine `timewalk doctor` says.
    """
    from timewalk.config.files import read_configs
    from timewalk.suite import load_suite

    suite = load_suite(read_configs(arguments.config))
    for name, labelled in suite.config.labelled.items():
        for key in ("list_file", "label_file", "classes"):
            path = getattr(labelled, key, None)
            if isinstance(path, str) and not Path(path).is_file():
                raise UserError(
                    f"labelled.{name}.{key}: {path} is missing; put it there or correct the path."
                )
    print(f"{len(suite.runs)} runs, {len(suite.evaluations)} evaluations: no fault found")


def schema(arguments: Arguments) -> None:
    """Print the JSON schema of the configuration."""
    from timewalk.artefacts import write_text
    from timewalk.schema import config_markdown, json_schema

    if arguments.markdown:
        text = config_markdown()
    else:
        text = json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if arguments.output:
        write_text(arguments.output, text)
    else:
        print(text, end="")


def videos(arguments: Arguments) -> None:
    """List the built-in table of videos."""
    from timewalk.video.sources import load_sources

    for name, video in load_sources().items():
        print(f"{name:16} {video.source}  {video.licence}")


def list_methods(arguments: Arguments) -> None:
    """List the methods, or print the keys of one."""
    from timewalk.methods import get_method, method_summaries

    if arguments.name is None:
        print(_listed(method_summaries()))
    else:
        get_method(arguments.name)
        print(_keys(f"A run, `method: {arguments.name}`"))


def list_tasks(arguments: Arguments) -> None:
    """List the tasks of fine-tuning."""
    from timewalk.finetuning import task_names

    print("\n".join(task_names()))


def list_evaluations(arguments: Arguments) -> None:
    """List the evaluations, or print the keys of one."""
    from timewalk.evaluation import evaluation_summaries, get_evaluation

    if arguments.name is None:
        print(_listed(evaluation_summaries()))
    else:
        get_evaluation(arguments.name)
        print(_keys(f"An evaluation, `kind: {arguments.name}`"))


def _listed(about: Mapping[str, str]) -> str:
    """Return a line for each name, not wrapped: for grep."""
    width = max(map(len, about))
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in about.items())


def _keys(title: str) -> str:
    """Return a section of the page of all keys, and those that it refers to."""
    from timewalk.schema import config_markdown

    parts = config_markdown().split("\n## ")[1:]
    sections = {part.partition("\n")[0]: f"## {part.strip()}" for part in parts}
    found: dict[str, str] = {}
    waiting = [title]
    while waiting:
        name = waiting.pop(0)
        if name in sections and name not in found:
            found[name] = sections[name]
            waiting += re.findall(r"\[(\w+)\]\(#", sections[name])
    return "\n\n".join(found.values())
