"""Shared by all tests: threads are few, and nothing reaches for the network."""

import os
from pathlib import Path

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


class WorkflowsTogether(LoadScopeScheduling):
    """Tests on several processes, those of one workflow module on the same one: each process that
    had some would run the workflow again. (The marks of xdist's `loadgroup` do nothing with
    pytest 9.2.) Modules come first, single tests fill up."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, _ = nodeid.partition("::")
        return module if "/workflow/" in module else nodeid


def pytest_xdist_make_scheduler(config, log):
    return WorkflowsTogether(config, log)
