"""The runs of a folder of results: how far each is, and how good."""

import fcntl
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from timewalk.addresses import public_settings
from timewalk.artefacts import read_json
from timewalk.check import check
from timewalk.config import Config
from timewalk.errors import UserError, nearest
from timewalk.report.failures import ended_by, last_attempt, logs_of
from timewalk.report.square import Square, result_files, square
from timewalk.report.tables import DASH, Table, Text, decimals_of
from timewalk.report.terminal import LEGEND, MARKS, plain_table, wrapped

State = Literal["finished", "training", "failed", "stopped", "not started"]
STEP = re.compile(r"step (\d+) of (\d+)")
AGES = ((86400, "d"), (3600, "h"), (60, "min"))
"""seconds of the units of ages"""


@dataclass
class Run:
    """What is known of a run, or of a fine-tuning of its encoder, from its files.

    Attributes:
        name: of the run and its folder, or `<run>/finetuned/<fine-tuning>`.
        folder: of its files.
        config: its settings, addresses without secrets; empty before its training begins.
        state: how far it is.
        step: steps done.
        steps: steps asked for; None where they are not known.
        loss: the newest.
        newest: time of the newest sign of it, in seconds since 1970; None without any.
        note: the sentence with which its training failed.
        results: files of its evaluations.
        log: of its training; None where the folder of logs is not known.
        finetunings: those of its encoder, begun or finished.
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    state: State = "not started"
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    newest: float | None = None
    note: str | None = None
    results: list[Path] = field(default_factory=list)
    log: Path | None = None
    finetunings: list["Run"] = field(default_factory=list)


def run_folders(results: Path) -> list[Path]:
    """Return the folders of runs, begun or finished, in order of their names.

    Raises:
        UserError: there is no such folder.
    """
    if not results.is_dir():
        raise UserError(
            f"{results} is no folder: run a suite whose results_dir it is, or name another one."
        )
    return sorted(folder for folder in results.iterdir() if is_run(folder))


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, begun or finished."""
    return any((folder / name).exists() for name in ("encoder.json", "config.json", "checkpoints"))


def find_run(word: str, results: Path) -> Path:
    """Return the folder of a run, given by its path or by its name.

    Raises:
        UserError: there is no such run, with the nearest name.
    """
    for folder in (results / word, Path(word)):
        if is_run(folder):
            # A run has the name of its folder, which `.` and `..` do not tell.
            return folder if folder.name not in ("", "..") else folder.resolve()
    known = [folder.name for folder in run_folders(results)] if results.is_dir() else []
    raise UserError(f"{word} is no run of {results} and no folder of one{nearest(word, known)}")


def read_run(folder: Path) -> Run:
    """Return what a run's files say, and those of its fine-tunings."""
    run = Run(folder.name, folder, results=result_files(folder))
    _read(run, "encoder.json", folder.parent, f"train-{folder.name}")
    tuned = sorted(place for place in folder.glob("finetuned/*") if _is_finetuning(place))
    for place in tuned:
        one = Run(f"{folder.name}/finetuned/{place.name}", place)
        _read(one, "network.json", folder.parent, f"finetune-{folder.name}-{place.name}")
        run.finetunings.append(one)
    return run


def _is_finetuning(folder: Path) -> bool:
    return (folder / "network.json").is_file() or (folder / "checkpoints").is_dir()


def _read(run: Run, card: str, results: Path, log: str) -> None:
    """Fill in what the files of a training say, and its log."""
    logs = logs_of(results)
    run.log = logs / f"{log}.log" if logs else None
    about = run.folder / card
    card_of = read_json(about) if about.is_file() else {}
    origin = card_of.get("provenance", {})
    places = (run.folder / "config.json", run.folder / "checkpoints" / "config.json")
    saved: dict[str, Any] = next((read_json(path) for path in places if path.is_file()), {})
    run.config = public_settings(origin.get("config") or saved)
    curve = read_curve(run.folder)
    last = curve[-1] if curve else {}
    run.loss = next((r["loss"] for r in reversed(curve) if r.get("loss") is not None), None)
    done = origin.get("steps") or card_of.get("steps")
    run.step = done or (last["step"] + 1 if "step" in last else 0)
    run.newest = max(filter(None, [last.get("time"), *map(_changed, [about])]), default=None)
    _state(run, finished=bool(origin))
    run.steps = run.step if origin else _steps_asked(run)


def _state(run: Run, *, finished: bool) -> None:
    """Find out how far a run is: a training holds the lock of its checkpoints."""
    if finished:
        run.state = "finished"
    elif locked(run.folder / "checkpoints" / "lock"):
        run.state = "training"
    elif run.log is not None and run.log.is_file() and (sentence := ended_by(run.log)):
        run.state, run.note = "failed", sentence
    elif run.newest is not None:
        run.state = "stopped"


def locked(path: Path) -> bool:
    """Return whether another process holds the lock of a file."""
    if not path.is_file():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a disk without locks: a training cannot be seen there
            return False
    return False


def _steps_asked(run: Run) -> int | None:
    """Return how many steps a training has: as its newest attempt counts them, or as configured."""
    if run.log is not None and run.log.is_file():
        found = STEP.findall(last_attempt(run.log))
        if found:
            return int(found[-1][1])
    steps = run.config.get("training", {}).get("max_steps")
    return int(steps) if steps else None


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a training, finished or not; a last line that is half written is left
    out."""
    places = (folder / "metrics.jsonl", folder / "checkpoints" / "metrics.jsonl")
    path = next((path for path in places if path.is_file() and path.stat().st_size), None)
    if path is None:
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete the line, or train the run again."
        ) from None


def _changed(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None


def age(seconds: float) -> str:
    """Return a length of time in its largest unit: `5 min`."""
    unit, name = next(((u, n) for u, n in AGES if seconds >= u), (1, "s"))
    return f"{int(max(0, seconds) // unit)} {name}"


def asked_for(raw: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the evaluations that a configuration asks of each run.

    Raises:
        UserError: a run or an evaluation has no keys, or a name is no text.
    """
    config = check(Config, {k: raw[k] for k in ("runs", "evaluations") if raw.get(k) is not None})
    only = {name: item.get("runs") for name, item in config.evaluations.items()}
    for name, runs in only.items():
        if runs is not None and not isinstance(runs, list):
            raise UserError(f"evaluations.{name}.runs: {runs!r} is no list; write [{runs}].")
    return {run: [n for n, x in only.items() if x is None or run in x] for run in config.runs}


def show_runs(
    results: Path, planned: Mapping[str, Sequence[str]] | None = None, width: int | None = None
) -> str:
    """Return the table of the runs of a folder of results.

    Args:
        results: the folder.
        planned: names of the evaluations asked of each run; None: not known.
        width: columns; default: the terminal's.

    Raises:
        UserError: there is no such folder, or no run in it and none planned.
    """
    runs = {folder.name: read_run(folder) for folder in run_folders(results)}
    names = [*(planned or {}), *(name for name in runs if name not in (planned or {}))]
    if not names:
        raise UserError(
            f"{results} holds no run: run the suite whose results_dir it is, or name another one."
        )
    found = [runs.get(name) or Run(name, results / name) for name in names]
    made = square([path for run in found for path in run.results], planned, results)
    header = ["run", "state", "steps", "loss", "age", "evals", "best", "method", "data"]
    listed = [one for run in found for one in (run, *run.finetunings)]
    rows = [[Text(text) for text in _row(run, made, planned)] for run in listed]
    text = plain_table(Table("", header, rows, names=1, left=(1, 6, 7, 8)), width)
    said = [f"{run.name}: {run.note}" for run in listed if run.note]
    trained = {run.name for run in found if not run.note}
    told = {(run.name.partition("/")[0], run.note) for run in listed}
    problems = {
        pair: sentence
        for pair, sentence in made.problems.items()
        if pair[0] in trained and (pair[0], sentence) not in told
    }
    said += [f"{run}, {name}: {sentence}" for (run, name), sentence in problems.items()]
    said += [
        f"{run}: {sentence}"
        for run, sentences in made.unclear.items()
        for sentence in sentences
        if (run, sentence) not in told
    ]
    failed = (
        ["", "Failed:", *(wrapped(f"  {line}", width, "    ") for line in said)] if said else []
    )
    legend = ["", LEGEND] if made.headlines() else []
    return "\n".join([text, *legend, *failed])


def _row(run: Run, made: Square, planned: Mapping[str, Sequence[str]] | None) -> list[str]:
    trained = bool(run.config.get("training") or run.step)
    steps = f"{run.step}/{run.steps}" if run.steps else str(run.step)
    done, asked = [path.stem for path in run.results], (planned or {}).get(run.name)
    evaluations = str(len(done)) if run.folder.parent.name != "finetuned" else DASH
    if asked is not None:
        evaluations = f"{sum(name in asked for name in done)}/{len(asked)}"
    return [
        run.name,
        run.state,
        steps if trained and run.state != "not started" else DASH,
        DASH if run.loss is None else f"{run.loss:.4g}",
        DASH if run.newest is None else age(time.time() - run.newest),
        evaluations,
        _best(run, made),
        str(run.config.get("method") or run.config.get("task") or DASH),
        str(run.config.get("dataset") or DASH),
    ]


def _best(run: Run, made: Square) -> str:
    """Return the headline figure in which a run stands highest among the others."""
    row = next((row for row in made.rows if run.name in row.runs), None)
    figures = []
    for column in made.headlines() if row else ():
        assert row is not None
        cell = made.cell(row, column)
        if run.name in cell.values:
            figures.append((cell.rank or 3, column, cell))
    if row is None or not figures:
        return DASH
    rank, column, cell = min(figures, key=lambda figure: figure[0])
    decimals = decimals_of(made.cell(other, column).mean for other in made.rows)
    # The rank is that of the mean over seeds, which stands in no single run's line.
    mark = MARKS.get(rank, "") if len(row.runs) == 1 else ""
    return f"{column.evaluation} {cell.values[run.name]:.{decimals}f}{mark}"
