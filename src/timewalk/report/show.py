"""What a finished suite or a run has to show, for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timewalk.artefacts import read_json
from timewalk.errors import UserError
from timewalk.report.runs import Run, age, read_curve, read_run, run_folders
from timewalk.report.square import Column, Row, Square, result_files, square
from timewalk.report.tables import DASH, Table, Text, cell_text, decimals_of, tables
from timewalk.report.terminal import LEGEND, plain_table, wrapped

SHOWN = {".png", ".gif", ".mp4"}
"""suffixes of pictures"""
GROUP = ("evaluation", "protocol", "dataset", "split")
"""keys of a result that its columns share"""


def show_suite(
    results: Path, planned: Mapping[str, Sequence[str]] | None = None, width: int | None = None
) -> str:
    """Return the tables of results, the paths of the pictures and the way to the dashboard.

    Args:
        results: folder of the results.
        planned: names of the evaluations asked of each run; None: not known.
        width: columns; default: the terminal's.

    Raises:
        UserError: the folder is missing, or holds no result.
    """
    if not results.is_dir() or (not (results / "summary.md").exists() and not _results(results)):
        raise UserError(
            f"{results / 'summary.md'} is missing: run the suite whose results_dir is {results} "
            "first."
        )
    made = square(_results(results), planned, results)
    parts = [plain_table(table, width) for table in tables(made)]
    jobs = [f"{run}: {sentence}" for run, said in made.unclear.items() for sentence in said]
    failed = dict.fromkeys([*made.problems.values(), *jobs])
    if failed:
        parts.append("\n".join(["Failed:", *(wrapped(f"  {x}", width, "    ") for x in failed)]))
    ends = [LEGEND, "", "Pictures:", *([f"  {path}" for path in pictures(results)] or ["  none"])]
    ends += ["", *_files(results)]
    return "\n\n".join([*parts, "\n".join(ends)])


def _results(results: Path) -> list[Path]:
    return [path for folder in run_folders(results) for path in result_files(folder)]


def _files(results: Path) -> list[str]:
    """Return where tables, page and dashboard are, of those that are there."""
    files = {
        "Tables": ("summary.csv", "summary.md", "summary.tex"),
        "Page": ("report.html",),
        "MLflow store": ("mlflow.db",),
    }
    there = {what: [n for n in names if (results / n).exists()] for what, names in files.items()}
    return [
        f"{what}: {', '.join(f'{results / n}' for n in names)}"
        for what, names in there.items()
        if names
    ]


def pictures(results: Path) -> list[Path]:
    """Return the pictures of all runs, each evaluation's first, and the contact sheets of the blur
    that fed them."""
    sheets: set[Path] = set()
    for about in results.glob("*/encoder.json"):
        for manifest in read_json(about)["provenance"].get("inputs", {}):
            shards = Path(manifest)
            if len(shards.parents) < 3:  # one's own, in no folder of data
                continue
            data = shards.parents[2]
            sheets.update(data.glob(f"blurred/{shards.stem}.png"))
            sheets.update(data.glob(f"frames/{shards.parent.name}/{shards.stem}/*.png"))
    drawn = set(results.glob("*/figures/*.png"))
    for result in results.glob("*/*.json"):
        content = read_json(result)
        artefacts = content.get("artefacts", []) if isinstance(content, dict) else []
        pngs = [result.parent / name for name in artefacts if name.endswith(".png")]
        drawn.update(pngs[:1])
    return [*sorted(sheets), *sorted(drawn)]


def show_run(folder: Path, width: int | None = None) -> str:
    """Return facts, metrics by evaluation, differences to the rows to beat, and pictures of a run.

    Args:
        folder: of the run; others beside it are what it is compared with.
        width: columns; default: the terminal's.
    """
    run = read_run(folder)
    made = square(_results(folder.parent))
    parts = ["\n".join(_facts(run, width))]
    row = next((row for row in made.rows if run.name in row.runs), None)
    groups: dict[tuple[str, str, str, str], list[Column]] = {}
    for column in made.columns if row else ():
        groups.setdefault(column.group, []).append(column)
    done = {tuple(read_json(path)[key] for key in GROUP) for path in run.results}
    for group, columns in groups.items():
        if row is not None and group in done:
            parts.append(plain_table(_evaluation(made, row, run.name, columns), width))
    parts.append(LEGEND if done else "No evaluation is finished.")
    drawn = _drawn(run)
    parts.append(
        "\n".join(["Pictures:", *(f"  {path}" for path in drawn)]) if drawn else "Pictures: none"
    )
    return "\n\n".join(parts)


def _facts(run: Run, width: int | None) -> list[str]:
    """Return lines of what a run is."""
    about = read_json(run.folder / "encoder.json") if run.state == "finished" else {}
    origin, encoder = about.get("provenance", {}), run.config.get("encoder", {})
    curve = read_curve(run.folder)
    facts: dict[str, Any] = {
        "method": run.config.get("method"),
        "data set": run.config.get("dataset"),
        "state": run.state if run.note is None else f"{run.state}: {run.note}",
        "steps": f"{run.step} of {run.steps or '?'}" if curve else None,
        "loss": _range(curve),
        "seed": run.config.get("seed"),
        "encoder": _encoder(encoder, about.get("architecture", {})),
        "started from": encoder.get("weights"),
        "trained on": origin.get("device"),
        "took": _took(curve),
        "code": _code(origin),
        "folder": run.folder,
    }
    card = run.folder / "card.md"
    facts["card"] = card if card.is_file() else None
    facts["fine-tuned"] = ", ".join(map(_tuned, run.finetunings)) or None
    return [
        run.name,
        *(wrapped(f"  {k:<13} {v}", width, " " * 16) for k, v in facts.items() if v is not None),
    ]


def _tuned(run: Run) -> str:
    said = run.state if run.note is None else f"{run.state}: {run.note}"
    return f"{run.folder.name} ({said}, {run.step} of {run.steps or '?'} steps)"


def _range(curve: Sequence[Mapping[str, Any]]) -> str | None:
    losses = [record["loss"] for record in curve if record.get("loss") is not None]
    if not losses:
        return None
    return f"{losses[0]:.4g} at first, {losses[-1]:.4g} at last, {min(losses):.4g} at least"


def _encoder(settings: Mapping[str, Any], architecture: Mapping[str, Any]) -> str | None:
    name = settings.get("name")
    keys = ("patch_size", "depth", "width", "heads", "image_size")
    shape = [f"{key.replace('_', ' ')} {architecture[key]}" for key in keys if key in architecture]
    return None if name is None else ", ".join([str(name), *shape])


def _took(curve: Sequence[Mapping[str, Any]]) -> str | None:
    times = [record["time"] for record in curve if "time" in record]
    return age(times[-1] - times[0]) if len(times) > 1 else None


def _code(origin: Mapping[str, Any]) -> str | None:
    if "timewalk" not in origin:
        return None
    commit = origin.get("git_commit")
    return f"timewalk {origin['timewalk']}" + (f", commit {commit[:12]}" if commit else "")


def _evaluation(made: Square, row: Row, run: str, columns: Sequence[Column]) -> Table:
    """Return the table of a run's metrics under one protocol: a metric a line."""
    cells = [made.cell(row, column) for column in columns]
    baselines = list(dict.fromkeys(name for cell in cells for name in cell.deltas))
    several, figures = len(row.runs) > 1, any(cell.published for cell in cells)
    header = ["metric", "value", *([f"{len(row.runs)} seeds"] if several else [])]
    header += [f"value - {name}" for name in baselines]
    header += ["published", "value - published"] if figures else []
    rows = []
    for column, cell in zip(columns, cells, strict=True):
        decimals = decimals_of([made.cell(other, column).mean for other in made.rows])
        own = cell.values.get(run)
        name = column.metric + ("↓" if column.lower_is_better and column.ranked else "")
        # The rank is that of the mean over seeds.
        texts = [Text(name), Text(_number(own, decimals), None if several else cell.rank)]
        texts += [cell_text(cell, decimals)] if several else []
        for other in baselines:
            mean = made.cell(other, column).mean if other in cell.deltas else None
            delta = None if own is None or mean is None else own - mean
            texts.append(Text(_number(delta, decimals, "+")))
        if figures:
            figure = cell.published.value if cell.published else None
            texts.append(Text(DASH if figure is None else f"{figure:g}"))
            less = None if own is None or figure is None else own - figure
            texts.append(Text(_number(less, decimals, "+")))
        rows.append(texts)
    first = columns[0]
    title = (
        f"{first.evaluation}: {first.protocol} on {first.dataset} ({first.split}, "
        f"{cells[0].samples} samples)"
    )
    sources = dict.fromkeys(cell.published.source for cell in cells if cell.published)
    notes = dict.fromkeys(cell.note for cell in cells if cell.note and not cell.comparable)
    return Table(title, header, rows, [*(f"published: {s}" for s in sources), *notes], names=1)


def _number(value: float | None, decimals: int, sign: str = "") -> str:
    return DASH if value is None else f"{value:{sign}.{decimals}f}"


def _drawn(run: Run) -> list[Path]:
    """Return the pictures of a run's training and evaluations."""
    drawn = [p for p in sorted((run.folder / "figures").glob("*")) if p.suffix in SHOWN]
    for result in run.results:
        names = read_json(result).get("artefacts", [])
        drawn += [run.folder / name for name in names if Path(name).suffix in SHOWN]
    return drawn
