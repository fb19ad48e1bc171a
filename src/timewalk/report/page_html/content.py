"""What the page shows, read from files: the square, runs, curves, pictures, what is missing."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from timewalk.artefacts import read_json
from timewalk.report.page_html.curves import Curves, read_curves
from timewalk.report.page_html.media import EACH, Gallery
from timewalk.report.square import Square, read_result, result_files, square

TRAINING = "training frames"
"""source of the contact sheets of the data that a run was trained on"""
NOT_DONE = "Not done: its job has not run, still runs or was killed."
OLDER = "Not done: what lies there is of an older encoder."
UNCLEAR = "Not done, perhaps because a job before it has failed: "


@dataclass
class Problem:
    """A result that was asked for and is not there.

    Attributes:
        run: its run.
        evaluation: its evaluation.
        state: whether its job, or the training before it, has failed.
        why: a sentence.
        older: whether there is one of an older encoder.
    """

    run: str
    evaluation: str
    state: Literal["failed", "missing"]
    why: str
    older: bool = False


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
    runs = list(planned) if planned is not None else _runs(folder)
    abouts = {run: _about(folder / run) for run in runs}
    found = [{**read_result(path), "path": path} for path in _files(folder, runs, planned)]
    results = {_pair(item): item for item in found if not _older(item, abouts, folder)}
    older = {_pair(item) for item in found} - results.keys()
    asked = planned
    if asked is None:
        names = list(dict.fromkeys(item["evaluation"] for item in found))
        asked = dict.fromkeys(runs, names)
    files = [item["path"] for item in results.values()]
    table = square(files, asked, folder)
    problems = _problems(table, asked, results, older)
    if planned is None:
        _forget_unasked(table, older)
        problems = [problem for problem in problems if problem.state == "failed" or problem.older]
    return Content(
        folder,
        table,
        results,
        abouts,
        problems,
        read_curves(folder, runs),
        _gallery(folder, runs, abouts, results),
        _newest(files),
        planned or {},
    )


def _runs(folder: Path) -> list[str]:
    """Return the runs that have an encoder, or a training's log."""
    signs = ("encoder.json", "metrics.jsonl", "checkpoints/metrics.jsonl")
    places = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return [path.name for path in places if any((path / sign).is_file() for sign in signs)]


def _files(
    folder: Path, runs: Iterable[str], planned: Mapping[str, Sequence[str]] | None
) -> list[Path]:
    """Return the results that were asked for, in that order, and then what else the runs have: a
    single result may be made by its name."""
    asked = (
        folder / run / f"{name}.json" for run, names in (planned or {}).items() for name in names
    )
    there = (file for run in runs for file in result_files(folder / run))
    return list(dict.fromkeys([*(path for path in asked if path.is_file()), *there]))


def _about(run: Path) -> dict[str, Any]:
    file = run / "encoder.json"
    return dict(read_json(file)) if file.is_file() else {}


def _pair(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["run"], item["evaluation"]


def _older(item: Mapping[str, Any], abouts: Mapping[str, Mapping[str, Any]], folder: Path) -> bool:
    """Return whether a result is of an encoder that its run has no more."""
    about = abouts.get(item["run"], {})
    if not about:
        # A training that goes on: the encoder that was measured is deleted.
        return (folder / item["run"] / "checkpoints" / "metrics.jsonl").is_file()
    measured, now = item.get("provenance", {}).get("encoder_sha256"), about.get("sha256")
    return None not in (measured, now) and measured != now


def _forget_unasked(table: Square, older: Container[tuple[str, str]]) -> None:
    """Without a plan nobody knows that a result is missing, unless there was one before."""
    runs = {row.name: row.runs for row in table.rows}
    for (name, column), cell in table.cells.items():
        before = any((run, column.evaluation) in older for run in runs[name])
        if cell.state == "missing" and not before:
            cell.state = "not asked for"


def _problems(
    table: Square,
    asked: Mapping[str, Sequence[str]],
    done: Container[tuple[str, str]],
    older: Container[tuple[str, str]],
) -> list[Problem]:
    """Return what was asked for and is not done."""
    found = []
    for pair in ((run, name) for run, names in asked.items() for name in names):
        if pair in done:
            continue
        before, unclear = pair in older, table.unclear.get(pair[0])
        if pair in table.problems:
            found.append(Problem(*pair, "failed", table.problems[pair], before))
        else:
            why = UNCLEAR + " ".join(unclear) if unclear else OLDER if before else NOT_DONE
            found.append(Problem(*pair, "missing", why, before))
    return found


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
                files = [folder / run / file for file in result.get("artefacts", ())]
                gallery.add(run, name, _spread(files))
        gallery.add(run, TRAINING, _contact_sheets(abouts[run]))
    gallery.embed_videos()
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
