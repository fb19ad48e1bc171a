"""Snakemake's commands of the README and the pages, dry-run: each in a fork of one process.

Against the suite that they name: the paper's, the demo's, or one that the page itself holds. Those
that differ in targets and in how much of a machine they take are one dry run.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

from tests.conftest import ROOT
from tests.docs.blocks import blocks
from tests.docs.reading import in_sentences, of, suites
from tests.docs.shell import Command
from tests.workflow.conftest import miniature

STAND_INS = {"mine.yaml": ("README.md", "run")}
"""suites that a page speaks of without showing them, and a run in them"""
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
