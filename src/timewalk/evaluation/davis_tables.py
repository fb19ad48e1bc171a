"""The tables of DAVIS 2017 scores: the official CSV files, and a JSON with every frame's value.

Source: the official evaluation of DAVIS 2017: the CSV files are its own, byte for byte, except that
they are never read again in place of a computation. Scores of a set of which a sequence failed have
no global figures, and their files are called `partial_`.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timewalk.artefacts import write_json, write_text
from timewalk.metrics.davis import Statistics

METRICS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
OBJECT_HEADER = ("Sequence", "J-Mean", "F-Mean")


@dataclass(frozen=True)
class ObjectScores:
    """One row of the tables.

    Attributes:
        name: ``<sequence>_<row>``, rows from 1: the label of the official tables.
        object: the id of the object in the truth. In the unsupervised task the rows are in the
            order of the proposals, and it may differ from the row.
        proposal: the id in the result that was compared with it.
        J: float64 (T,), region similarity of each frame.
        F: float64 (T,), contour accuracy of each frame.
        J_statistics: of J.
        F_statistics: of F.
    """

    name: str
    object: int
    proposal: int
    J: np.ndarray
    F: np.ndarray
    J_statistics: Statistics
    F_statistics: Statistics


@dataclass(frozen=True)
class SequenceScores:
    """The objects of one sequence, in the order of the official tables, and the scored frames."""

    sequence: str
    frames: tuple[str, ...]
    objects: tuple[ObjectScores, ...]


@dataclass(frozen=True)
class Scores:
    """The scores of a folder of results.

    Attributes:
        task: `semi-supervised` or `unsupervised`.
        subset: name of the set file.
        sequences: what could be scored, in the order of the set file.
        failures: sequence and sentence of each one that could not.
    """

    task: str
    subset: str
    sequences: tuple[SequenceScores, ...]
    failures: dict[str, str]

    def rows(self) -> list[ObjectScores]:
        """Return all objects of all sequences."""
        return [row for sequence in self.sequences for row in sequence.objects]

    def means(self) -> dict[str, float]:
        """Return the global figures by official name: means over objects, each counted once."""
        rows = self.rows()
        values = {}
        for letter in ("J", "F"):
            each = [getattr(row, f"{letter}_statistics") for row in rows]
            for name in ("mean", "recall", "decay"):
                column = [getattr(entry, name) for entry in each]
                values[f"{letter}-{name.capitalize()}"] = float(np.mean(column))
        values["J&F-Mean"] = (values["J-Mean"] + values["F-Mean"]) / 2
        return {name: values[name] for name in METRICS}


def write_csv(scores: Scores, folder: Path) -> list[Path]:
    """Write the official tables, three decimals each.

    Returns:
        the files written: `global_results-<set>.csv` and `per-sequence_results-<set>.csv`; with
        failures only `partial_per-sequence_results-<set>.csv`. Tables of an earlier run that no
        longer apply are deleted.
    """
    overall = folder / f"global_results-{scores.subset}.csv"
    objects = folder / f"per-sequence_results-{scores.subset}.csv"
    partial = folder / f"partial_{objects.name}"
    if scores.failures:
        stale, written = [overall, objects], [partial]
    else:
        stale, written = [partial], [overall, objects]
        write_text(overall, _csv([METRICS, _three(scores.means().values())]))
    rows = [[row.name, *_three(_means(row))] for row in scores.rows()]
    write_text(written[-1], _csv([OBJECT_HEADER, *rows]))
    for path in stale:
        path.unlink(missing_ok=True)
    return written


def _means(row: ObjectScores) -> tuple[float, float]:
    return row.J_statistics.mean, row.F_statistics.mean


def _csv(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _three(values: Iterable[float]) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.3f}" for value in values]


def tables(scores: Scores) -> str:
    """Return both tables as text, in full precision; without the global one after failures."""
    parts = []
    if not scores.failures:
        means = scores.means()
        table = _aligned([list(means), [repr(value) for value in means.values()]])
        parts += [f"Global results, {scores.task}, {scores.subset}", table]
    rows = [[row.name, *map(repr, _means(row))] for row in scores.rows()]
    parts += ["Results by object", _aligned([list(OBJECT_HEADER), *rows])]
    return "\n".join(parts)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def write_scores(scores: Scores, folder: Path) -> Path:
    """Write every value in full as `davis_<task>-<set>.json`, with faults as `partial_davis_...`.

    Returns:
        the file: global figures (null with faults); for each sequence its frames and objects, each
        with its true id, its proposal, and J and F as statistics and by frame; the faults.
    """
    whole = folder / f"davis_{scores.task}-{scores.subset}.json"
    partial = folder / f"partial_{whole.name}"
    path, stale = (partial, whole) if scores.failures else (whole, partial)
    write_json(
        path,
        {
            "task": scores.task,
            "set": scores.subset,
            "global": None if scores.failures else scores.means(),
            "sequences": {entry.sequence: _sequence_json(entry) for entry in scores.sequences},
            "failures": scores.failures,
        },
    )
    stale.unlink(missing_ok=True)
    return path


def _sequence_json(entry: SequenceScores) -> dict[str, Any]:
    objects = [
        {
            "name": row.name,
            "object": row.object,
            "proposal": row.proposal,
            "J": {**asdict(row.J_statistics), "frames": row.J.tolist()},
            "F": {**asdict(row.F_statistics), "frames": row.F.tolist()},
        }
        for row in entry.objects
    ]
    return {"frames": list(entry.frames), "objects": objects}
