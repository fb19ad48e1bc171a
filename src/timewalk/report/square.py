"""The square of methods and evaluations: results to rows, columns and cells.

A row is a run, or runs whose configurations differ only by their seed. A column is a metric of an
evaluation under one protocol on one split of one data set: two protocols never share one. Cells of
a column are comparable, so that the best of them are ranked and the rows to beat subtracted.
"""

import re
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from timewalk.artefacts import read_json, sha256_json
from timewalk.config.changes import decisive
from timewalk.errors import UserError
from timewalk.evaluation import entry_of
from timewalk.report.failures import failure, logs_of
from timewalk.report.published import Published, published

State = Literal["value", "no meaning", "missing", "failed", "not asked for"]
BASELINES = ("random", "pretrained")
"""methods whose rows are those to beat"""
KEYS = ("run", "method", "evaluation", "protocol", "dataset", "split", "metrics", "samples")


@dataclass(frozen=True)
class Column:
    """A metric of an evaluation under one protocol on one split of one data set.

    Attributes:
        evaluation: its name in the configuration.
        kind: of the evaluation, such as `knn`.
        protocol: named variant; empty for an evaluation of which there is no result at all, whose
            kind, data set, split and metric are then empty, too.
        dataset: the labelled set.
        split: of that set.
        metric: name of the number.
        lower_is_better: whether less is better.
        headline: whether it is the one number that stands for the evaluation.
        ranked: whether it is a score, of which the best are marked.
    """

    evaluation: str
    kind: str
    protocol: str
    dataset: str
    split: str
    metric: str
    lower_is_better: bool = False
    headline: bool = False
    ranked: bool = True

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Evaluation, protocol, data set and split: what the columns of one table share."""
        return self.evaluation, self.protocol, self.dataset, self.split


@dataclass
class Cell:
    """What a row has in a column.

    Attributes:
        mean: over the row's runs that have a value; None without any.
        std: sample standard deviation; None of fewer than two values.
        values: of each run.
        samples: how many images, objects or videos were scored.
        rank: 1 for the best of a column, 2 for the second best; ties share a rank.
        deltas: the mean less that of each row to beat, by that row's name.
        published: what the method's paper reports for this column.
        state: whether there is a value, and if not, why.
        note: the sentence with which a job failed.
    """

    mean: float | None = None
    std: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    rank: Literal[1, 2] | None = None
    deltas: dict[str, float] = field(default_factory=dict)
    published: Published | None = None
    state: State = "not asked for"
    note: str | None = None


@dataclass
class Row:
    """A run, or runs that differ only by their seed.

    Attributes:
        name: the run's, or what the names of its runs have in common.
        method: what they were trained with.
        runs: their names.
        seeds: of each of them, where known.
        encoder: settings of their encoder: `name` of the architecture, `weights` and the rest.
    """

    name: str
    method: str
    runs: list[str]
    seeds: list[int]
    encoder: dict[str, Any] = field(default_factory=dict)


@dataclass
class Square:
    """Rows, columns and the cell of each pair of the two."""

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[str, Column], Cell]

    def cell(self, row: Row | str, column: Column) -> Cell:
        """Return a row's cell in a column."""
        return self.cells[row if isinstance(row, str) else row.name, column]

    def headlines(self) -> list[Column]:
        """Return the columns that stand for their evaluations."""
        return [column for column in self.columns if column.headline]


def square(
    results: Sequence[Path],
    planned: Mapping[str, Sequence[str]] | None = None,
    folder: Path | None = None,
) -> Square:
    """Return the square of some results.

    Args:
        results: their JSON files, ``<results folder>/<run>/<evaluation>.json``.
        planned: names of the evaluations that each run was asked for, so that what is missing is
            known; None: nothing is.
        folder: of the results, where there may be none yet; default: of the first one.

    Raises:
        UserError: a file is no result of an evaluation.
    """
    found = _Found([read_result(path) for path in dict.fromkeys(results)])
    root = folder or (results[0].parent.parent if results else None)
    asked = {run: list(names) for run, names in (planned or {}).items()}
    places = {run: root / run for run in asked} if root else {}
    places |= {item["run"]: item["folder"] for item in found.results}
    rows = _rows(found, places, asked)
    columns = [*_columns(found), *_never_done(found, asked)]
    failures = _Failures(root and logs_of(root))
    cells = {}
    for row in rows:
        for column in columns:
            cell = cells[row.name, column] = _cell(row, column, found)
            _explain(cell, row, column, found.done, None if planned is None else asked, failures)
    made = Square(rows, columns, cells)
    for column in columns:
        _compare(made, column)
    return made


class _Found:
    """Results, by run and group of columns."""

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self.results = results
        self.by_group = {(item["run"], _group(item)): item for item in results}
        self.done = {(item["run"], item["evaluation"]) for item in results}


class _Failures:
    """Sentences of failed jobs, each log read once."""

    def __init__(self, logs: Path | None) -> None:
        self.logs = logs
        self.known: dict[tuple[str, str], str | None] = {}

    def of(self, run: str, evaluation: str) -> str | None:
        if self.logs is None:
            return None
        if (run, evaluation) not in self.known:
            self.known[run, evaluation] = failure(self.logs, run, evaluation)
        return self.known[run, evaluation]


def _group(item: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return item["evaluation"], item["protocol"], item["dataset"], item["split"]


def read_result(path: Path) -> dict[str, Any]:
    """Read the JSON of a result, with the folder of its run beside its keys.

    Raises:
        UserError: it is none.
    """
    result = read_json(path)
    if not isinstance(result, dict) or not result.keys() >= set(KEYS):
        raise UserError(f"{path} is no result of an evaluation; leave it out, or make it again.")
    return {**result, "folder": path.parent}


def result_files(folder: Path) -> list[Path]:
    """Return the results among the JSON files of a run's folder, in order of their names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if isinstance(content, dict) and content.keys() >= set(KEYS):
            found.append(path)
    return found


def kind_of(result: Mapping[str, Any]) -> str:
    """Return the kind of a result's evaluation; its name where the result does not say."""
    settings = result.get("provenance", {}).get("settings", {})
    return str(settings.get("kind", result["evaluation"]))


def natural(name: str) -> list[tuple[int, str]]:
    """Order names by the numbers in them: k5 before k10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _rows(
    found: _Found, places: Mapping[str, Path], asked: Mapping[str, Sequence[str]]
) -> list[Row]:
    """Return the rows in the order of the plan, then of the results."""
    about = {item["run"]: item for item in reversed(found.results)}
    runs = list(dict.fromkeys([*asked, *(item["run"] for item in found.results)]))
    groups: dict[tuple[str, int], list[Row]] = {}
    # By name, so that the order of the results does not matter.
    for run in sorted(runs):
        key, row = _row(run, places.get(run), about.get(run, {}))
        number = 0
        # Two runs of one seed are no sample of seeds.
        while any(row.seeds == other.seeds for other in groups.get((key, number), [])):
            number += 1
        groups.setdefault((key, number), []).append(row)
    rows: list[Row] = []
    for members in sorted(groups.values(), key=lambda rows: min(runs.index(r.name) for r in rows)):
        names = [member.name for member in members]
        seeds = [seed for member in members for seed in member.seeds]
        name = _common_name(names, {*runs, *(row.name for row in rows)} - {*names})
        rows.append(Row(name, members[0].method, names, seeds, members[0].encoder))
    return rows


def _row(run: str, folder: Path | None, result: Mapping[str, Any]) -> tuple[str, Row]:
    """Return a digest of all that a run has in common with those of other seeds, and its row."""
    config, inputs = _configuration(folder)
    seed = config.get("seed", result.get("provenance", {}).get("training", {}).get("seed"))
    method = str(config.get("method") or result.get("method") or "")
    same = {k: v for k, v in decisive(config).items() if k != "seed"} if config else run
    row = Row(run, method, [run], [] if seed is None else [seed], dict(config.get("encoder", {})))
    return sha256_json([same, inputs]), row


def _configuration(folder: Path | None) -> tuple[dict[str, Any], Any]:
    """Return a run's configuration and the digests of its data; empty where they are not known."""
    if folder is not None and (folder / "encoder.json").is_file():
        origin = read_json(folder / "encoder.json").get("provenance", {})
        if isinstance(origin.get("config"), dict):
            return origin["config"], sorted(origin.get("inputs", {}).items())
    if folder is not None and (folder / "config.json").is_file():
        return read_json(folder / "config.json"), [str(folder)]
    return {}, []


def _common_name(runs: Sequence[str], taken: Container[str]) -> str:
    """Return what the names of runs begin with, without `seed` and separators at its end."""
    if len(runs) == 1:
        return runs[0]
    letters = takewhile(lambda same: len(set(same)) == 1, zip(*runs, strict=False))
    name = "".join(same[0] for same in letters)
    if name not in runs:
        name = re.sub(r"[_-]+(seed|s)?[_-]*\d*[_-]*$", "", name)
    return runs[0] if not name or name in taken else name


def _columns(found: _Found) -> list[Column]:
    """Return the columns in the order of the results, metrics by the numbers in them."""
    metrics: dict[tuple[str, str, str, str], dict[str, None]] = {}
    for item in found.results:
        metrics.setdefault(_group(item), {}).update(dict.fromkeys(item["metrics"]))
    kinds = {_group(item): kind_of(item) for item in found.results}
    columns = []
    for group, names in metrics.items():
        evaluation, protocol, dataset, split = group
        entry = entry_of(kinds[group])
        headline = entry.headline_of(sorted(names, key=natural))
        columns += [
            Column(
                *(evaluation, kinds[group], protocol, dataset, split, metric),
                lower_is_better=entry.lower_is_better(metric),
                headline=metric == headline,
                ranked=entry.is_score(metric),
            )
            for metric in sorted(names, key=natural)
        ]
    return columns


def _never_done(found: _Found, asked: Mapping[str, Sequence[str]]) -> list[Column]:
    """Return a column for each evaluation that was asked for and of which there is no result."""
    done = {evaluation for _, evaluation in found.done}
    names = dict.fromkeys(name for names in asked.values() for name in names)
    return [Column(n, "", "", "", "", "", headline=True) for n in names if n not in done]


def _cell(row: Row, column: Column, found: _Found) -> Cell:
    """Return what the runs of a row have in a column."""
    items = [found.by_group.get((run, column.group)) for run in row.runs]
    held = [item for item in items if item is not None and column.metric in item["metrics"]]
    numbers = {item["run"]: item["metrics"][column.metric] for item in held}
    values = {run: float(value) for run, value in numbers.items() if value is not None}
    place = {"protocol": column.protocol, "dataset": column.dataset, "metric": column.metric}
    return Cell(
        mean=statistics.fmean(values.values()) if values else None,
        std=statistics.stdev(values.values()) if len(values) > 1 else None,
        values=values,
        samples=max((item["samples"] for item in held), default=0),
        published=published(row.method, row.encoder, **place),
        state="value" if values else "no meaning" if held else "not asked for",
    )


def _explain(
    cell: Cell,
    row: Row,
    column: Column,
    done: set[tuple[str, str]],
    asked: Mapping[str, Sequence[str]] | None,
    failures: _Failures,
) -> None:
    """Say why there is nothing of some of a row's runs."""
    name = column.evaluation
    missing = [
        run
        for run in row.runs
        if (run, name) not in done and (asked is None or name in asked.get(run, ()))
    ]
    sentences = [sentence for run in missing if (sentence := failures.of(run, name))]
    cell.note = sentences[0] if sentences else None
    if cell.state == "not asked for" and sentences:
        cell.state = "failed"
    elif cell.state == "not asked for" and missing and asked is not None:
        cell.state = "missing"


def _compare(made: Square, column: Column) -> None:
    """Rank the cells of a column and subtract the rows to beat."""
    filled = {row.name: made.cell(row, column) for row in made.rows}
    means = {name: cell.mean for name, cell in filled.items() if cell.mean is not None}
    baselines = [row.name for row in made.rows if row.method in BASELINES and row.name in means]
    for name, mean in means.items():
        others = [other for other in baselines if other != name]
        filled[name].deltas = {other: mean - means[other] for other in others}
    if len(means) < 2 or not column.ranked:
        return
    best = sorted(set(means.values()), reverse=not column.lower_is_better)[:2]
    for name, mean in means.items():
        if mean in best:
            filled[name].rank = 1 if mean == best[0] else 2
