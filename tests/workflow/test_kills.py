"""SIGKILL to everything at random moments, then the same command: nothing lost, none doubled."""

import random

import pytest

from tests.workflow.conftest import Workflow, miniature
from tests.workflow.kills import (
    ROOT,
    command,
    contents,
    differences,
    job_seconds,
    killed_again_and_again,
    leftovers,
    stages,
    undisturbed,
)

SEED = 20261122


def moments(count):
    """Return random shares of the work, one in each of as many equal parts, and random seconds.

    Of nine tenths of the work: the last job goes on from where it was killed, and so may end before
    it has worked for as long again.
    """
    draw = random.Random(SEED)
    return [(0.91 * (n + draw.random()) / count, draw.uniform(0, 2)) for n in range(count)]


def check(tmp_path, words, count, configure):
    """Kill a workflow again and again; compare with one that nobody disturbs."""
    reference, victim = (
        Workflow(tmp_path / name, forked=False) for name in ("undisturbed", "killed")
    )
    for workflow in (reference, victim):
        workflow.folder.mkdir()
        configure(workflow)
    undisturbed(reference, words)
    kills = []
    times = job_seconds(reference.folder)
    for kill in killed_again_and_again(victim, words, moments(count), times):
        kills.append(kill)
        print(f"kill {len(kills)} of {count} {kill}", flush=True)
    wrong = differences(contents(reference.folder), contents(victim.folder))
    print(f"stages hit: {', '.join(sorted(stages(kills)))}")
    print(f"half files that nobody reads: {len(leftovers(victim.folder))}")
    print(f"kills: {len(kills)}, artefacts that differ: {len(wrong)}")
    assert len(kills) == count
    assert len(stages(kills)) >= 2
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_three_kills(tmp_path):
    suite = miniature()
    del suite["runs"]["random"]
    words = command("all", "--configfile", "suite.yaml")
    check(tmp_path, words, 3, lambda workflow: workflow.configure(suite))


@pytest.mark.soak
def test_thirty_kills_of_the_demo(tmp_path):
    """`pytest -m soak -s tests/workflow/test_kills.py`: 10 to 14 minutes alone on two cores."""
    suite = [str(ROOT / "workflow" / "demo.yaml"), str(ROOT / "tests" / "workflow" / "soak.yaml")]
    words = command("--configfile", *suite, "--keep-going")
    check(tmp_path, words, 30, lambda workflow: None)
