"""The alignment loss (TCC): ours against a loop over pairs as published, one CPU thread.

    python benchmarks/alignment_loss.py             batches 4, 8, 12, 16 and 64; a minute if idle
    python benchmarks/alignment_loss.py --compile   the loop under torch.compile too, batch 4 alone:
                                                    a minute and a half of compiling
    python benchmarks/alignment_loss.py --tensorflow PYTHON
                                                    beside TensorFlow in the same run, by an
                                                    interpreter that has it; minutes of tracing

Forward and backward of the deterministic `regression_mse_var` loss, 40 frames of 128 numbers a
video, float32. First both sides' losses and gradients must agree, in float64. Then they take turns:
CPU milliseconds, least and median (other work on the machine lengthens both). Peak memory: what one
call adds to a process that runs it alone.

The loop stands for the published structure: a part of the graph for each ordered pair, rows stacked
at the end. The published code itself runs on TensorFlow; its times were measured elsewhere (one
thread, the fastest iteration) and are printed for orientation. Targets against them: 1.5 times the
compiled ones up to batch 8, half of them from batch 12, a 20th of the eager ones.
"""

import argparse
import importlib
import itertools
import json
import multiprocessing
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from timewalk.losses import align_pair_of_sequences, compute_alignment_loss

FRAMES, SIZE, TEMPERATURE, WEIGHT = 40, 128, 0.1, 0.001
REPEATS = {4: 15, 8: 15, 12: 9, 16: 9, 64: 3}
MEMORY = (16, 32, 64)
COMPILED_BATCH = 4  # every pair is unrolled: larger batches compile for many minutes
TOLERANCE = 1e-6  # of float64
ELSEWHERE = {4: (90, 3.7), 8: (506, 14.7), 12: (1150, 71), 16: (2130, 149)}  # ms: eager, compiled
TARGETS = {4: 1.5, 8: 1.5, 12: 0.5, 16: 0.5}  # of the compiled


def data(videos):
    """Return embeddings that drift through each video, and steps in videos of 400 frames."""
    rng = torch.Generator().manual_seed(0)
    embs = torch.randn(videos, FRAMES, SIZE, generator=rng)
    course = torch.randn(1, FRAMES, SIZE, generator=rng).cumsum(1)
    steps = torch.rand(videos, 400, generator=rng).argsort(1)[:, :FRAMES].sort(1).values
    return embs + course, steps, torch.full((videos,), 400)


def looped(embs, steps, lengths):
    """Return the loss as published: pair by pair."""
    all_logits, all_labels, all_steps, all_lengths = [], [], [], []
    for i, j in itertools.permutations(range(len(embs)), 2):
        logits, labels = align_pair_of_sequences(embs[i], embs[j], "l2", TEMPERATURE)
        all_logits.append(logits)
        all_labels.append(labels)
        all_steps.append(steps[i : i + 1].expand(FRAMES, -1))
        all_lengths.append(lengths[i : i + 1].expand(FRAMES))
    logits, labels = torch.cat(all_logits), torch.cat(all_labels)
    times = torch.cat(all_steps).to(logits) / torch.cat(all_lengths).to(logits).unsqueeze(1)
    probabilities = logits.softmax(1)
    true, found = (labels * times).sum(1), (probabilities * times).sum(1)
    logs = (probabilities * (times - found.unsqueeze(1)).square()).sum(1).log()
    return ((true - found).square() * torch.exp(-logs) + WEIGHT * logs).mean()


def ours(embs, steps, lengths):
    return compute_alignment_loss(embs, len(embs), steps, lengths, loss_type="regression_mse_var")


def step(call, arrays):
    """Return CPU milliseconds, loss and gradient of one forward and backward."""
    embs, steps, lengths = arrays
    embs = embs.clone().requires_grad_()
    begun = time.process_time()
    loss = call(embs, steps, lengths)
    loss.backward()
    return 1e3 * (time.process_time() - begun), loss.detach(), embs.grad


def agree(calls, arrays):
    """Check losses and gradients against the loop's, and warm all sides up."""
    embs, steps, lengths = arrays
    for call in calls.values():
        step(call, arrays)
    _, expected, slope = step(looped, (embs.double(), steps, lengths))
    _, loss, gradient = step(ours, (embs.double(), steps, lengths))
    assert abs(loss / expected - 1) < TOLERANCE, (loss, expected)
    assert (gradient - slope).abs().max() < TOLERANCE * slope.abs().max()


def compiled():
    """Return the loop under torch.compile, and say what compiling it took."""
    call = torch.compile(looped, dynamic=False)
    begun = time.perf_counter()
    step(call, data(COMPILED_BATCH))
    print(f"torch.compile of batch {COMPILED_BATCH}: {time.perf_counter() - begun:.0f} s\n")
    return call


def row(videos, calls):
    """Print the times of one batch size."""
    arrays = data(videos)
    agree(calls, arrays)
    spent = {name: [] for name in calls}
    for _ in range(REPEATS[videos]):
        for name, call in calls.items():
            spent[name].append(step(call, arrays)[0])
    least = {name: min(times) for name, times in spent.items()}
    for name, times in spent.items():
        ratio = least[name] / least["ours"]
        text = (
            f"{videos:5} {name:9} {least[name]:9.1f} {statistics.median(times):9.1f} {ratio:6.1f}"
        )
        print(text + (against(videos, least["ours"]) if name == "ours" else ""))


def against(videos, found):
    """Return ours as a share of what was measured elsewhere, with the targets."""
    if videos not in ELSEWHERE:
        return ""
    eager, fast = ELSEWHERE[videos]
    shares = f"{found / fast:.2f} (target {TARGETS[videos]})"
    return f"   {fast:6} {shares:18} {eager:6} {eager / found:.0f} times (target 20)"


def beside_tensorflow(python):
    """Print ours and TensorFlow's times, taking turns in one run, and their ratios."""
    print(f"\n{'batch':>5} {'ours':>8} {'compiled':>9} {'eager':>8} CPU ms, least;  tracing, s")
    script = Path(__file__).parent / "published" / "alignment_tensorflow.py"
    for videos in ELSEWHERE:
        arrays = data(videos)
        own = [step(ours, arrays) for _ in range(REPEATS[videos])]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "arrays.npz"
            np.savez(path, **dict(zip(("embs", "steps", "lengths"), arrays, strict=True)))
            words = [python, str(script), str(path), str(REPEATS[videos])]
            output = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
        theirs = json.loads(output)
        own += [step(ours, arrays) for _ in range(REPEATS[videos])]
        assert abs(theirs["loss"] / own[0][1].item() - 1) < 1e-4, (theirs["loss"], own[0][1])
        least = min(milliseconds for milliseconds, _, _ in own)
        fast, eager = min(theirs["compiled"]), min(theirs["eager"])
        ratios = f"ours / compiled {least / fast:.2f}, eager / ours {eager / least:.0f}"
        times = f"{least:8.1f} {fast:9.1f} {eager:8.0f} {theirs['tracing_s']:22.0f}"
        print(f"{videos:5} {times}  {ratios}", flush=True)


def peak_mb(videos):
    """Return the memory in MB that one call adds, measured in this (fresh) process."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # chunks load it, and so does every optimiser
    step(ours, data(2))
    arrays = data(videos)
    before = high_water_mb()
    step(ours, arrays)
    return high_water_mb() - before


def high_water_mb():
    """Return the most memory this process ever held (ru_maxrss would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory():
    """Print the memory of ours, and its growth beside that of videos and pairs."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = {videos: pool.apply(peak_mb, (videos,)) for videos in MEMORY}
    first = MEMORY[0]
    print(
        f"\n{'batch':>5} {'pairs':>6} {'peak MB':>8} {'growth: videos':>15} {'pairs':>6} {'MB':>6}"
    )
    for videos, size in found.items():
        pairs, first_pairs = videos * (videos - 1), first * (first - 1)
        growth = f"{videos / first:15.1f} {pairs / first_pairs:6.1f} {size / found[first]:6.1f}"
        print(f"{videos:5} {pairs:6} {size:8.0f} {growth}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compile", action="store_true", help="the loop under torch.compile too")
    parser.add_argument("--tensorflow", metavar="PYTHON", help="an interpreter with TensorFlow")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    fast = None
    if not chosen.compile:
        print("the loop under torch.compile: skipped; ask for it with --compile\n")
    elif shutil.which("c++") is None:
        print("the loop under torch.compile: skipped; there is no C++ compiler\n")
    else:
        fast = compiled()
    print(f"{'':33} {'times':>6}   measured elsewhere, TensorFlow, ms: compiled, eager")
    print(f"batch {'':9} {'CPU ms':>9} {'median':>9} {'ours':>6}   and ours against them")
    for videos in REPEATS:
        calls = {"looped": looped, "ours": ours}
        if fast is not None and videos == COMPILED_BATCH:
            calls["compiled"] = fast
        row(videos, calls)
    memory()
    if chosen.tensorflow:
        beside_tensorflow(chosen.tensorflow)


if __name__ == "__main__":
    main()
