"""Every command of the README and the pages: dry-run, parsed, or on a list with a reason.

Snakemake's commands are dry-run, each in a fork of one process, against the suite that they name:
the paper's, the demo's, or one that the page itself holds. Words of `timewalk` go through its
parser.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter
from snakemake.cli import get_argument_parser

from tests.conftest import ROOT
from tests.docs.blocks import Block, blocks, pages
from tests.docs.shell import ELSEWHERE, HERE, Command, commands, inline, is_shell, paragraphs
from tests.workflow.conftest import miniature
from timewalk.cli import parser
from timewalk.config import Config, DatasetConfig, Labelled, VideoConfig
from timewalk.evaluation import get_evaluation
from timewalk.finetuning import get_task
from timewalk.methods import get_method

STAND_INS = {"mine.yaml": ("README.md", "run")}
"""suites that a page speaks of without showing them, and a run in them"""
SECTIONS = {*Config.model_fields}
LAYOUT = re.compile(r"[^\s:]*[/<.]\S*( |:|$)", re.MULTILINE)
"""how a drawing of folders and files begins"""

SPEC = importlib.util.spec_from_file_location("launcher", ROOT / "workflow" / "launcher.py")
launcher = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(launcher)

DRY_RUNS = """
import json, os, sys
import importlib.util
import snakemake.cli, snakemake.dag, timewalk.suite, timewalk.plan
import timewalk.evaluation, timewalk.methods, timewalk.finetuning
for name in timewalk.methods.method_names(): timewalk.methods.get_method(name)
for name in timewalk.evaluation.evaluation_names(): timewalk.evaluation.get_evaluation(name).load()
spec = importlib.util.spec_from_file_location("launcher", "workflow/launcher.py")
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
for number, (words, environment) in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        file = os.open(f"said-{number}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        code = 0
        try:
            launcher.start(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), open(f"said-{number}").read()]))
"""


@cache
def all_blocks() -> list[tuple[Block, str]]:
    """Return the paragraphs of all blocks of all pages."""
    found = (block for page in pages() for block in blocks(page))
    return [(block, text) for block in found for text in paragraphs(block)]


@cache
def in_blocks() -> list[Command]:
    return [
        c for block, text in all_blocks() if is_shell(block, text) for c in commands(block, text)
    ]


@cache
def in_sentences() -> list[Command]:
    found = []
    for page in pages():
        found += inline(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"))
    return found


def of(program: str) -> list[Command]:
    return [command for command in in_blocks() if command.program == program]


def as_yaml(text: str) -> object:
    """Read YAML, also a part whose anchors stand elsewhere."""
    anchors = sorted(set(re.findall(r"\*(\w+)", text)) - set(re.findall(r"&(\w+)", text)))
    anchored = "".join(f"{name}_: &{name} {{}}\n" for name in anchors)
    found = yaml.safe_load(anchored + text)
    if isinstance(found, dict):
        return {key: x for key, x in found.items() if key.removesuffix("_") not in anchors}
    return found


def kind_of(block: Block, text: str) -> str:
    """Say what a paragraph is; what cannot be said is an error of the page."""
    if is_shell(block, text):
        return "shell"
    if block.language:
        return block.language
    for kind, read in (("json", json.loads), ("yaml", as_yaml), ("python", _compiled)):
        try:
            found = read(text.replace("...", "").replace(", }", "}") if kind == "json" else text)
        except (ValueError, SyntaxError, yaml.YAMLError):
            continue
        if kind != "yaml" or isinstance(found, dict):
            return kind
    return "layout" if LAYOUT.match(text) else "unknown"


def _compiled(text: str) -> object:
    return compile(text, "page", "exec")


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
            _compiled(text)


@cache
def suites() -> list[tuple[Block, dict]]:
    """Return the parts of configurations that the pages show."""
    found = []
    for block, text in all_blocks():
        if kind_of(block, text) in ("yaml", "text"):
            try:
                part = as_yaml(text)
            except yaml.YAMLError:
                continue
            if isinstance(part, dict) and part and set(part) <= SECTIONS:
                found.append((block, part))
    return found


def test_configurations_have_known_keys():
    """Names of other parts may be missing from what a page shows, keys may not be wrong."""
    taught = {"rotation", "nearest_mean", "side_by_side"}  # by the pages on how to add one
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


class DryRuns:
    """A folder with the project's workflow and nothing made, and suites of the pages beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Snakefile", "config.yaml", "workflow", "profiles", "slurm", "envs"):
            (folder / name).symlink_to(ROOT / name)
        self.paper = yaml.safe_load((ROOT / "config.yaml").read_text())

    def order(self, command: Command) -> tuple[list[str], dict[str, str]]:
        """Return words and environment of a command's dry run."""
        words = list(command.words[1:])
        if "--configfile" in words:
            at = words.index("--configfile") + 1
            while at < len(words) and words[at].endswith(".yaml"):
                if words[at] not in ("config.yaml", "workflow/demo.yaml"):
                    words[at] = self._named(command, words[at])
                at += 1
        elif self._of_the_page(command, words):
            words[:0] = ["--configfile", self._overlaid(command)]
        environment = dict(command.exports)
        if cache := environment.get("SNAKEMAKE_OUTPUT_CACHE"):
            shared = self.folder / Path(cache).name
            shared.mkdir(exist_ok=True)
            environment["SNAKEMAKE_OUTPUT_CACHE"] = str(shared)
        words = [word for word in words if word not in ("-n", "--dry-run")]
        return words, environment

    def _named(self, command: Command, name: str) -> str:
        """Write the suite of that name that the page shows, or one that stands in for it."""
        shown = [b.text for b in blocks(ROOT / command.page) if b.title == name]
        place = self.folder / f"{Path(command.page).stem}-{name}"
        if shown:
            text = shown[0]
        elif STAND_INS.get(name, ("", ""))[0] == command.page:
            suite = miniature()
            suite["runs"] = {STAND_INS[name][1]: suite["runs"]["dora"]}
            text = yaml.safe_dump(suite)
        else:
            # The one complete suite of the page.
            text = next(
                yaml.safe_dump(part)
                for block, part in suites()
                if block.page == command.page and {"runs", "evaluations"} <= set(part)
            )
        place.write_text(text)
        return place.name

    def _of_the_page(self, command: Command, words: list[str]) -> bool:
        """Say whether a target is of a run that the page adds to the paper's."""
        targets = [re.fullmatch(r"results/(\w+)/(\w+)\.json", word) for word in words]
        return any(
            target[1] not in self.paper["runs"] or target[2] not in self.paper["evaluations"]
            for target in targets
            if target and target[1] != "demo"
        )

    def _overlaid(self, command: Command) -> str:
        """Write the paper's suite with what the page shows laid over it."""
        merged = {key: dict(x) if isinstance(x, dict) else x for key, x in self.paper.items()}
        for block, part in suites():
            for section, entries in part.items() if block.page == command.page else ():
                merged[section] = {**merged.get(section, {}), **entries}
        place = self.folder / f"{Path(command.page).stem}-overlaid.yaml"
        place.write_text(yaml.safe_dump(merged))
        return place.name


def dry_runnable() -> list[Command]:
    """Return Snakemake's commands; those in sentences where they are complete."""
    complete = [
        c
        for c in in_sentences()
        if c.program == "snakemake" and {"--cores", "--profile"} & set(c.words)
    ]
    taught = "docs/extending/"  # run for real by test_extending.py
    found = {}
    for command in [*of("snakemake"), *complete]:
        if "…" not in command.words and not command.page.startswith(taught):
            shared = "--configfile" not in command.words
            found.setdefault((command.words, "" if shared else command.page), command)
    return [c for c in found.values() if not set(NOT_DRY) & set(c.words)]


NOT_DRY = {
    "conda": "is not installed",
    "apptainer": "is not installed",
    "--report": "needs the results; tests/workflow/test_report.py does it",
}
"""what Snakemake looks for even in a dry run"""


@dataclass(frozen=True)
class Call:
    """A dry run for all commands that differ in targets, and in how much of a machine they take."""

    options: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


MACHINE = {"--cores", "--resources", "--set-resources"}


def divided(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the words that decide what a call is, and its targets."""
    rest, targets, skip = [], [], False
    for word in targets_first(words):
        skip = word in MACHINE or (skip and not word.startswith("-"))
        if word.startswith("results/") and not rest:
            targets.append(word)
        elif not skip:
            rest.append(word)
    return tuple(rest), targets


def targets_first(words: list[str]) -> list[str]:
    before, _, behind = "\n".join(words).partition("\n--\n")
    found = launcher.targets_first(before.split("\n"))
    return [*(behind.split("\n") if behind else []), *found]


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[Command, tuple[int, str]]:
    """Exit code and text of the dry run that holds a command's targets."""
    runs = DryRuns(tmp_path_factory.mktemp("dry"))
    calls: dict[Call, list[str]] = {}
    belongs: dict[Command, Call] = {}
    for command in dry_runnable():
        words, environment = runs.order(command)
        options, targets = divided(words)
        # Without a target it is everything; the demo's targets choose the suite. Neither is a word.
        demo = any(target.startswith("results/demo/") for target in targets)
        what = (*options, "demo" if demo else "some" if targets else "all")
        belongs[command] = Call(what, tuple(environment.items()))
        known = calls.setdefault(belongs[command], [])
        known += [target for target in targets if target not in known]
    orders = []
    for call, targets in calls.items():
        cores = [] if "--profile" in call.options else ["--cores", "8"]
        options = call.options[:-1]
        how = ["--nolock", "-n", "--quiet", "rules"]
        orders.append(([*targets, *cores, *options, *how], dict(call.environment)))
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUNS],
        input=json.dumps(orders),
        cwd=runs.folder,
        env={key: x for key, x in os.environ.items() if not key.startswith(("SNAKEMAKE", "SLURM"))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    by_call = dict(zip(calls, answers, strict=True))
    return {command: by_call[call] for command, call in belongs.items()}


def test_there_is_something_to_run(said):
    assert len(said) > 20


@pytest.mark.parametrize("command", dry_runnable(), ids=str)
def test_snakemake_knows_what_to_do(said, command):
    code, text = said[command]
    assert code == 0, text


@pytest.mark.parametrize("command", of("snakemake"), ids=str)
def test_snakemake_knows_the_options(command):
    words = launcher.targets_first(list(command.words[1:]))
    known = {name for action in get_argument_parser()._actions for name in action.option_strings}
    used = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-zA-Z]\S*", word)}
    assert used <= known, used - known
