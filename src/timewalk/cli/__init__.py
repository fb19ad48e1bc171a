"""The command line: one verb a stage, each a thin call into the library.

``timewalk VERB --help`` shows what a verb needs. Settings come as JSON text or as the path of a
JSON or YAML file. A user's mistake is one sentence on the terminal and exit code 1.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timewalk import __doc__ as package_doc
from timewalk.artefacts import version
from timewalk.cli import align, data, info, metrics, records, report, runs, video
from timewalk.errors import UserError, reason


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = parser().parse_args(argv)
    terminal = sys.stderr
    if arguments.log:
        terminal = _redirect(arguments.log)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        return arguments.call(arguments) or 0
    except UserError as error:
        if note := os.environ.get("TIMEWALK_ERROR_FILE"):
            Path(note).write_text(str(error), encoding="utf-8")
            return 1
        message = f"timewalk {arguments.verb}: {error}"
        print(message, file=terminal, flush=True)
        if terminal is not sys.stderr:
            print(message, file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:
        # `timewalk inspect ... | head`: nobody reads on. Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        # One of several processes: the one that started it must not wait for the others.
        if note := os.environ.get("TIMEWALK_ERROR_FILE"):
            what = f"a training process failed ({type(error).__name__}: {reason(error)}); "
            Path(note).write_text(f"{what}the log has its traceback.", encoding="utf-8")
        raise


def _redirect(path: Path) -> Any:
    """Send both streams, those of child processes too, to a file; return the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    return terminal


def parser() -> argparse.ArgumentParser:
    """Return the parser with all verbs."""
    root = argparse.ArgumentParser(prog="timewalk", description=package_doc)
    root.add_argument("--version", action="version", version=version())
    root.add_argument("--log", type=Path, help="write all output to this file")
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    for part in (video, records, data, runs, align, metrics, report, info):
        part.add_verbs(verbs)
    return root
