"""Verbs that score predictions which lie in files."""

from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_verb
from timewalk.cli.guide import subparser_options
from timewalk.errors import UserError


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    text = "Score predictions that lie in files, as the official tool of a benchmark does."
    metrics = verbs.add_parser("metrics", **subparser_options("metrics", text))
    names = metrics.add_subparsers(dest="metric", required=True, metavar="METRIC")
    verb = add_verb(names, "davis", davis)
    verb.add_argument(
        "--results", type=Path, required=True, help="<sequence>/<frame>.png, pixel = id"
    )
    verb.add_argument("--davis", type=Path, required=True, help="the DAVIS folder")
    verb.add_argument(
        "--task",
        choices=("semi-supervised", "unsupervised"),
        default="semi-supervised",
        help="default: semi-supervised (the official tool's default is unsupervised)",
    )
    verb.add_argument("--set", default="val", help="train, val (default), test-dev, test-challenge")
    verb.add_argument("--output", type=Path, help="folder of the tables; default: the results'")
    verb.add_argument("--workers", type=int, default=1, help="processes")


def davis(arguments: Arguments) -> None:
    """Score masks with J and F of DAVIS 2017; the tables go into the folder of results."""
    import time

    from timewalk.evaluation.davis_folders import score_folders
    from timewalk.evaluation.davis_tables import tables, write_csv, write_scores

    start = time.perf_counter()
    scores = score_folders(
        arguments.results,
        arguments.davis,
        arguments.task,
        arguments.set,
        workers=arguments.workers,
    )
    folder = arguments.output or arguments.results
    files = [*write_csv(scores, folder), write_scores(scores, folder)]
    print(tables(scores), *files, f"{time.perf_counter() - start:.2f} s", sep="\n")
    if scores.failures:
        raise UserError("\n".join(scores.failures.values()))
