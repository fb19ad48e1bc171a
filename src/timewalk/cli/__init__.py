"""The command line: one verb a stage, each a thin call into the library.

``timewalk VERB --help`` shows what a verb needs. Settings come as JSON text or as the path of a
JSON or YAML file. A user's mistake is one sentence on the terminal and exit code 1.
"""

import argparse
import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from timewalk import __doc__ as package_doc
from timewalk.artefacts import version
from timewalk.cli import (
    align,
    checks,
    data,
    disk,
    info,
    logs,
    look,
    metrics,
    records,
    report,
    runs,
    video,
)
from timewalk.cli.guide import Parser, Root
from timewalk.errors import UserError, reason
from timewalk.training.preemption import spared


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    root = parser()
    arguments, unknown = root.parse_known_args(argv)
    if unknown:
        of_verb(root, arguments).unknown(unknown)
    _share_lock()
    return spared(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    terminal = sys.stderr
    try:
        if arguments.log:
            terminal = logs.redirect(arguments.log)
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        if arguments.log:
            logs.begin(arguments)
        code: int = arguments.call(arguments) or 0
        if arguments.log and code == 0:
            logs.succeed(arguments.log)
        return code
    except UserError as error:
        return _said(disk.sentence(error, arguments) or error, arguments, terminal)
    except BrokenPipeError:
        # `timewalk inspect ... | head`: nobody reads on. Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except PermissionError as error:
        if error.filename is None:
            raise  # a socket's or a process's
        place = error.filename2 or error.filename
        remedy = "change its permissions, or name another folder, and run the same command again"
        denied = UserError(f"{place} may not be read or written by this user: {remedy}.")
        return _said(denied, arguments, terminal)
    except Exception as error:
        if full := disk.sentence(error, arguments):
            return _said(full, arguments, terminal)
        # One of several processes: the one that started it must not wait for the others.
        if note := os.environ.get("TIMEWALK_ERROR_FILE"):
            what = f"a training process failed ({type(error).__name__}: {reason(error)}); "
            Path(note).write_text(f"{what}the log has its traceback.", encoding="utf-8")
        raise


def _said(error: UserError, arguments: argparse.Namespace, terminal: TextIO) -> int:
    """Say what is wrong: here, or where the process that started this one looks for it."""
    if note := os.environ.get("TIMEWALK_ERROR_FILE"):
        try:
            Path(note).write_text(str(error), encoding="utf-8")
            return 1
        except OSError:  # of a full disk, too, somebody has to speak
            Path(note).unlink(missing_ok=True)
    message = f"timewalk {arguments.verb}: {error}"
    print(message, file=terminal, flush=True)
    if terminal is not sys.stderr:
        print(message, file=sys.stderr, flush=True)
    return 1


def _share_lock() -> None:
    """Hold the workflow's lock to the end: nobody shall take its folder for abandoned."""
    running = os.environ.get("TIMEWALK_RUNNING")
    if running and Path(running).exists():
        # On a disk without locks the workflow has none either, and has said so.
        with suppress(OSError):
            fcntl.flock(os.open(running, os.O_RDONLY), fcntl.LOCK_SH)


def parser() -> Root:
    """Return the parser with all verbs."""
    root = Root(prog="timewalk", description=package_doc)
    root.add_argument("--version", action="version", version=version(), help="print the version")
    root.add_argument("--log", type=Path, metavar="FILE", help="append all output to this file")
    verbs = root.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=Parser, help="what to do"
    )
    for part in (video, records, data, runs, align, metrics, report, look, checks, info):
        part.add_verbs(verbs)
    return root


def of_verb(root: Parser, arguments: argparse.Namespace) -> Parser:
    """Return the parser of the verb, and of the verb below it, that some arguments are of."""
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            return of_verb(action.choices[getattr(arguments, action.dest)], arguments)
    return root
