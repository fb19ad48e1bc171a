"""Runs side by side: settings that differ, metrics with their differences, curves.

Figures are subtracted only where protocol and data are the same; where not, both are named.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timewalk.artefacts import read_json
from timewalk.config.changes import flat
from timewalk.errors import UserError
from timewalk.evaluation import entry_of
from timewalk.report.runs import Run, read_curve, read_run
from timewalk.report.square import kind_of, natural
from timewalk.report.tables import DASH, Table, Text, decimals_of
from timewalk.report.terminal import plain_table, wrapped

DIGESTS = {
    "dataset_sha256": "labelled set",
    "train_dataset_sha256": "training set",
    "frames_sha256": "frames",
}
"""what of a result's data is compared"""
NOT_CURVES = {"step", "epoch", "time"}

Result = Mapping[str, Any]


def compare_runs(folders: Sequence[Path], width: int | None = None) -> str:
    """Return what differs between runs and what came of it.

    Args:
        folders: of two or more runs; the others are subtracted from the first, as the rows to beat
            are in :func:`timewalk.report.show.show_run`.
        width: columns; default: the terminal's.
    """
    runs = [read_run(folder) for folder in folders]
    names = _names(folders)
    parts = [_settings(runs, names, width)]
    results = [{(r := read_json(path))["evaluation"]: r for path in run.results} for run in runs]
    for evaluation in dict.fromkeys(name for known in results for name in known):
        parts.append(_evaluation([known.get(evaluation) for known in results], names, width))
    curves = [read_curve(folder) for folder in folders]
    if any(curves):
        parts.append(_curves(curves, names, width))
    return "\n\n".join(parts)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the runs' names; their paths where two have the same name."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _settings(runs: Sequence[Run], names: Sequence[str], width: int | None) -> str:
    """Return the table of settings that differ."""
    known = [dict(flat(run.config)) for run in runs]
    blank = [name for name, one in zip(names, known, strict=True) if not one]
    if blank:
        return wrapped(f"The settings of {', '.join(blank)} are not known yet.", width)
    keys = [key for key in dict.fromkeys(k for one in known for k in one) if _differ(known, key)]
    if not keys:
        return "Settings: the same."
    shared = [key for key in keys if all(key in one for one in known)]
    rows = [[Text(key), *(Text(_value(one[key])) for one in known)] for key in shared]
    left = tuple(range(1, len(names) + 1))
    notes = _alone(known, names, [key for key in keys if key not in shared])
    table = Table("Settings that differ", ["key", *names], rows, notes, names=1, left=left)
    return plain_table(table, width)


def _differ(known: Sequence[Mapping[str, Any]], key: str) -> bool:
    first, *others = [one.get(key, KeyError) for one in known]
    return any(other != first for other in others)


def _alone(
    known: Sequence[Mapping[str, Any]], names: Sequence[str], keys: Sequence[str]
) -> list[str]:
    """Return sentences on the settings that some runs do not have, by the runs that have them."""
    owners: dict[str, list[str]] = {}
    for key in keys:
        have = ", ".join(name for name, one in zip(names, known, strict=True) if key in one)
        owners.setdefault(have, []).append(key)
    return [f"of {have} alone: {', '.join(found)}" for have, found in owners.items()]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _evaluation(found: Sequence[Result | None], names: Sequence[str], width: int | None) -> str:
    """Return the table of an evaluation's metrics: a metric a line, a run a column."""
    there = [result for result in found if result is not None]
    first = there[0]
    entry = entry_of(kind_of(first))
    against = found[0]
    same = [against is not None and r is not None and not _other(against, r) for r in found]
    metrics = sorted({name for result in there for name in result["metrics"]}, key=natural)
    rows = []
    for metric in metrics:
        values = [None if r is None else r["metrics"].get(metric) for r in found]
        mark = "↓" if entry.lower_is_better(metric) and entry.is_score(metric) else ""
        rows.append([Text(metric + mark), *map(Text, _figures(values, same))])
    deltas = [f"{names[0]} - {name}" for name in names[1:]]
    notes = [
        f"not subtracted: {note}"
        for name, result in zip(names[1:], found[1:], strict=True)
        if against is not None and result is not None
        for note in _other(against, result, names[0], name)
    ]
    notes += _not_known(found, names)
    notes += [f"{n}: no result" for n, r in zip(names, found, strict=True) if r is None]
    title = f"{first['evaluation']}: {_where(first)}"
    return plain_table(Table(title, ["metric", *names, *deltas], rows, notes, names=1), width)


def _figures(values: Sequence[float | None], same: Sequence[bool]) -> list[str]:
    """Return the texts of values and of the first one's differences to the comparable ones."""
    decimals, (first, *others) = decimals_of(values), values
    texts = [f"{value:.{decimals}f}" if _finite(value) else DASH for value in values]
    for value, comparable in zip(others, same[1:], strict=True):
        if comparable and value is not None and first is not None and _finite(first - value):
            texts.append(f"{first - value:+.{decimals}f}")
        else:
            texts.append(DASH)
    return texts


def _where(result: Result) -> str:
    return (
        f"{result['protocol']} on {result['dataset']} ({result['split']}, "
        f"{result['samples']} samples)"
    )


def _other(a: Result, b: Result, name_a: str = "", name_b: str = "") -> list[str]:
    """Return sentences on why figures of two results may not be compared."""
    found = [
        f"{name_a} has {what} {a[key]}, {name_b} has {b[key]}"
        for key, what in (("protocol", "protocol"), ("dataset", "data set"), ("split", "split"))
        if a[key] != b[key]
    ]
    before, after = a.get("provenance", {}), b.get("provenance", {})
    for key, what in DIGESTS.items():
        if before.get(key) and after.get(key) and before[key] != after[key]:
            found.append(f"the {what} of {name_a} and {name_b} are of other content")
    return found


def _not_known(found: Sequence[Result | None], names: Sequence[str]) -> list[str]:
    """Return sentences on the data of which some results say nothing, while others do."""
    notes = []
    for key, what in DIGESTS.items():
        said = {
            name: bool(result.get("provenance", {}).get(key))
            for name, result in zip(names, found, strict=True)
            if result is not None
        }
        silent = [name for name, known in said.items() if not known]
        if silent and len(silent) < len(said):
            notes.append(f"not known: the content of the {what} of {', '.join(silent)}")
    return notes


def _curves(
    curves: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str], width: int | None
) -> str:
    """Return the table of the last and the least value of each curve."""
    keys = dict.fromkeys(k for curve in curves for record in curve for k in record)
    rows = []
    for key in (key for key in keys if key not in NOT_CURVES and not key.startswith("epoch_")):
        texts = []
        for curve in curves:
            values = [record[key] for record in curve if _finite(record.get(key))]
            texts += [f"{values[-1]:.4g}", f"{min(values):.4g}"] if values else [DASH, DASH]
        rows.append([Text(key), *map(Text, texts)])
    header = ["curve", *(f"{name} {what}" for name in names for what in ("last", "min"))]
    return plain_table(Table("Curves of the trainings", header, rows, names=1), width)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw_curves(folders: Sequence[Path], output: Path) -> None:
    """Draw the losses of runs over their steps into one picture.

    Raises:
        UserError: matplotlib is missing, none has a curve, or the suffix is unknown.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise UserError(
            f"{output}: drawing needs the Python package matplotlib; pip install matplotlib."
        ) from None
    from timewalk.artefacts import atomic_path

    known = Figure().canvas.get_supported_filetypes()
    if output.suffix.lstrip(".") not in known:
        raise UserError(f"{output}: give it a suffix that can be drawn, such as .png or .pdf.")
    curves = [
        [(r["step"], r["loss"]) for r in read_curve(folder) if _finite(r.get("loss"))]
        for folder in folders
    ]
    if not any(curves):
        raise UserError(f"{output}: none of these runs has a curve; name one that was trained.")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, curve in zip(_names(folders), curves, strict=True):
        if curve:
            axes.plot(*zip(*curve, strict=True), label=name, linewidth=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=150, format=output.suffix.lstrip("."))
