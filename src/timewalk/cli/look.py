"""Verbs that show what came out: all runs, one run or suite, runs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_config, add_verb
from timewalk.errors import UserError

CONFIG = Path("config.yaml")
RESULTS = Path("results")


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "runs", runs)
    verb.add_argument("results", type=Path, nargs="?", help="folder of results (default: results)")
    add_config(verb)

    verb = add_verb(verbs, "show", show)
    verb.add_argument("what", help="name or folder of a run, or a folder of results")
    _add_results(verb)
    add_config(verb)

    verb = add_verb(verbs, "compare", compare)
    verb.add_argument("runs", nargs="+", metavar="run", help="names or folders, two or more")
    _add_results(verb)
    verb.add_argument("--output", type=Path, help="…png: draw the curves of their losses")


def _add_results(verb: Any) -> None:
    verb.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the runs that are given by name"
    )


def runs(arguments: Arguments) -> None:
    """List runs: how far each is, its newest loss, and its best figure.

    A run is finished, training (its process lives), failed, stopped, or not started. What the
    configuration asks for and nothing has begun is listed, too; fine-tunings stand below their run.
    A * marks the best of all runs, a ' the second best.
    """
    from timewalk.report.runs import show_runs

    results = arguments.results or RESULTS
    print(show_runs(results, planned(arguments.config, results)))


def show(arguments: Arguments) -> None:
    """Show a run (facts, metrics, pictures) or a whole suite (tables, pictures, dashboard)."""
    from timewalk.report.runs import find_run, is_run
    from timewalk.report.show import show_run, show_suite

    path = Path(arguments.what)
    suite = path.is_dir() and not is_run(path)
    if suite and not is_run(arguments.results / arguments.what):
        print(show_suite(path, planned(arguments.config, path)))
    else:
        print(show_run(find_run(arguments.what, arguments.results)))


def compare(arguments: Arguments) -> None:
    """Put runs side by side: settings that differ, metrics with their differences, curves.

    The other runs are subtracted from the first, as `timewalk show` does with the rows to beat.
    Figures of different protocols, or of other data, are named and not subtracted.
    """
    from timewalk.report.compare import compare_runs, draw_curves
    from timewalk.report.runs import find_run

    if len(arguments.runs) < 2:
        raise UserError("runs: only one is named; name the one to compare it with, too.")
    folders = [find_run(word, arguments.results) for word in arguments.runs]
    print(compare_runs(folders))
    if arguments.output is not None:
        draw_curves(folders, arguments.output)
        print(f"\nCurves: {arguments.output}")


def planned(files: Sequence[Path] | None, results: Path) -> dict[str, list[str]] | None:
    """Return what a configuration asks of each run; None where none is given or at hand."""
    from timewalk.config.files import read_configs
    from timewalk.report.runs import asked_for

    if files:
        return asked_for(read_configs(files))
    if not CONFIG.is_file():
        return None
    raw = read_configs([CONFIG])
    own = Path(str(raw.get("results_dir", RESULTS)))
    return asked_for(raw) if own.resolve() == results.resolve() else None
