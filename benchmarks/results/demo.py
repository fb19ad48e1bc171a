"""What `make demo` gives: headline metrics of every evaluation, and how long trainings took.

    make demo && python benchmarks/results/demo.py

writes benchmarks/results/demo.md, from which the pages of methods and evaluations quote. Seconds
are those of the machine that ran it, of jobs side by side: they give the order alone.
"""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from timewalk.artefacts import atomic_path, read_json
from timewalk.report.runs import read_curve, run_folders
from timewalk.report.square import Column, Square, result_files, square

TARGET = Path(__file__).with_suffix(".md")
HEAD = """# What `make demo` gives

Written by `python benchmarks/results/demo.py` from the results of `make demo`: twenty seconds of
real video and generated ones, networks of a few blocks, two processor cores. The figures say
whether an installation computes what it should, not how good a method is: trainings take a minute,
and what was trained differs a little from processor to processor. The rows `random` are fresh
weights: what a trained row has to beat. Seconds are of jobs side by side on a busy machine.

"""


def kind_of(folder: Path, evaluation: str) -> str:
    """Return the kind of an evaluation, from any run's result."""
    path = next(folder.glob(f"*/{evaluation}.json"))
    return str(read_json(path)["provenance"]["settings"]["kind"])


def evaluations(folder: Path, made: Square) -> Iterator[str]:
    """Yield lines of a table: an evaluation's headline metric, a run a column."""

    def key(column: Column) -> tuple[str, str, str]:
        return kind_of(folder, column.evaluation), column.evaluation, column.protocol

    yield "| kind | evaluation | protocol | data set | metric | figures | seconds each |"
    yield "|---|---|---|---|---|---|---|"
    for (kind, evaluation, protocol), columns in groupby(sorted(made.headlines(), key=key), key):
        for column in columns:
            cells = {row.name: made.cell(row, column) for row in made.rows}
            figures = [f"{n} {c.mean:.4g}" for n, c in cells.items() if c.mean is not None]
            paths = [folder / name / f"{evaluation}.json" for name in cells]
            seconds = [read_json(path)["seconds"] for path in paths if path.is_file()]
            span = (
                f"{min(seconds):.0f}"
                if len(seconds) == 1
                else f"{min(seconds):.0f} to {max(seconds):.0f}"
            )
            metric = column.metric + (" (less is better)" if column.lower_is_better else "")
            words = [kind, evaluation, protocol, column.dataset, metric, ", ".join(figures), span]
            yield f"| {' | '.join(words)} |"


def trainings(folder: Path) -> Iterator[str]:
    """Yield lines of a table: steps and time of each training and fine-tuning."""
    yield "| run | method | encoder | clips or images a step | steps | seconds | loss |"
    yield "|---|---|---|---|---|---|---|"
    for place in [*run_folders(folder), *sorted(folder.glob("*/finetuned/*"))]:
        curve = read_curve(place)
        if not curve:
            continue
        card = next(place / n for n in ("encoder.json", "network.json") if (place / n).is_file())
        about = read_json(card)
        config = about["provenance"]["config"]
        what = config.get("method") or config["task"]
        encoder = config.get("encoder", {}).get("name", "that of its run")
        losses = [record["loss"] for record in curve if record.get("loss") is not None]
        words = [
            place.relative_to(folder).as_posix(),
            what,
            encoder,
            str(config["training"]["batch_size"]),
            str(about.get("steps") or about["provenance"]["steps"]),
            f"{curve[-1]['time'] - curve[0]['time']:.0f}",
            f"{losses[0]:.3g} to {losses[-1]:.3g}",
        ]
        yield f"| {' | '.join(words)} |"


def main() -> None:
    """Write the page."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    files = [path for run in run_folders(folder) for path in result_files(run)]
    made = square(files, None, folder)
    parts = [HEAD, "## Evaluations\n", *evaluations(folder, made)]
    parts += ["\n## Trainings\n", *trainings(folder)]
    with atomic_path(TARGET) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
