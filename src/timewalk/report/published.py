"""Figures that papers report, to stand beside ours: the table ``published.csv``.

A row says which runs a figure is for (method, architecture and weights of the encoder) and in which
column it belongs; all of these but the method are patterns as of a shell. The data set is that of
the paper by its kind: what timewalk draws in the layout of a published set has a kind of its own.
A figure stands beside ours whatever a run was trained on: `setting` says what the paper's was.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Published:
    """A figure of a paper.

    Attributes:
        value: in the unit of our metric.
        source: paper and table, and what it was trained on.
    """

    value: float
    source: str


@cache
def load_published() -> tuple[dict[str, str], ...]:
    """Return the rows of the table."""
    text = (files("timewalk.report") / "published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def published(method: str, encoder: Mapping[str, Any], **column: str) -> Published | None:
    """Return the figure of a paper for a run and a column; None where we know of none.

    Args:
        method: of the run.
        encoder: its settings: `name` of the architecture, and `weights`.
        column: protocol, dataset and metric, and the kind of the data set in `labelled`.
    """
    for row in load_published():
        place = {"encoder": str(encoder.get("name", "")), **column}
        place["weights"] = str(encoder.get("weights") or "")
        if row["method"] == method and all(fnmatchcase(place[k], row[k]) for k in place):
            source = f"{row['source']} ({row['setting']})" if row["setting"] else row["source"]
            return Published(float(row["value"]), source)
    return None
