"""Learning curves: what a training wrote, step by step, as few enough points to draw."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timewalk.errors import UserError

POINTS = 400
"""of one curve at most"""
BUDGET = 120_000
"""numbers of all curves together, about 1 MB"""
INDEX = frozenset(("step", "epoch", "time"))
VALIDATION, EPOCH = "validation_", "epoch_"


@dataclass
class Curves:
    """One training's curves.

    Attributes:
        name: of the run, or `<run>: <fine-tuning>`.
        run: the run.
        parts: series over the same steps: steps, and the values of each name; None is a value that
            was not finite.
        mean_of: records that one point is the mean of.
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
    files = [(run, file) for run in runs for file in _files(folder / run)]
    series = [(run, file, _series(file)) for run, file in files]
    numbers = sum(len(_names(part)) + 1 for _, _, parts in series for part in parts.values())
    points = max(30, min(POINTS, BUDGET // max(1, numbers)))
    found = []
    for run, file, parts in series:
        tuned = file.parent.parent.name == "finetuned"
        name = f"{run}: {file.parent.name}" if tuned else run
        if parts:
            found.append(_reduced(name, run, parts, points))
    return found


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


def _series(file: Path) -> dict[bool, dict[int, dict[str, float | None]]]:
    """Return values by step: those of steps under False, those of validations under True.

    A step that was repeated after an interruption has its last values.
    """
    parts: dict[bool, dict[int, dict[str, float | None]]] = {}
    for record in _records(file):
        for key, value in record.items():
            wanted = isinstance(value, int | float) or value is None
            if key in INDEX or key.startswith(EPOCH) or not wanted:
                continue
            steps = parts.setdefault(key.startswith(VALIDATION), {})
            steps.setdefault(int(record["step"]), {})[key] = value
    return parts


def _reduced(
    name: str, run: str, parts: Mapping[bool, Mapping[int, Mapping[str, float | None]]], points: int
) -> Curves:
    longest = max(map(len, parts.values()))
    mean_of = math.ceil(longest / points)
    found = []
    for _, by_step in sorted(parts.items()):
        steps = sorted(by_step)
        size = math.ceil(len(steps) / points)
        buckets = [steps[start : start + size] for start in range(0, len(steps), size)]
        values = {
            key: [_mean([by_step[step].get(key) for step in bucket]) for bucket in buckets]
            for key in _names(by_step)
        }
        found.append(([bucket[-1] for bucket in buckets], values))
    return Curves(name, run, found, mean_of)


def _names(by_step: Mapping[int, Mapping[str, float | None]]) -> list[str]:
    return sorted({key for values in by_step.values() for key in values})


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what is finite, with six digits."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return float(f"{sum(finite) / len(finite):.6g}") if finite else None
