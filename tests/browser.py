"""A real browser for tests: Chromium, steered by playwright, without a network of its own.

A test module has it by importing the fixture::

    from tests.browser import chromium  # noqa: F401

Outside of tests `browser()` is a context. Where Chromium is missing it is installed with apt-get,
as tests/slurm/start.sh does for Slurm; where that cannot be, the tests are skipped, and the
summary says so in red.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-proxy-server",
    "--mute-audio",
)
MISSING = "CHROMIUM IS MISSING"
PATIENCE_MS = 120_000
"""of a machine with much else to do; to be set as the default timeout of each page"""


class NoBrowser(Exception):
    """There is no Chromium here, nor can it be installed."""


def executable() -> str:
    """Return the path of Chromium, installed first where root, apt-get and a source allow it."""
    # Several test processes may look for it at once; apt-get's lists know no waiting. Slurm's
    # start.sh takes the same lock.
    with open(Path(tempfile.gettempdir()) / f"timewalk-apt.{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _found() or _installed()


def _found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _installed() -> str:
    if os.geteuid() or not shutil.which("apt-get"):
        raise NoBrowser("please install chromium")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt, "install", "-y", "--no-install-recommends", "chromium"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, [*apt, "update"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if path := _found():
            return path
    raise NoBrowser(f"apt-get could not install chromium: {done.stderr.strip()[-200:]}")


@contextmanager
def browser() -> Iterator:
    """Yield a playwright Browser, headless; without Chromium :class:`NoBrowser`."""
    from playwright.sync_api import sync_playwright

    path = executable()
    with sync_playwright() as playwright:
        words = {"args": list(OPTIONS), "timeout": PATIENCE_MS}
        found = playwright.chromium.launch(executable_path=path, **words)
        try:
            yield found
        finally:
            found.close()


# For a module, not for the session: while playwright's loop runs, other tests cannot use asyncio.
@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """A Browser of the module's own."""
    try:
        executable()
    except NoBrowser as error:
        pytest.skip(f"{MISSING}: {error}")
    with browser() as found:
        yield found
