"""Label propagation: ours against plain transcriptions of DINO's and CRW's procedures, one thread.

    python benchmarks/propagation.py [--quick] [--repeats N]

Random features of 480x854 frames with 4 channels of labels. Ours propagates through 30 frames; the
other side, which takes over ten seconds a frame, begins with ours' labels as its context and
predicts the last two frames. CPU seconds (user and system) a frame are those of these two, when the
context is full; windows and other work once per video are left out on both sides. Each run is a
process of its own, one side after the other; medians. Memory: the most that the process held, and
how much of it came after `import torch`. The maps of both sides are compared. With a GPU: also
milliseconds a frame there. About six minutes; `--quick`: small maps, in seconds.

Targets: below 0.7 GB in all, 99.9 % of the pixels equal.
"""

import argparse
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FRAMES, STEADY, CHANNELS, REPEATS, MB = 30, 2, 4, 2, 2**20
TOLERANCE = 1e-5
BASE = 0.5  # of what frames share against their own noise: neighbours come from near and far


def run_ours(job, device):
    """Propagate through the whole video; return soft maps of all frames and seconds of each."""
    from timewalk.ops.propagation import Propagator

    softs = [first_labels(job["size"], job["grid"]).to(device)]
    propagator = Propagator(job["settings"], features(job, 0, device), softs[0])
    seconds = []
    for frame in range(1, FRAMES):
        queries = features(job, frame, device)
        start = now(device)
        softs.append(propagator.step(queries))
        seconds.append(now(device) - start)
    return softs, seconds


def run_plain(job, device):
    """Predict the last frames from ours' maps of those before; return their maps and seconds."""
    from published import propagation

    length = job["settings"].context
    numbers = [0, *range(FRAMES - STEADY - length, FRAMES - STEADY)]
    side = {"dino": propagation.Dino, "crw": propagation.Crw}[job["protocol"]]
    context = [features(job, n, device) for n in numbers]
    labels = [job["softs"][n].to(device) for n in numbers]
    last = [features(job, n, device) for n in range(FRAMES - STEADY, FRAMES)]
    if device == "cuda":  # the first products there load libraries
        side(job["settings"], context, labels).predict(last)
    plain = side(job["settings"], context, labels)
    start = now(device)
    softs = plain.predict(last)
    return softs, [(now(device) - start) / STEADY]


def features(job, frame, device):
    import torch

    parts = [
        torch.randn((job["width"], *job["grid"]), generator=torch.Generator().manual_seed(seed))
        for seed in (0, frame + 1)
    ]
    return parts[1].add_(parts[0], alpha=BASE).to(device)


def first_labels(size, grid):
    """Return (C, h, w): random rectangles on a background, resized bilinearly."""
    import torch

    rng = torch.Generator().manual_seed(1)
    ids = torch.zeros(size, dtype=torch.long)
    for channel in range(1, CHANNELS):
        top, left = ((torch.rand((), generator=rng) * 0.6 * n).int().item() for n in size)
        ids[top : top + size[0] // 3, left : left + size[1] // 3] = channel
    one_hot = torch.nn.functional.one_hot(ids, CHANNELS).permute(2, 0, 1).float()
    return torch.nn.functional.interpolate(one_hot[None], grid, mode="bilinear")[0]


def now(device):
    """Return CPU seconds; on a GPU the time of day once its work is done."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def high_water_mb():
    """Return the most memory this process ever held (ru_maxrss would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024


def child(folder, side, device):
    """Do a job and leave its outcome in the folder."""
    import torch

    torch.set_num_threads(1)
    imported = high_water_mb()
    job = pickle.loads((folder / "job").read_bytes())
    softs, seconds = {"ours": run_ours, "plain": run_plain}[side](job, device)
    outcome = {"softs": [soft.cpu() for soft in softs], "seconds": seconds}
    peak = high_water_mb()
    outcome |= {"peak": peak, "beyond": peak - imported}
    if device == "cuda":
        outcome["peak"] = outcome["beyond"] = torch.cuda.max_memory_allocated() / MB
    (folder / "outcome").write_bytes(pickle.dumps(outcome))


def spawned(job, side, device):
    """Run a side in a process of its own; None: not enough memory on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "job").write_bytes(pickle.dumps(job))
        command = [sys.executable, __file__, "--child", folder, side, device]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if "OutOfMemoryError" in done.stderr:
            return None
        if done.returncode:
            raise SystemExit(done.stderr)
        return pickle.loads((path / "outcome").read_bytes())


def cases(quick):
    """Return a job for each protocol and stride."""
    from types import SimpleNamespace

    from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
    from timewalk.evaluation.protocols import PropagationConfig, input_size, make_protocol

    jobs = []
    for name, stride, width in (("dino", 8, 384), ("dino", 16, 384), ("crw", 8, 256)):
        encoder = SimpleNamespace(stride=stride, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        protocol = make_protocol(name, PropagationConfig(kind="davis", dataset="davis"), encoder)
        size = input_size(protocol, (480, 854), stride if name == "dino" else 1)
        if quick:
            size = (20 * stride, 24 * stride)
        grid = tuple(-(-pixels // stride) for pixels in size)
        jobs.append(
            {
                "protocol": name,
                "stride": stride,
                "width": width,
                "size": size,
                "grid": grid,
                "settings": protocol.propagation,
                "full": protocol,
            }
        )
    return jobs


def compare(job, ours, plain):
    """Return the shares of cells whose soft maps differ, and of pixels whose ids are equal."""
    from published.propagation import crw_ids, dino_ids
    from timewalk.evaluation.label_propagation import to_ids

    beyond, equal = [], []
    for a, b in zip(ours["softs"][-STEADY:], plain["softs"], strict=True):
        beyond.append(((a - b).abs() > TOLERANCE).any(0).float().mean().item())
        ids = crw_ids(b, job["size"]) if job["protocol"] == "crw" else dino_ids(b, job["stride"])
        own = to_ids(a, job["full"], job["size"], job["size"])
        equal.append((ids.numpy() == own).mean())
    return statistics.mean(beyond), statistics.mean(equal)


def measure(job, device, repeats):
    """Return rows of the table, and a line on the maps."""
    runs = {"plain": [], "ours": []}
    lent = {key: value for key, value in job.items() if key != "full"}
    for _ in range(repeats):
        ours = spawned(lent, "ours", device)
        runs["ours"].append(ours)
        runs["plain"].append(spawned({**lent, "softs": ours["softs"]}, "plain", device))
    title = f"{job['protocol'].upper()}, stride {job['stride']}, {job['grid'][0]}x{job['grid'][1]}"
    if None in runs["plain"]:
        return [], f"{title}: the plain side needs more memory than the GPU has"
    medians = {}
    for side, each in runs.items():
        frame = statistics.median(second for run in each for second in run["seconds"][-STEADY:])
        peak, beyond = (statistics.median(run[key] for run in each) for key in ("peak", "beyond"))
        medians[side] = (frame, peak, beyond)
    whole = statistics.median(sum(run["seconds"]) for run in runs["ours"])
    unit = 1 if device == "cpu" else 1000
    rows = []
    for side, (frame, peak, beyond) in medians.items():
        speed, memory = (medians["plain"][n] / medians[side][n] for n in (0, 2))
        ratios = (f"{speed:.1f}", f"{memory:.1f}") if side == "ours" else ("", "")
        video = f"{unit * whole:.2f}" if side == "ours" else ""
        row = [title if side == "plain" else "", side, f"{unit * frame:.3f}", ratios[0], video]
        rows.append([*row, f"{peak:.0f}", f"{beyond:.0f}", ratios[1]])
    share, equal = compare(job, runs["ours"][-1], runs["plain"][-1])
    return rows, (
        f"{title}: {share:.3%} of the cells of the soft maps differ by more than {TOLERANCE:g}, "
        f"{equal:.3%} of the pixels have the same id"
    )


def report(jobs, device, repeats):
    unit = "CPU s" if device == "cpu" else "ms"
    memory = ("peak MB", "beyond torch MB") if device == "cpu" else ("GPU MB", "GPU MB")
    columns = ["", "", f"{unit} a frame", "ratio", f"{unit}, {FRAMES} frames", *memory, "ratio"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    remarks = []
    for job in jobs:
        rows, remark = measure(job, device, repeats)
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)
        remarks.append(remark)
    print("\n" + "\n".join(remarks))


def main():
    parser = argparse.ArgumentParser(description="Label propagation: ours and as published.")
    parser.add_argument("--quick", action="store_true", help="small maps, in seconds")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, side, device = options.child
        child(Path(folder), side, device)
        return
    import torch

    jobs = cases(options.quick)
    report(jobs, "cpu", options.repeats)
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        report(jobs, "cuda", options.repeats)


if __name__ == "__main__":
    main()
