"""Shared by all tests: threads are few, and nothing reaches for the network."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# Nothing here is a matter of time, least of all on a busy machine, nor of chance: the same examples
# again and again. With `--hypothesis-profile=default` they are others each time.
settings.register_profile(
    "repeated", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeated")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Have each test, and the fixtures made for it, find the same whatever ran before."""
    torch.manual_seed(0)
    np.random.seed(0)  # libraries draw from it
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Leave no variable to the next test that this one's commands have set: `main` is a program's
    and cleans nothing up. Levels of logging are held by `log_level` in pyproject.toml."""
    before = dict(os.environ)
    try:
        return (yield)
    finally:
        # One by one: servers in threads of tests read them meanwhile.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def short_folder() -> Iterator[str]:
    """A temporary folder with a name so short that sockets may lie in it."""
    with tempfile.TemporaryDirectory(prefix="tw-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """On several processes, run the tests of one workflow module in the same one: each process that
    had some of them would run the workflow again. (The marks of xdist's `loadgroup` do nothing with
    pytest 9.2.) Modules come first, single tests fill up."""
    from xdist.scheduler import LoadScopeScheduling

    class WorkflowsTogether(LoadScopeScheduling):
        # These share the finished miniature.
        miniatures = ("test_miniature.py", "test_report.py", "test_rerunning.py", "test_cache.py")

        def _split_scope(self, nodeid: str) -> str:
            module, _, _ = nodeid.partition("::")
            if module.endswith(self.miniatures):
                return "miniature"
            if "/slurm/" in module:
                return "slurm"  # one cluster
            return module if "/workflow/" in module or "/docs/" in module else nodeid

    return WorkflowsTogether(config, log)


def pytest_terminal_summary(terminalreporter):
    """Say once more, in red, what could not be tested here at all."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if any("SLURM IS MISSING" in text for text in skipped):
        terminalreporter.write_sep("!", "SLURM IS MISSING: tests/slurm did not run", red=True)
    if any("CHROMIUM IS MISSING" in text for text in skipped):
        terminalreporter.write_sep("!", "CHROMIUM IS MISSING: no page was looked at", red=True)
