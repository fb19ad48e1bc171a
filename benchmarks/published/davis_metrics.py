"""The official DAVIS 2017 evaluation, written from a description of its code.

What costs time and memory there is kept: the masks of a sequence become float64 stacks of objects x
frames x H x W, compared with the numbers of the objects; every pair of masks has both its
boundaries drawn and grown anew, frame by frame; in the unsupervised task every proposal goes with
every object. The growing itself is OpenCV's, as there. Tables are printed, not by pandas as there.

    python benchmarks/published/davis_metrics.py RESULTS DAVIS TASK    a JSON of the figures
"""

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

ANNOTATIONS = {"semi-supervised": "Annotations", "unsupervised": "Annotations_unsupervised"}


def read_stack(folder, stems):
    first = np.array(Image.open(folder / f"{stems[0]}.png"))
    stack = np.zeros((len(stems), *first.shape))
    for number, stem in enumerate(stems):
        stack[number] = np.array(Image.open(folder / f"{stem}.png"))
    return stack


def one_hot(stack, count):
    numbers = np.ones((count, *stack.shape)) * np.arange(1, count + 1)[:, None, None, None]
    return (numbers == stack[None, ...]) > 0


def read_truth(folder, stems):
    stack = read_stack(folder, stems)
    void = stack == 255
    stack[void] = 0
    return one_hot(stack, int(np.max(stack[0]))), void


def read_results(folder, stems):
    stack = read_stack(folder, stems)
    return one_hot(stack, int(np.max(stack)))


def region(truth, result, void):
    counted = np.ones_like(truth) if void is None else ~void
    both = np.sum(truth & result & counted, axis=(-2, -1))
    either = np.sum((truth | result) & counted, axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        values = both / either
    values[np.isclose(either, 0)] = 1
    return values


def boundary_map(mask):
    right, low, corner = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    low[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    drawn = mask ^ right | mask ^ low | mask ^ corner
    drawn[-1] = mask[-1] ^ right[-1]
    drawn[:, -1] = mask[:, -1] ^ low[:, -1]
    drawn[-1, -1] = 0
    return drawn


def contour(truth, result, void):
    if void is not None:
        truth, result = truth & ~void, result & ~void
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    in_result, in_truth = boundary_map(result), boundary_map(truth)
    near_result = cv2.dilate(in_result.astype(np.uint8), disk)
    near_truth = cv2.dilate(in_truth.astype(np.uint8), disk)
    found, wanted = np.sum(in_result), np.sum(in_truth)
    if found == 0 or wanted == 0:
        precision, recall = float(found == 0), float(wanted == 0)
    else:
        precision = np.sum(in_result * near_truth) / float(found)
        recall = np.sum(in_truth * near_result) / float(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contours(truth, result, void):
    voids = [None] * len(truth) if void is None else void
    return np.array([contour(*frame) for frame in zip(truth, result, voids, strict=True)])


def semi_supervised(truth, result):
    missing = len(truth) - len(result)
    if missing:
        result = np.concatenate([result, np.zeros((missing, *result.shape[1:]), bool)])
    pairs = list(zip(truth, result, strict=True))
    J = [region(*pair, None) for pair in pairs]
    return J, [contours(*pair, None) for pair in pairs]


def unsupervised(truth, result, void):
    missing = len(truth) - len(result)
    if missing > 0:
        result = np.concatenate([result, np.zeros((missing, *result.shape[1:]), bool)])
    J, F = np.zeros((2, len(result), len(truth), truth.shape[1]))
    for o in range(len(truth)):
        for p in range(len(result)):
            J[p, o] = region(truth[o], result[p], void)
            F[p, o] = contours(truth[o], result[p], void)
    chosen = linear_sum_assignment(-(J.mean(2) + F.mean(2)) / 2)
    return list(J[chosen]), list(F[chosen])


def statistics(series):
    edges = np.round(np.linspace(1, len(series), 5) + 1e-10) - 1
    edges = edges.astype(np.uint8)
    bins = [series[edges[i] : edges[i + 1] + 1] for i in range(4)]
    decay = np.nanmean(bins[0]) - np.nanmean(bins[3])
    return np.nanmean(series), np.nanmean(series > 0.5), decay


def evaluate(results, davis, task):
    """Return the seven global figures by name."""
    columns = {"J": [], "F": []}
    for name in (davis / "ImageSets/2017/val.txt").read_text().split():
        folder = davis / ANNOTATIONS[task] / "480p" / name
        stems = sorted(path.stem for path in folder.glob("*.png"))
        truth, void = read_truth(folder, stems)
        if task == "semi-supervised":
            stems = stems[1:-1]
            J, F = semi_supervised(truth[:, 1:-1], read_results(results / name, stems))
        else:
            J, F = unsupervised(truth, read_results(results / name, stems), void)
        columns["J"] += [statistics(series) for series in J]
        columns["F"] += [statistics(series) for series in F]
    figures = {}
    for letter, rows in columns.items():
        for name, column in zip(("Mean", "Recall", "Decay"), zip(*rows, strict=True), strict=True):
            figures[f"{letter}-{name}"] = float(np.mean(column))
    return {"J&F-Mean": (figures["J-Mean"] + figures["F-Mean"]) / 2, **figures}


if __name__ == "__main__":
    cv2.setNumThreads(1)
    begun = time.process_time()
    found = evaluate(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    print(json.dumps({"figures": found, "cpu_s": time.process_time() - begun}))
