"""Clusters and their matching, written from a description of TimeT's released code.

What costs time there is kept: maps are enlarged as a whole in float64, faiss' Kmeans
gets every pixel, and each pair of a class and a cluster is counted over all pixels anew.

Shapes: F maps, d dimensions, h and w cells, S side of the enlarged maps.
"""

import faiss
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

FLOOR = 1e-8


def enlarged(maps, size):
    """Return all pixels (F * S * S, d) of maps (F, d, h, w)."""
    tensor = torch.from_numpy(np.array(maps)).double()
    tensor = F.interpolate(tensor, (size, size), mode="bilinear", align_corners=False)
    return tensor.float().permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).contiguous().numpy()


def train(points, clusters, seed=1):
    """Return faiss' trained model."""
    model = faiss.Kmeans(points.shape[1], clusters, niter=50, nredo=5, seed=seed)
    model.train(points)
    return model


def assign(model, points):
    """Return the cluster of every pixel."""
    return model.index.search(points, 1)[1][:, 0]


def matched_miou(truth, predicted, criterion):
    """Return the mIoU and the predictions as classes (n,) of flat ids (n,)."""
    classes, clusters = np.unique(truth), np.unique(predicted)
    matrix = np.zeros((len(classes), len(clusters)))
    for row, number in enumerate(classes):
        for column, cluster in enumerate(clusters):
            matrix[row, column] = _score(truth == number, predicted == cluster, criterion)
    if criterion == "hungarian":
        rows, columns = linear_sum_assignment(1 - matrix)
        pairs = dict(zip(clusters[columns], classes[rows], strict=True))
    else:
        pairs = dict(zip(clusters, classes[matrix.argmax(axis=0)], strict=True))
    named = np.zeros(len(predicted), np.int64)
    for cluster in clusters:
        named[predicted == cluster] = pairs.get(cluster, 0)
    each = []
    for number in classes:
        tp, fp, fn = _counts(truth == number, named == number)
        each.append(tp / max(tp + fp + fn, FLOOR))
    return float(np.mean(each)), named


def _score(true, found, criterion):
    tp, fp, fn = _counts(true, found)
    return tp / max(tp + fp + (fn if criterion == "hungarian" else 0), FLOOR)


def _counts(true, found):
    return (true & found).sum(), (~true & found).sum(), (true & ~found).sum()
