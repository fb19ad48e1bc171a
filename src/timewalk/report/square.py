"""The square of methods and evaluations: results to rows, columns and cells.

A row is a run, or runs whose configurations differ only by their seed. A column is a metric of an
evaluation under one protocol on one split of one data set: two protocols never share one. Cells of
a column are comparable, so that the best of them are ranked and the rows to beat subtracted.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from timewalk.artefacts import read_json
from timewalk.errors import UserError
from timewalk.evaluation import entry_of
from timewalk.report.failures import failure, failures_before, logs_of
from timewalk.report.published import Published, published
from timewalk.report.rows import Row as Row
from timewalk.report.rows import make_rows

State = Literal["value", "no meaning", "missing", "failed", "not asked for"]
BASELINES = ("random", "pretrained")
"""methods whose rows are those to beat"""
DIGESTS = ("dataset_sha256", "train_dataset_sha256")
"""what of a result's provenance tells the content of its data"""
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
        mean: over the row's runs that have a value; None without any, where one is not finite, or
            where they were measured on data of other content.
        std: sample standard deviation; None of fewer than two values.
        values: of each run, where it is finite.
        samples: how many images, objects or videos were scored.
        rank: 1 for the best of a column, 2 for the second best of three or more; ties share a rank,
            and where all tie there is none.
        deltas: the mean less that of each row to beat, by that row's name: of rows with fresh
            weights those of the same architecture alone, if there are any.
        fresh: the first of those rows with fresh weights.
        published: what the method's paper reports for this column.
        state: whether there is a value, and if not, why.
        note: the sentence with which a job failed, or why the value is compared with no other.
        digests: of the data that each run was measured on, as far as they are known.
        comparable: whether all of the column was measured on data of the same content.
    """

    mean: float | None = None
    std: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    rank: Literal[1, 2] | None = None
    deltas: dict[str, float] = field(default_factory=dict)
    fresh: str | None = None
    published: Published | None = None
    state: State = "not asked for"
    note: str | None = None
    digests: list[dict[str, str]] = field(default_factory=list, repr=False)
    comparable: bool = True


@dataclass
class Square:
    """Rows, columns and the cell of each pair of the two.

    Attributes:
        rows: of runs.
        columns: of metrics.
        cells: by the row's name and the column.
        problems: by run and evaluation, the sentence with which what is missing has failed.
        unclear: by run, the sentences of jobs that have failed while something is missing of which
            nothing tells whether it needs them.
    """

    rows: list[Row]
    columns: list[Column]
    cells: dict[tuple[str, Column], Cell]
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    unclear: dict[str, list[str]] = field(default_factory=dict)

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
    rows = make_rows(found.results, places, asked)
    columns = [*_columns(found), *_never_done(found, asked)]
    made = Square(rows, columns, {(r.name, c): _cell(r, c, found) for r in rows for c in columns})
    _explain(made, found, None if planned is None else asked, root and logs_of(root))
    for column in columns:
        _compare(made, column)
    return made


class _Found:
    """Results, by run and group of columns."""

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self.results = results
        self.by_group = {(item["run"], _group(item)): item for item in results}
        self.done = {(item["run"], item["evaluation"]) for item in results}
        self.examples = {item["evaluation"]: item for item in results}

    def before(self, run: str, evaluation: str) -> list[str] | None:
        """Return the jobs between training and evaluation; None where no result of another run
        tells them."""
        if (example := self.examples.get(evaluation)) is None:
            return None
        needs = entry_of(kind_of(example)).needs
        if needs == "embeddings":
            return [f"embed-{run}-{example['dataset']}-{split}" for split in ("train", "test")]
        network = example.get("provenance", {}).get("settings", {}).get("network")
        if needs == "network":
            return [f"finetune-{run}-{network}"] if network else None
        return []


def _group(item: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return item["evaluation"], item["protocol"], item["dataset"], item["split"]


def read_result(path: Path) -> dict[str, Any]:
    """Read the JSON of a result, with the folder of its run beside its keys.

    The run has the name of its folder, which may have been copied or renamed.

    Raises:
        UserError: it is none.
    """
    result = read_json(path)
    if not isinstance(result, dict) or not result.keys() >= set(KEYS):
        raise UserError(f"{path} is no result of an evaluation; leave it out, or make it again.")
    return {**result, "run": path.absolute().parent.name, "folder": path.parent}


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


def decimals_of(values: Iterable[float | None]) -> int:
    """Return four decimals for a column of which no number is above 1 (tau, R2, losses), else two,
    as the field reports them."""
    found = [abs(value) for value in values if value is not None and math.isfinite(value)]
    return 4 if found and max(found) <= 1 and any(value % 1 for value in found) else 2


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
    given = {item["run"]: item["metrics"][column.metric] for item in held}
    numbers = {run: float(value) for run, value in given.items() if value is not None}
    values = {run: value for run, value in numbers.items() if math.isfinite(value)}
    cell = Cell(
        values=values,
        samples=max((item["samples"] for item in held), default=0),
        published=_published(row, column, held),
        state="no meaning" if held else "not asked for",
        digests=[_digests(item) for item in held],
    )
    if _differ(cell.digests):
        cell.comparable = False
        cell.note = (
            f"{column.evaluation}: the runs of {row.name} have no mean, for their results on "
            f"{column.dataset} are of data of other content; make the older ones again."
        )
    # A mean that leaves out a run that has diverged would be too good.
    elif values and len(values) == len(numbers):
        cell.mean, cell.state = statistics.fmean(values.values()), "value"
        cell.std = statistics.stdev(values.values()) if len(values) > 1 else None
    return cell


def _published(row: Row, column: Column, held: Sequence[Mapping[str, Any]]) -> Published | None:
    """Return the published figure beside a result; a result says of what kind its set is."""
    kinds = {item.get("provenance", {}).get("dataset_kind") for item in held}
    if len(kinds) != 1 or None in kinds:
        return None
    place = {"protocol": column.protocol, "dataset": column.dataset, "metric": column.metric}
    return published(row.method, row.encoder, kind=str(*kinds), **place)


def _digests(item: Mapping[str, Any]) -> dict[str, str]:
    origin = item.get("provenance", {})
    return {key: origin[key] for key in DIGESTS if origin.get(key)}


def _differ(digests: Iterable[Mapping[str, str]]) -> bool:
    """Return whether any two differ in what is known of both."""
    known = {tuple(sorted(one.items())): one for one in digests}.values()
    return any(_other(a, b) for a, b in combinations(known, 2))


def _other(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
    return any(a[key] != b[key] for key in a.keys() & b.keys())


def _explain(
    made: Square, found: _Found, asked: Mapping[str, Sequence[str]] | None, logs: Path | None
) -> None:
    """Say why there is nothing of some runs."""
    names = dict.fromkeys(column.evaluation for column in made.columns)
    for run in [run for row in made.rows for run in row.runs] if logs else ():
        for name in names if asked is None else asked.get(run, ()):
            if logs and (run, name) not in found.done:
                _look_up(made, found, logs, run, name)
    runs = {row.name: row.runs for row in made.rows}
    for (row, column), cell in made.cells.items():
        pairs = [(run, column.evaluation) for run in runs[row]]
        said = [made.problems[pair] for pair in pairs if pair in made.problems]
        missing = any(
            pair not in found.done and pair[1] in (asked or {}).get(pair[0], ()) for pair in pairs
        )
        cell.note = said[0] if said else cell.note
        if cell.state == "not asked for" and (said or missing):
            cell.state = "failed" if said else "missing"


def _look_up(made: Square, found: _Found, logs: Path, run: str, name: str) -> None:
    """Find the log of the job for which a result is missing."""
    before = found.before(run, name)
    if sentence := failure(logs, run, name, before or ()):
        made.problems[run, name] = sentence
    elif before is None and run not in made.unclear:
        others = [other for row in made.rows for other in row.runs if other != run]
        if sentences := failures_before(logs, run, others):
            made.unclear[run] = sentences


def _compare(made: Square, column: Column) -> None:
    """Rank the cells of a column and subtract the rows to beat."""
    filled = {row.name: made.cell(row, column) for row in made.rows}
    means = {name: cell.mean for name, cell in filled.items() if cell.mean is not None}
    content = {name: filled[name].digests for name in means}
    mixed = _differ(digests for known in content.values() for digests in known)
    there = [row for row in made.rows if row.name in means]
    for row in there:
        filled[row.name].deltas = {
            other: means[row.name] - means[other]
            for other in _to_beat(row, there)
            if not (mixed and _differ(content[row.name] + content[other]))
        }
        if row.method != "random":
            fresh = (other.name for other in there if other.method == "random")
            filled[row.name].fresh = next((x for x in fresh if x in filled[row.name].deltas), None)
    if not mixed and len(means) > 1 and column.ranked:
        _rank(column, {name: filled[name] for name in means})
    for name in means if mixed else ():
        filled[name].comparable = False
        filled[name].note = filled[name].note or (
            f"{column.evaluation}: not ranked, for the results on {column.dataset} are of data of "
            "other content; make the older ones again."
        )


def _to_beat(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return the names of the rows that a row has to beat: of those with fresh weights the ones of
    the same architecture, if there are any."""
    others = [other for other in rows if other.method in BASELINES and other.name != row.name]
    same = [other for other in others if _architecture(other) == _architecture(row)]
    fresh = any(other.method == "random" for other in same)
    return [
        other.name for other in others if other.method != "random" or not fresh or other in same
    ]


def _architecture(row: Row) -> object:
    return row.encoder.get("name")


def _rank(column: Column, cells: Mapping[str, Cell]) -> None:
    """Rank cells by their means as they are printed: what reads the same shares a rank.

    Where all read the same none is best, and the worse of two is no second.
    """
    decimals = decimals_of(cell.mean for cell in cells.values())
    means = {n: round(cell.mean, decimals) for n, cell in cells.items() if cell.mean is not None}
    best = sorted(set(means.values()), reverse=not column.lower_is_better)
    if len(best) < 2:
        return
    for name, mean in means.items():
        if mean == best[0]:
            cells[name].rank = 1
        elif mean == best[1] and len(means) > 2:
            cells[name].rank = 2
