"""The log of a job: its attempts one after another, the newest at the end."""

import logging
import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from timewalk.artefacts import atomic_path
from timewalk.cli.disk import lossy
from timewalk.errors import DiskFull
from timewalk.report.failures import BEGINS

log = logging.getLogger(__name__)

LARGEST, KEPT = 8 << 20, 4 << 20
"""bytes of a log that is cut before the next attempt, and of its end that stays then"""


def redirect(path: Path) -> TextIO:
    """Send both streams, those of child processes too, to the end of a file; return the terminal.

    What was there stays: it tells why an earlier attempt failed, and whoever still writes to it, a
    process of a job that Slurm has started again, goes on doing so. Snakemake removes a job's log
    before it starts the job, so that until a success the log has a second name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() and _second(path).exists():
        with suppress(OSError):  # another user's: the log is then of this attempt
            os.link(_second(path), path)
    _cut(path)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = lossy(1), lossy(2)
    if os.fstat(file).st_size:
        print(file=sys.stderr)  # a killed process may have left half a line
    _keep(path)
    return terminal


def begin(arguments: Namespace) -> None:
    """Write the record that an attempt begins with: verb, machine, process and Slurm's job."""
    about = [arguments.verb, f"on {os.uname().nodename}", f"process {os.getpid()}"]
    if job := os.environ.get("SLURM_JOB_ID"):
        about.append(f"Slurm job {job}")
    if restarts := os.environ.get("SLURM_RESTART_COUNT"):
        about.append(f"restart {restarts}")
    log.info("%s: %s", BEGINS, ", ".join(about))


def succeed(path: Path) -> None:
    """Let go of the attempts: what comes next is another job."""
    with suppress(OSError):  # the work is done, whatever the disk says
        _second(path).unlink(missing_ok=True)


def _second(path: Path) -> Path:
    return path.with_name(f".{path.name}.attempts")


def _keep(path: Path) -> None:
    """Give a log its second name, that of the file as it is after a cut."""
    if path.is_file():
        with suppress(OSError):  # a disk without such names: the log is then of one attempt
            _second(path).unlink(missing_ok=True)
            os.link(path, _second(path))


def _cut(path: Path) -> None:
    if not path.is_file() or path.stat().st_size <= LARGEST:
        return
    with open(path, "rb") as file:
        file.seek(-KEPT, os.SEEK_END)
        end = file.read()
    # On a full disk the work is more important than a short log.
    with suppress(DiskFull), atomic_path(path) as temporary:
        temporary.write_bytes(end[end.find(b"\n") + 1 :])
