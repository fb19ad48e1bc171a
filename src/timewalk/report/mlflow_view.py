"""How the list of runs opens: what the files say today, with the numbers that matter as columns.

MLflow's interface reads the state of a shared view from a tag of the experiment, whose name stands
in the address. Searches that stand in the address too would put the shared state aside.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow import MlflowClient

from timewalk.evaluation import entry_of
from timewalk.report.mlflow_records import Tree, metric_name

CURRENT = "tags.timewalk.superseded = 'false'"
KEY = "timewalk"
TAG = f"mlflow.sharedViewState.{KEY}"
FIRST = ("tags.`timewalk.method`", "tags.`timewalk.seed`")
MOST = 24
"""columns: a tag holds 5000 characters, and a screen fewer columns"""


def address(server: str, experiment: str) -> str:
    """Return where the runs of an experiment are shown.

    Args:
        server: its address.
        experiment: its number.
    """
    words = f"workflowType=machine_learning&viewStateShareKey={KEY}"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{words}"


def write_view(client: MlflowClient, experiment: str, trees: Sequence[Tree]) -> None:
    """Write how the list of runs opens; columns that it has already are kept.

    Args:
        client: of the store.
        experiment: number of the experiment.
        trees: runs whose evaluations get columns.
    """
    before = client.get_experiment(experiment).tags.get(TAG)
    known = json.loads(before)["selectedColumns"] if before else []
    columns = list(dict.fromkeys([*FIRST, *known, *_columns(trees)]))[:MOST]
    view: dict[str, Any] = {"searchFilter": CURRENT, "selectedColumns": columns}
    if (text := json.dumps(view)) != before:
        client.set_experiment_tag(experiment, TAG, text)


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
