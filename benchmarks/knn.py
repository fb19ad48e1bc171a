"""k-NN: ours against a plain transcription of the published procedure, one thread.

10 000 training and 2 000 test features of width 384, 1000 classes, k of 10, 20, 100 and 200.
Interleaved repeats, medians of CPU seconds. Target: at least five times as fast. Peak memory: what
each adds to a process that runs it alone.
"""

import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from timewalk.evaluation.knn import weighted_knn

TRAIN, TEST, WIDTH, CLASSES, TEMPERATURE, REPEATS = 10_000, 2_000, 384, 1_000, 0.07, 3
KS = [10, 20, 100, 200]
NOISE = 12**0.5  # against class centres of deviation 1: the figures are neither 0 nor 100


def data():
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=rng)

    def draw(count):
        labels = torch.randint(0, CLASSES, (count,), generator=rng)
        values = centres[labels] + NOISE * torch.randn(count, WIDTH, generator=rng)
        return F.normalize(values, dim=1), labels

    return *draw(TRAIN), *draw(TEST)


def plain(train, train_labels, test, test_labels):
    """Return (k, top-1, top-5) as published: everything anew for each k, one-hot neighbours."""
    outcome = []
    images = len(test)
    chunk = images // 100
    for k in KS:
        one_hot = torch.zeros(k, CLASSES)
        top1 = top5 = 0.0
        for start in range(0, images, chunk):
            truth = test_labels[start : start + chunk]
            count = len(truth)
            similarity = test[start : start + chunk] @ train.T
            distances, nearest = similarity.topk(k, largest=True, sorted=True)
            candidates = train_labels.view(1, -1).expand(count, -1)
            neighbours = candidates.gather(1, nearest)
            one_hot.resize_(count * k, CLASSES).zero_()
            one_hot.scatter_(1, neighbours.view(-1, 1), 1)
            weights = (distances / TEMPERATURE).exp()
            votes = (one_hot.view(count, -1, CLASSES) * weights.view(count, -1, 1)).sum(1)
            _, predictions = votes.sort(1, descending=True)
            right = predictions.eq(truth.view(-1, 1))
            top1 += right[:, :1].sum().item()
            top5 += right[:, : min(5, k)].sum().item()
        outcome.append((k, 100 * top1 / images, 100 * top5 / images))
    return outcome


def ours(*arrays):
    votes = weighted_knn(*arrays, ks=KS, temperature=TEMPERATURE, num_classes=CLASSES)
    return [(vote.k, vote.top1, vote.top5) for vote in votes]


def peak_mb(name):
    """Return the memory in MB that a run adds, measured in this (fresh) process."""
    torch.set_num_threads(1)
    arrays = data()
    before = high_water_mb()
    {"plain": plain, "ours": ours}[name](*arrays)
    return high_water_mb() - before


def high_water_mb():
    """Return the most memory this process ever held (ru_maxrss would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main():
    torch.set_num_threads(1)
    arrays = data()
    seconds = {"plain": [], "ours": []}
    for _ in range(REPEATS):
        found = {}
        for call in (plain, ours):
            start = time.process_time()
            found[call.__name__] = call(*arrays)
            seconds[call.__name__].append(time.process_time() - start)
    for expected, got in zip(found["plain"], found["ours"], strict=True):
        print("k {:3}   plain {:.2f} {:.2f}   ours {:.2f} {:.2f}".format(*expected, *got[1:]))
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_mb, (name,)) for name in seconds}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"\n{'':8} {'CPU s':>9} {'min':>6} {'max':>6} {'peak MB':>8} {'ratio':>6}")
    for name, times in seconds.items():
        ratio = median["plain"] / median[name]
        row = f"{median[name]:9.2f} {min(times):6.2f} {max(times):6.2f} {memory[name]:8.0f}"
        print(f"{name:8} {row} {ratio:6.1f}")


if __name__ == "__main__":
    main()
