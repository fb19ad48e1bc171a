"""Verbs of what people look at: tables, cards, the dashboard."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_config, add_settings, add_verb
from timewalk.errors import UserError

RESULTS = "folder of results (default: results)"
LISTED = "; @FILE: those that FILE names, one a line"


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "report", report)
    verb.fromfile_prefix_chars = "@"
    verb.add_argument("results", type=Path, help="folder of results, for the tables")
    verb.add_argument("inputs", type=Path, nargs="+", help=f"result JSON files{LISTED}")

    verb = add_verb(verbs, "card", card)
    verb.add_argument("run", type=Path, help="the run's folder: its card.md is written")
    verb.add_argument("inputs", type=Path, nargs="*", help="result JSON files of the run")

    verb = add_verb(verbs, "page", page)
    verb.add_argument("results", type=Path, help="folder of results: its report.html is written")
    add_config(verb)
    add_settings(verb, "planned", "names of the evaluations of each run, instead of --config")

    verb = add_verb(verbs, "mlflow", mlflow)
    verb.fromfile_prefix_chars = "@"
    verb.add_argument("results", type=Path, help="folder of results: its mlflow.db is filled")
    verb.add_argument(
        "inputs", type=Path, nargs="*", help=f"result JSON files and cards, or all{LISTED}"
    )
    verb.add_argument("--stamp", type=Path, help="JSON of what was written")
    verb.add_argument("--experiment", help="name of the MLflow experiment; else the suite's own")

    verb = add_verb(verbs, "dashboard", dashboard)
    verb.add_argument("results", type=Path, nargs="?", default=Path("results"), help=RESULTS)
    verb.add_argument("--port", type=int, default=5000, help="to serve at (default: 5000)")
    verb.add_argument(
        "--host", default="127.0.0.1", help="to serve at (default: 127.0.0.1, this machine alone)"
    )


def report(arguments: Arguments) -> None:
    """Write summary.csv, .md and .tex of some results."""
    from timewalk.report.tables import write_tables

    write_tables(arguments.inputs, arguments.results)


def card(arguments: Arguments) -> None:
    """Write a run's model card: what its encoder is, learned from what, worth what."""
    from timewalk.report.card import write_card

    write_card(arguments.run, arguments.inputs)


def page(arguments: Arguments) -> None:
    """Write report.html: the methods x evaluations square, curves, pictures, what is missing.

    One page for any browser that needs no network. It shows what there is, also while other runs
    are still training; what a configuration asks for and is not there is said as such.
    """
    from timewalk.cli.look import planned
    from timewalk.report.page_html import write_page

    results = arguments.results
    if arguments.config:
        _refuse_other_results(arguments.config, results)
    print(write_page(results, arguments.planned or planned(arguments.config, results)))


def _refuse_other_results(files: Sequence[Path], results: Path) -> None:
    """A page of these results with the plan of others would call them complete, or missing."""
    from timewalk.cli.look import RESULTS
    from timewalk.config.files import read_configs

    own = Path(str(read_configs(files).get("results_dir", RESULTS)))
    if own.resolve() != results.resolve():
        names = ", ".join(map(str, files))
        raise UserError(
            f"{names}: results_dir is {own}, not {results}; name the configuration of {results}, "
            "or leave out --config."
        )


def mlflow(arguments: Arguments) -> None:
    """Mirror results into the MLflow store, idempotently.

    Without named files: whatever the folder holds, also while other runs are still training.
    MLFLOW_TRACKING_URI names a server to write to; by default the store is mlflow.db beside the
    results, and deleting it is safe: this builds it again.
    """
    # Else MLflow reports its use to its makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from timewalk.report.mlflow import mirror

    mirror(arguments.inputs, arguments.results, arguments.experiment, arguments.stamp)


def dashboard(arguments: Arguments) -> None:
    """Serve the dashboard of results, and print the address that a browser opens.

    The address leads to the runs as the files are today. MLflow's own server shows mlflow.db of the
    folder until Ctrl-C. With MLFLOW_TRACKING_URI of a server nothing is served: the address there
    is printed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from timewalk.report.mlflow_dashboard import find_dashboard

    found = find_dashboard(arguments.results, arguments.host, arguments.port)
    print(found.address, flush=True)
    if found.command:
        os.execvpe(found.command[0], found.command, found.environment)
