"""DAVIS J and F: ours against a plain transcription of the official tool, on one thread.

    python benchmarks/davis_metrics.py

30 generated frames of 480x854 with 3 objects: three ids in the semi-supervised task, 20 proposals
in the unsupervised one. Each run is a process of its own, one side after the other, three times;
medians of CPU seconds (user and system). `scoring` leaves the imports of both sides out, `command`
is the whole process. Memory: the most that the process held. Then the wall seconds of 30 such
sequences on 1 and 2 workers. Targets: scoring at 8 times, the command at 4 times the speed, below
0.15 GB. The figures of both sides must be equal. About three minutes; the other side's 20 proposals
take 5 GB.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

REPEATS, FRAMES, HEIGHT, WIDTH, OBJECTS, PROPOSALS = 3, 30, 480, 854, 3, 20
TASKS = {"semi-supervised": OBJECTS, "unsupervised": PROPOSALS}
ANNOTATIONS = {"semi-supervised": "Annotations", "unsupervised": "Annotations_unsupervised"}
SEQUENCES = 30
PLAIN = Path(__file__).parent / "published" / "davis_metrics.py"
SCORING = """
import json, sys, time
from pathlib import Path
import scipy.optimize
from timewalk.evaluation.davis_folders import score_folders
begun = time.process_time()
figures = score_folders(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]).means()
print(json.dumps({"figures": figures, "cpu_s": time.process_time() - begun}))
"""


def id_map(count, frame, wobble):
    """Return ids of ``count`` round things with wavy outlines that move with the frame."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in reversed(range(count)):
        size = rng.uniform(70, 120) if number >= count - OBJECTS else rng.uniform(15, 50)
        top, left = rng.uniform(80, HEIGHT - 80), rng.uniform(80, WIDTH - 140)
        dy, dx = y - top, x - left - 2 * frame
        wave = np.sin(5 * np.arctan2(dy, dx) + 0.1 * frame) + wobble * np.sin(frame + number)
        own = np.hypot(dy, dx) < size * (1 + 0.15 * wave)
        # The large objects come first of the draws, and have the lowest ids.
        ids[own] = count - number
    return ids


def save(folder, frame, ids):
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    image.putpalette([n * 37 % 256 for n in range(768)])
    image.save(folder / f"{frame:05d}.png")


def generate(root):
    """Write a DAVIS folder of one sequence, and results for both tasks."""
    for frame in range(FRAMES):
        truth = id_map(OBJECTS, frame, 0)
        save(root / "DAVIS/Annotations/480p/walk", frame, truth)
        save(root / "results/semi-supervised/walk", frame, id_map(OBJECTS, frame, 0.7))
        save(root / "results/unsupervised/walk", frame, id_map(PROPOSALS, frame, 0.7))
        truth[:20, :200] = 255
        save(root / "DAVIS/Annotations_unsupervised/480p/walk", frame, truth)
        jpeg = root / f"DAVIS/JPEGImages/480p/walk/{frame:05d}.jpg"
        jpeg.parent.mkdir(parents=True, exist_ok=True)
        jpeg.touch()
    write_set(root, ["walk"])


def write_set(root, names):
    path = root / "DAVIS/ImageSets/2017/val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def copy_sequence(root):
    """Make the one sequence 30, as many as the set val has."""
    names = [f"walk{number}" for number in range(SEQUENCES)]
    for folder in list(root.rglob("walk")):
        for name in names:
            shutil.copytree(folder, folder.with_name(name))
    write_set(root, names)


def spent(words):
    """Run a command; return what it printed, its CPU and wall seconds and its peak in MB."""
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # VmHWM of the process itself, read just before it ends: ru_maxrss would count the parent's.
    peak = "import atexit, re, sys; atexit.register(lambda: print(re.search('VmHWM: *(\\\\d+)', "
    peak += "open('/proc/self/status').read().replace('\\t', ' '))[1], file=sys.stderr))\n"
    command = [sys.executable, "-c", peak + words[0], *map(str, words[1:])]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    printed, errors = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(errors)
    cpu = usage.ru_utime + usage.ru_stime
    return printed, cpu, time.perf_counter() - begun, int(errors.split()[-1]) / 1024


def plain(root, task):
    script = f"import runpy; runpy.run_path({str(PLAIN)!r}, run_name='__main__')"
    printed, whole, _, peak = spent([script, root / "results" / task, root / "DAVIS", task])
    found = json.loads(printed)
    return found["figures"], found["cpu_s"], whole, peak


def command_line(root, task, workers=1):
    words = ["metrics", "davis", "--results", root / "results" / task, "--davis", root / "DAVIS"]
    words += ["--task", task, "--output", root / "out", "--workers", workers]
    return spent(["from timewalk import cli; cli.main()", *words])


def ours(root, task):
    printed, *_ = spent([SCORING, root / "results" / task, root / "DAVIS", task])
    found = json.loads(printed)
    _, whole, _, peak = command_line(root, task)
    return found["figures"], found["cpu_s"], whole, peak


def compare(root, task):
    """Print a task's table."""
    runs = {"plain": [], "ours": []}
    for _ in range(REPEATS):
        for side, call in (("plain", plain), ("ours", ours)):
            runs[side].append(call(root, task))
    figures = {side: list(each[0][0].values()) for side, each in runs.items()}
    np.testing.assert_allclose(figures["ours"], figures["plain"], rtol=0, atol=1e-12)
    median = {
        side: [statistics.median(run[column] for run in each) for column in (1, 2, 3)]
        for side, each in runs.items()
    }
    print(f"\n{task}, {TASKS[task]} ids in the results, J&F {figures['ours'][0]:.6f} on both sides")
    print(f"{'':6} {'scoring s':>10} {'ratio':>6} {'command s':>10} {'ratio':>6} {'peak MB':>8}")
    for side, (scoring, whole, peak) in median.items():
        ratios = [median["plain"][column] / median[side][column] for column in (0, 1)]
        row = f"{scoring:10.2f} {ratios[0]:6.1f} {whole:10.2f} {ratios[1]:6.1f} {peak:8.0f}"
        print(f"{side:6} {row}")


def scale(root):
    """Print the wall seconds of many sequences on one and two workers."""
    copy_sequence(root)
    for task in TASKS:
        seconds = {1: [], 2: []}
        for _ in range(REPEATS):
            for workers, times in seconds.items():
                times.append(command_line(root, task, workers)[2])
        one, two = (statistics.median(times) for times in seconds.values())
        print(f"{task}: 1 worker {one:.2f} s, 2 workers {two:.2f} s, {one / two:.2f} times as fast")


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root)
        for task in TASKS:
            compare(root, task)
        print(f"\n{SEQUENCES} such sequences, wall seconds of the command")
        scale(root)


if __name__ == "__main__":
    main()
