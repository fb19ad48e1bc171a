"""The pages on how to add a method, an evaluation and a data set, followed word for word.

In a copy of the project: every block that names a file is written or applied, every command is run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.blocks import Block, apply_diff, blocks

PAGES = {
    name: ROOT / "docs" / "extending" / f"{name}.md" for name in ("method", "evaluation", "dataset")
}
COPIED = ("src", "tests", "docs", "workflow", "profiles", "envs", "Snakefile", "Makefile")
COPIED += ("config.yaml", "pyproject.toml", "constraints.txt", "README.md")
CHANGED = {
    "method": {"src/timewalk/methods/__init__.py", "docs/methods/index.md"},
    "evaluation": {"src/timewalk/evaluation/__init__.py", "docs/evaluations/index.md"},
    "dataset": {
        "src/timewalk/config/kinds.py",
        "src/timewalk/data/prepare/published.py",
        "src/timewalk/data/segmented.py",
    },
}
"""files of the project that an addition touches, beside its own"""

CONCERNED = ("rotation", "nearest", "coherence", "side_by_side", "has_a_page", "overviews")
"""words by which the tests of the additions are told from all others of their files"""

# Verbs are forks of a process that has everything of the copy imported.
DRIVER = """
import json, os, subprocess, sys
from tests.workflow import ready
os.environ["PATH"] = f"{ready.folder()}:{os.environ['PATH']}"
for command in json.load(sys.stdin):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    print(json.dumps([command, done.returncode, done.stdout + done.stderr]), flush=True)
"""
MAKE = "timewalk schema --output workflow/schemas/config.schema.json"
MAKE_PAGE = "timewalk schema --markdown --output docs/configuration.md"


def files(page: str) -> list[Block]:
    return [block for block in blocks(PAGES[page]) if block.title]


def commands(page: str) -> list[str]:
    found = [block.text.splitlines() for block in blocks(PAGES[page]) if block.language == ""]
    return [line.partition(" #")[0].strip() for lines in found for line in lines]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with all additions."""
    folder = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__", "*.npz", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        else:
            shutil.copy2(ROOT / name, folder / name)
    for page in PAGES:
        for block in files(page):
            target = folder / block.title
            if block.language == "diff":
                text = apply_diff(target.read_text(), block.text, block.place)
            else:
                assert not target.exists(), f"{block.place}: {block.title} is there already"
                target.parent.mkdir(parents=True, exist_ok=True)
                text = block.text
            target.write_text(text)
    return folder


@pytest.fixture(scope="module")
def said(copy) -> dict[str, tuple[int, str]]:
    """Exit code and text of every command of the pages; those of pytest as one."""
    wanted = [command for page in PAGES for command in commands(page)]
    tests = [shlex.split(command)[1:] for command in wanted if command.startswith("pytest ")]
    places = " ".join(word for words in tests for word in words if word.endswith(".py"))
    others = [c for c in wanted if not c.startswith("pytest ") and c != "make schema"]
    filters = f'-k "{" or ".join(CONCERNED)}"'
    order = [*others, MAKE, MAKE_PAGE, f"pytest -q -p no:cacheprovider {places} {filters}"]
    programs = copy / "programs"
    programs.mkdir()
    (programs / "snakemake").write_text(
        f'#!/bin/sh\nexec {sys.executable} {copy}/workflow/launcher.py "$@"\n'
    )
    (programs / "snakemake").chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(order),
        cwd=copy,
        env=os.environ | {"PATH": path, "PYTHONPATH": f"{copy}:{copy}/src", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = (json.loads(line) for line in done.stdout.splitlines())
    return {command: (code, text) for command, code, text in answers}


def test_pages_touch_as_few_files_as_they_say():
    for page, expected in CHANGED.items():
        assert {b.title for b in files(page) if b.language == "diff"} == expected


def test_every_command_of_the_pages_ends_well(said):
    for command, (code, text) in said.items():
        assert code == 0, f"{command}\n{text}"


def test_the_battery_ran_over_the_new_method(said):
    text = next(text for command, (_, text) in said.items() if command.startswith("pytest"))
    passed = re.search(r"(\d+) passed", text)
    assert passed
    assert int(passed[1]) > 15, text


def test_the_new_method_gets_a_number(copy, said):
    result = json.loads((copy / "results" / "turned" / "knn.json").read_text())
    assert result["method"] == "rotation"
    assert 10 < result["metrics"]["top1_k5"] <= 100


def test_the_new_evaluation_scores(copy, said):
    result = json.loads((copy / "results" / "random" / "nearest_mean.json").read_text())
    assert result["protocol"] == "ncm-cosine"
    assert result["metrics"]["top1"] > 20  # of ten classes


def test_a_forced_evaluation_runs_again(said):
    text = next(text for command, (_, text) in said.items() if "--forcerun evaluate" in command)
    assert re.search(r"^evaluate +1$", text, re.MULTILINE), text
    assert not re.search(r"^embed +\d+$", text, re.MULTILINE), text


def test_the_new_evaluation_of_videos_scores(copy, said):
    result = json.loads((copy / "results" / "random" / "coherence.json").read_text())
    assert result["protocol"] == "coherence-s32"
    assert result["samples"] == 3
    found = result["metrics"]
    assert -1 <= found["across"] < found["consecutive"] <= 1
    assert found["contrast"] == pytest.approx(found["consecutive"] - found["across"])


COLUMNS = """
import json
from pathlib import Path
from timewalk.evaluation import get_evaluation
from timewalk.report.square import square
found = {}
for name, kind in (("nearest_mean", "nearest_mean"), ("coherence", "temporal_coherence")):
    result = Path(f"results/random/{name}.json")
    metrics = list(json.loads(result.read_text())["metrics"])
    columns = [column.metric for column in square([result]).columns if column.headline]
    found[name] = [get_evaluation(kind).headline_of(metrics), *columns]
print(json.dumps(found))
"""


def test_the_new_evaluations_have_a_column(copy, said):
    path = {"PYTHONPATH": f"{copy}/src"}
    done = subprocess.run(
        [sys.executable, "-c", COLUMNS],
        cwd=copy,
        env=os.environ | path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"nearest_mean": ["top1", "top1"], "coherence": ["contrast", "contrast"]}


def test_the_new_set_is_read_by_an_evaluation_of_videos(copy, said):
    result = json.loads((copy / "results" / "random" / "carried.json").read_text())
    assert result["dataset"] == "walks"
    assert result["samples"] == 2


def test_the_schema_knows_them_all(copy, said):
    page = (copy / "docs" / "configuration.md").read_text()
    names = ("rotation", "nearest_mean", "temporal_coherence", "side_by_side")
    assert not [name for name in names if name not in page]
    schema = json.loads((copy / "workflow" / "schemas" / "config.schema.json").read_text())
    assert "runs-rotation" in schema["$defs"]


def test_the_code_of_the_pages_has_the_projects_form(copy):
    named = [b.title for page in PAGES for b in files(page) if b.title.endswith(".py")]
    for verb in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *verb, *named], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
