"""Learning curves: what a training wrote, step by step, as few enough points to draw."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timewalk.errors import UserError

POINTS, FEWEST = 400, 30
"""of one curve at most, and of curves however many there are"""
BUDGET = 120_000
"""numbers of all curves together, about 1 MB"""
INDEX = frozenset(("step", "epoch", "time"))
VALIDATION, EPOCH = "validation_", "epoch_"


Values = dict[str, float | None]


@dataclass
class Curves:
    """One training's curves.

    Attributes:
        name: of the run, or `<run>: <fine-tuning>`.
        run: the run.
        parts: series over the same steps: steps, and the values of each name; None is a value that
            was not finite.
        mean_of: records that one point is the mean of at most.
    """

    name: str
    run: str
    parts: list[tuple[list[int], dict[str, list[float | None]]]]
    mean_of: int


def read_curves(folder: Path, runs: Sequence[str]) -> list[Curves]:
    """Return the curves of some runs and their fine-tunings, those that have any.

    Args:
        folder: of results.
        runs: names.
    """
    logs = [(run, file) for run in runs for file in _files(folder / run)]
    # Each log is reduced when it is read: all steps of all trainings would be too much to hold.
    reduced = [(run, file, _parts(file)) for run, file in logs]
    numbers = sum(len(part.sums) + 1 for _, _, parts in reduced for part in parts)
    points = max(FEWEST, min(POINTS, BUDGET // max(1, numbers)))
    found = []
    for run, file, parts in reduced:
        tuned = file.parent.parent.name == "finetuned"
        name = f"{run}: {file.parent.name}" if tuned else run
        made = [_merged(part, points) for part in parts]
        if made:
            series = [(part.steps, _means(part)) for part in made]
            found.append(Curves(name, run, series, max(part.size for part in made)))
    return found


@dataclass
class _Part:
    """Series over the same steps, in buckets of some steps each.

    Attributes:
        steps: the last one of each bucket.
        sums: by name, sum and number of what is finite in each bucket.
        size: steps in a bucket; in the last one as many or fewer.
    """

    steps: list[int]
    sums: dict[str, list[tuple[float, int]]]
    size: int


def _files(run: Path) -> list[Path]:
    # While it trains, a run's log lies with its checkpoints.
    own = [run / "metrics.jsonl", run / "checkpoints" / "metrics.jsonl"]
    first = [file for file in own if file.is_file()][:1]
    return [*first, *sorted(run.glob("finetuned/*/metrics.jsonl"))]


def _records(file: Path) -> Iterator[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                return  # a killed training's last line
            raise UserError(
                f"{file} is damaged in line {number}; remove that line, or train the run again."
            ) from None


def _series(file: Path) -> dict[bool, dict[int, Values]]:
    """Return values by step: those of steps under False, those of validations under True.

    A step that was repeated after an interruption has its last values.
    """
    parts: dict[bool, dict[int, Values]] = {}
    for record in _records(file):
        for key, value in record.items():
            wanted = isinstance(value, int | float) or value is None
            if key in INDEX or key.startswith(EPOCH) or not wanted:
                continue
            steps = parts.setdefault(key.startswith(VALIDATION), {})
            steps.setdefault(int(record["step"]), {})[key] = value
    return parts


def _parts(file: Path) -> list[_Part]:
    """Return what a log holds with at most `POINTS` points: of steps, then of validations."""
    return [_merged(_whole(by_step), POINTS) for _, by_step in sorted(_series(file).items())]


def _whole(by_step: Mapping[int, Values]) -> _Part:
    steps = sorted(by_step)
    names = sorted({key for values in by_step.values() for key in values})
    sums = {name: [_finite(by_step[step].get(name)) for step in steps] for name in names}
    return _Part(steps, sums, 1)


def _finite(value: float | None) -> tuple[float, int]:
    return (value, 1) if value is not None and math.isfinite(value) else (0.0, 0)


def _merged(part: _Part, points: int) -> _Part:
    """Return a part with at most so many points: neighbouring buckets as one."""
    count = math.ceil(len(part.steps) / points)
    starts = range(0, len(part.steps), count)
    sums = {
        name: [_sum(values[start : start + count]) for start in starts]
        for name, values in part.sums.items()
    }
    steps = [part.steps[start : start + count][-1] for start in starts]
    return _Part(steps, sums, part.size * count)


def _sum(values: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return sum(total for total, _ in values), sum(number for _, number in values)


def _means(part: _Part) -> dict[str, list[float | None]]:
    """Return the means of what is finite, with six digits."""
    return {
        name: [float(f"{total / number:.6g}") if number else None for total, number in values]
        for name, values in part.sums.items()
    }
