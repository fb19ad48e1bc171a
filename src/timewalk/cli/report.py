"""Verbs of what people look at: tables, cards, the dashboard."""

from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_verb


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "report", report)
    verb.add_argument("results", type=Path, help="folder of results, for the tables")
    verb.add_argument("inputs", type=Path, nargs="+", help="result JSON files")

    verb = add_verb(verbs, "card", card)
    verb.add_argument("run", type=Path, help="the run's folder: its card.md is written")
    verb.add_argument("inputs", type=Path, nargs="*", help="result JSON files of the run")

    verb = add_verb(verbs, "show", show)
    verb.add_argument("results", type=Path, help="folder of results")

    verb = add_verb(verbs, "mlflow", mlflow)
    verb.add_argument("results", type=Path, help="folder of results: its mlflow.db is filled")
    verb.add_argument("inputs", type=Path, nargs="+", help="result JSON files")
    verb.add_argument("--stamp", type=Path, required=True, help="JSON of what was written")
    verb.add_argument("--experiment", default="timewalk", help="name of the MLflow experiment")


def report(arguments: Arguments) -> None:
    """Write summary.csv, .md and .tex of some results."""
    from timewalk.report.tables import write_tables

    write_tables(arguments.inputs, arguments.results)


def card(arguments: Arguments) -> None:
    """Write a run's model card: what its encoder is, learned from what, worth what."""
    from timewalk.report.card import write_card

    write_card(arguments.run, arguments.inputs)


def show(arguments: Arguments) -> None:
    """Print the table of results and where the pictures are."""
    from timewalk.report.show import show as call

    print(call(arguments.results))


def mlflow(arguments: Arguments) -> None:
    """Mirror results into the MLflow store, idempotently."""
    from timewalk.report.mlflow import mirror

    mirror(arguments.inputs, arguments.results, arguments.experiment, arguments.stamp)
