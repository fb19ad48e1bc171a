"""Writing curves to MLflow: in batches, as the mirror does, against a call for each point.

    python benchmarks/mlflow_mirror.py                  100 000 points; half a minute if idle
    python benchmarks/mlflow_mirror.py --points 10000   fewer

Both sides write to fresh SQLite stores of their own, the same points of ten curves, and take turns:
a tenth of the batches, then a sample of single calls, counted up to as many points. Wall time
holds the waiting for the disk, and for what else the machine does; the ratios are of one run, so
that this weighs on both sides. At the end each point must be in the store once, also those written
twice.
"""

import argparse
import logging
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient

from timewalk.report.mlflow import log_points
from timewalk.report.mlflow_records import Point

CURVES, TURNS = 10, 10
START_MS = 1_700_000_000_000

Seconds = tuple[float, float]
Write = Callable[[MlflowClient, str, Sequence[Point]], None]


def points_of(count: int) -> list[Point]:
    """Return so many points, of ten curves."""
    return [
        Point(f"train/curve_{n % CURVES}", 1 / (n + 1), START_MS + n, n // CURVES)
        for n in range(count)
    ]


def fresh(folder: Path, name: str) -> tuple[MlflowClient, str, Path]:
    """Return a client of a store of its own, and a run in it."""
    path = folder / f"{name}.db"
    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment(name)
    return client, client.create_run(experiment).info.run_id, path


def each(client: MlflowClient, run: str, points: Sequence[Point]) -> None:
    """Write a point in each call."""
    for name, value, time_ms, step in points:
        client.log_metric(run, name, value, time_ms, step)


def seconds(write: Write, client: MlflowClient, run: str, points: Sequence[Point]) -> Seconds:
    """Return the wall and processor seconds that writing takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    write(client, run, points)
    return time.perf_counter() - wall, time.process_time() - cpu


def count(path: Path) -> int:
    """Return how many points a store holds."""
    with sqlite3.connect(path) as store:
        return int(store.execute("select count(*) from metrics").fetchone()[0])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=20, help="single calls a turn")
    arguments = parser.parse_args()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    points = points_of(arguments.points)
    share = len(points) // TURNS
    with tempfile.TemporaryDirectory() as folder:
        batched, single = fresh(Path(folder), "batches"), fresh(Path(folder), "calls")
        fast, slow = [], []
        for turn in range(TURNS):
            part = points[turn * share : (turn + 1) * share]
            fast.append(seconds(log_points, *batched[:2], part))
            slow.append(seconds(each, *single[:2], part[: arguments.calls]))
        log_points(*batched[:2], points[:1000])
        assert count(batched[2]) == share * TURNS
        assert count(single[2]) == arguments.calls * TURNS
        size = batched[2].stat().st_size / 1e6
    print("| what | wall s | processor s |\n|---|---:|---:|")
    print(row(f"{len(points):,} points in batches of 1000", fast, 1))
    more = share / arguments.calls
    print(row(f"a call for each, from {arguments.calls * TURNS} of them", slow, more))
    ratios = [
        statistics.median(
            one[clock] * more / many[clock] for one, many in zip(slow, fast, strict=True)
        )
        for clock in (0, 1)
    ]
    print(f"| times as fast, median of {TURNS} turns | {ratios[0]:.0f} | {ratios[1]:.0f} |")
    print(f"\nThe store has {size:.0f} MB.")


def row(what: str, turns: Sequence[Seconds], times: float) -> str:
    """Return the sums of all turns as a row."""
    wall, cpu = (times * sum(turn[clock] for turn in turns) for clock in (0, 1))
    return f"| {what} | {wall:.0f} | {cpu:.0f} |"


if __name__ == "__main__":
    main()
