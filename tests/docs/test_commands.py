"""Every block and command of the README and the pages: read, parsed, or on a list with a reason.

Words of `timewalk` go through its parser, configurations through their models. Snakemake's commands
are dry-run by test_dry_runs.py.
"""

import argparse
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.conftest import ROOT
from tests.docs.reading import all_blocks, compiled, in_blocks, in_sentences, kind_of, of, suites
from tests.docs.shell import ELSEWHERE, HERE, Command
from timewalk.cli import parser
from timewalk.config import DatasetConfig, Labelled, VideoConfig
from timewalk.evaluation import get_evaluation
from timewalk.finetuning import get_task
from timewalk.methods import get_method


def test_every_block_is_something():
    known = {"shell", "layout", "json", "yaml", "python", "text", "diff", "markdown", "dockerfile"}
    wrong = [b.place for b, text in all_blocks() if kind_of(b, text) not in known]
    assert not wrong, f"neither commands nor code, or commands that the test does not know: {wrong}"


def test_every_program_is_run_or_excused():
    unknown = [str(c) for c in in_blocks() if c.program not in HERE | set(ELSEWHERE)]
    assert not unknown, unknown


def test_python_compiles():
    for block, text in all_blocks():
        if kind_of(block, text) == "python":
            compiled(text)


def test_configurations_have_known_keys():
    """Names of other parts may be missing from what a page shows, keys may not be wrong."""
    # By the pages on how to add one.
    taught = {"rotation", "nearest_mean", "temporal_coherence", "side_by_side"}
    labelled: TypeAdapter = TypeAdapter(Labelled)
    models = {"datasets": DatasetConfig, "videos": VideoConfig}
    count = 0
    for block, part in suites():
        entries = [(key, e) for key, x in part.items() if isinstance(x, dict) for e in x.values()]
        for section, entry in entries:
            if not isinstance(entry, dict) or taught & {entry.get("method"), entry.get("kind")}:
                continue
            try:
                if section == "labelled":
                    labelled.validate_python(entry)
                elif section == "evaluations":
                    get_evaluation(entry["kind"]).load().Config.model_validate(entry)
                elif section == "finetuning":
                    get_task(entry["task"]).Config.model_validate(entry)
                elif section == "runs" and {"method", "encoder", "dataset"} <= set(entry):
                    get_method(entry["method"]).Config.model_validate(entry)
                elif section in models:
                    models[section].model_validate(entry)
            except ValueError as error:
                pytest.fail(f"{block.place}: {section}: {error}")
            count += 1
    assert count > 50


def verbs() -> dict[str, argparse.ArgumentParser]:
    return next(
        action.choices
        for action in parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )


@pytest.mark.parametrize("command", of("timewalk"), ids=str)
def test_verbs_are_called_as_they_can_be(command, capsys, tmp_path, monkeypatch):
    with_settings(command, tmp_path, monkeypatch)
    code = 0
    try:
        parser().parse_args(command.words[1:])
    except SystemExit as end:
        code = end.code or 0  # --help ends so, too
    assert code == 0, capsys.readouterr().err


def with_settings(command: Command, folder: Path, monkeypatch) -> None:
    """Work in a folder that has the file of settings that a command names: it is read at once."""
    for option, word in pairwise(command.words):
        if option == "--settings" and word.endswith((".yaml", ".json")):
            (folder / word).write_text("{}")
    monkeypatch.chdir(folder)


def test_torchrun_is_given_a_verb(tmp_path, monkeypatch):
    for command in of("torchrun"):
        with_settings(command, tmp_path, monkeypatch)
        place = command.words.index("timewalk.cli")
        assert command.words[place - 1] == "-m"
        parser().parse_args(command.words[place + 1 :])


def test_sentences_name_verbs_and_options_that_exist():
    known = verbs()
    for command in in_sentences():
        if command.program != "timewalk":
            continue
        verb, words = command.words[1].rstrip(":"), command.words[2:]
        assert verb in {*known, "--help", "VERB"}, f"{command}: no such verb"
        if verb not in known:
            continue
        options = {name for action in known[verb]._actions for name in action.option_strings}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        nested = any(isinstance(a, argparse._SubParsersAction) for a in known[verb]._actions)
        assert nested or used <= options, f"{command}: {used - options}"


def test_make_has_the_targets():
    named = {c.words[1:] for c in [*in_blocks(), *in_sentences()] if c.program == "make"}
    assert {("demo",), ("test",)} <= named
    for words in sorted(named):
        done = subprocess.run(
            ["make", "-n", "-o", "setup", *words], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"make {' '.join(words)}: {done.stderr}"


def test_files_that_are_run_exist():
    made = {block.title for block, _ in all_blocks() if block.title}
    for command in [*of("python"), *of("pytest")]:
        for word in command.words[1:]:
            if word.endswith(".py"):
                assert (ROOT / word).is_file() or word in made, str(command)
