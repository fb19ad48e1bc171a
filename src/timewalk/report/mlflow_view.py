"""How the list of runs opens: what the files say today, with the numbers that matter as columns.

MLflow's interface reads the state of a shared view from a tag of the experiment, whose name stands
in the address. Searches that stand in the address too would put the shared state aside.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence

from mlflow import MlflowClient
from mlflow.entities import Experiment

from timewalk.evaluation import entry_of
from timewalk.report.mlflow_records import Tree, metric_name

log = logging.getLogger(__name__)

CURRENT = "tags.timewalk.superseded = 'false'"
KEY = "timewalk"
TAG = f"mlflow.sharedViewState.{KEY}"
FIRST = ("tags.`timewalk.method`", "tags.`timewalk.seed`")
ROOM = 5000
"""characters of an experiment's tag: MLflow 3.17 takes 20 000, servers of older versions 5000"""


def address(server: str, experiment: Experiment) -> str:
    """Return where the runs of an experiment are shown.

    Args:
        server: its address.
        experiment: of which an earlier version has written no view: the interface leads a view that
            it does not find to a page without runs.
    """
    view = f"&viewStateShareKey={KEY}" if TAG in experiment.tags else ""
    runs = f"#/experiments/{experiment.experiment_id}/runs"
    return f"{server.rstrip('/')}/{runs}?workflowType=machine_learning{view}"


def write_view(client: MlflowClient, experiment: str, trees: Sequence[Tree]) -> None:
    """Write how the list of runs opens: with the columns of these runs, and behind them those that
    it had before, while the tag has room.

    Args:
        client: of the store.
        experiment: number of the experiment.
        trees: runs whose evaluations get columns.
    """
    before = client.get_experiment(experiment).tags.get(TAG)
    known = _known(before) if before else []
    wanted = dict.fromkeys([*FIRST, *_columns(trees), *known])
    while len(text := _view(wanted)) > ROOM:
        wanted.popitem()
    if text != before:
        client.set_experiment_tag(experiment, TAG, text)


def _view(columns: Iterable[str]) -> str:
    return json.dumps({"searchFilter": CURRENT, "selectedColumns": list(columns)})


def _known(view: str) -> list[str]:
    """Return the columns of a view, none of one that people have edited into something else."""
    try:
        columns = json.loads(view)["selectedColumns"]
    except (ValueError, TypeError, KeyError):
        columns = None
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        log.warning("the experiment's tag %s is no list of columns: it is written anew", TAG)
        return []
    return columns


def _columns(trees: Sequence[Tree]) -> Iterator[str]:
    """Yield the metric that stands for each evaluation."""
    for tree in trees:
        for child in tree.children:
            if child.kind != "evaluation":
                continue
            group = f"{metric_name(child.tags['timewalk.evaluation'])}/"
            names = [p.name.removeprefix(group) for p in child.points if p.name.startswith(group)]
            if headline := entry_of(child.parameters.get("kind", "")).headline_of(names):
                yield f"metrics.`{group}{headline}`"
