"""What the page shows, read from files: the square, runs, curves, pictures, what is missing."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from timewalk.artefacts import read_json
from timewalk.report.failures import failure, logs_of
from timewalk.report.page_html.curves import Curves, read_curves
from timewalk.report.page_html.media import EACH, Gallery
from timewalk.report.square import Square, read_result, result_files, square

TRAINING = "training frames"
"""source of the contact sheets of the data that a run was trained on"""


@dataclass
class Problem:
    """A result that was asked for and is not there.

    Attributes:
        run: its run.
        evaluation: its evaluation.
        sentence: how its job, or the training before it, has failed; None: not done yet.
    """

    run: str
    evaluation: str
    sentence: str | None


@dataclass
class Content:
    """All of the page.

    Attributes:
        folder: of results.
        square: rows and columns.
        results: each result by run and evaluation, with `path` and `folder`.
        abouts: content of each run's ``encoder.json``; empty of a run that is not trained.
        problems: what was asked for and is missing.
        curves: of trainings and fine-tunings.
        gallery: pictures and videos.
        newest: when the newest result was written.
    """

    folder: Path
    square: Square
    results: dict[tuple[str, str], dict[str, Any]]
    abouts: dict[str, dict[str, Any]]
    problems: list[Problem]
    curves: list[Curves]
    gallery: Gallery
    newest: datetime | None
    planned: Mapping[str, Sequence[str]] = field(default_factory=dict)


def gather(folder: Path, planned: Mapping[str, Sequence[str]] | None = None) -> Content:
    """Read everything that there is of a folder of results.

    Args:
        folder: of results.
        planned: names of the evaluations that each run was asked for; None: what there is.

    Raises:
        UserError: a file is damaged.
    """
    files = _files(folder, planned)
    table = square(files, planned, folder)
    results = [{**read_result(path), "path": path} for path in files]
    by_pair = {(item["run"], item["evaluation"]): item for item in results}
    runs = [run for row in table.rows for run in row.runs]
    abouts = {run: _about(folder / run) for run in runs}
    return Content(
        folder,
        table,
        by_pair,
        abouts,
        _problems(folder, table, planned, by_pair),
        read_curves(folder, runs),
        _gallery(folder, runs, abouts, by_pair),
        _newest(files),
        planned or {},
    )


def _files(folder: Path, planned: Mapping[str, Sequence[str]] | None) -> list[Path]:
    if planned is None:
        runs = sorted(path.parent for path in folder.glob("*/encoder.json"))
        return [file for run in runs for file in result_files(run)]
    asked = (folder / run / f"{name}.json" for run, names in planned.items() for name in names)
    return [path for path in asked if path.is_file()]


def _about(run: Path) -> dict[str, Any]:
    file = run / "encoder.json"
    return dict(read_json(file)) if file.is_file() else {}


def _problems(
    folder: Path,
    table: Square,
    planned: Mapping[str, Sequence[str]] | None,
    done: Container[tuple[str, str]],
) -> list[Problem]:
    """Return what is not done of the plan; without a plan, what has failed."""
    logs = logs_of(folder)
    names = dict.fromkeys(column.evaluation for column in table.columns)
    asked = planned or {run: list(names) for row in table.rows for run in row.runs}
    found = [
        Problem(run, name, failure(logs, run, name) if logs else None)
        for run, evaluations in asked.items()
        for name in evaluations
        if (run, name) not in done
    ]
    return [problem for problem in found if planned or problem.sentence]


def _gallery(
    folder: Path,
    runs: Sequence[str],
    abouts: Mapping[str, Mapping[str, Any]],
    results: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Gallery:
    gallery = Gallery(folder)
    for run in runs:
        gallery.add(run, "figures", sorted((folder / run / "figures").glob("*.png")))
        for (of, name), result in results.items():
            if of == run:
                gallery.add(run, name, _spread(folder / run / x for x in result["artefacts"]))
        gallery.add(run, TRAINING, _contact_sheets(abouts[run]))
    return gallery


def _spread(files: Iterable[Path]) -> list[Path]:
    """Take files from each folder in turn, so that the first few are of all kinds."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    longest = max(map(len, folders.values()), default=0)
    return [found[n] for n in range(longest) for found in folders.values() if n < len(found)]


def _contact_sheets(about: Mapping[str, Any]) -> list[Path]:
    """Return the contact sheets of the blur that fed a training, where they still are."""
    sheets: list[Path] = []
    for manifest in about.get("provenance", {}).get("inputs", {}):
        shards = Path(manifest)
        if len(shards.parents) > 2 and len(sheets) < EACH:
            data = shards.parents[2]
            sheets += data.glob(f"blurred/{shards.stem}.png")
            sheets += sorted(data.glob(f"frames/{shards.parent.name}/{shards.stem}/*.png"))
    return sheets


def _newest(files: Sequence[Path]) -> datetime | None:
    times = [file.stat().st_mtime for file in files]
    return datetime.fromtimestamp(max(times), UTC) if times else None
