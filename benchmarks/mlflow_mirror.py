"""Writing curves to MLflow: in batches, as the mirror does, against a call for each point.

    python benchmarks/mlflow_mirror.py                  100 000 points; half a minute if idle
    python benchmarks/mlflow_mirror.py --points 10000   fewer

Both sides write to fresh SQLite stores of their own, the same points of ten curves, and take turns:
a tenth of the batches, then a sample of single calls. Of the calls a sample will do, each takes as
long as any other. Seconds are wall time, for a call's wait for the disk is what it costs; the ratio
is of one run, so that what else the machine does weighs on both. At the end each point must be in
the store once, also when all have been written twice.
"""

import argparse
import logging
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient

from timewalk.report.mlflow import log_points
from timewalk.report.mlflow_records import Point

CURVES, TURNS = 10, 10
START_MS = 1_700_000_000_000


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


def seconds_of_batches(client: MlflowClient, run: str, points: Sequence[Point]) -> float:
    """Return the seconds that the mirror takes."""
    started = time.perf_counter()
    log_points(client, run, points)
    return time.perf_counter() - started


def seconds_of_calls(client: MlflowClient, run: str, points: Sequence[Point]) -> float:
    """Return the seconds that a call for each point takes."""
    started = time.perf_counter()
    for name, value, time_ms, step in points:
        client.log_metric(run, name, value, time_ms, step)
    return time.perf_counter() - started


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
            fast.append(seconds_of_batches(*batched[:2], part))
            slow.append(seconds_of_calls(*single[:2], part[: arguments.calls]))
        again = seconds_of_batches(*batched[:2], points)
        assert count(batched[2]) == share * TURNS
        assert count(single[2]) == arguments.calls * TURNS
        size = batched[2].stat().st_size / 1e6
    calls = sum(slow) / arguments.calls / TURNS * len(points)
    ratio = statistics.median(
        (one / arguments.calls) / (many / share) for one, many in zip(slow, fast, strict=True)
    )
    print("| what | seconds |\n|---|---:|")
    print(f"| {len(points):,} points in batches of 1000 | {sum(fast):.1f} |")
    print(f"| the same again: nothing is added | {again:.1f} |")
    print(f"| a call for each point, from {arguments.calls * TURNS} of them | {calls:.0f} |")
    print(f"\na point in a batch is {ratio:.0f} times as fast (median of {TURNS} turns); the store")
    print(f"is {size:.0f} MB")


if __name__ == "__main__":
    main()
