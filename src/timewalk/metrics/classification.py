"""Classification metrics on class scores: pure functions.

N images, C classes. Strict: an image is a hit among the best m classes only if its class has a
positive score; equal scores are in the order of class numbers (`docs/deviations.md`).
"""

import torch
from torch import Tensor


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the place of the right class by falling score, from 0; C where its score is 0.

    Args:
        scores: (N, C), not negative.
        labels: int64 (N,), each in 0..C-1.

    Returns:
        int64 (N,).
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    place: Tensor = before.sum(1)
    return torch.where(own[:, 0] > 0, place, scores.shape[1])


def top_percent(ranks: Tensor, m: int) -> float:
    """Return the percentage of images whose right class is among the best ``m``."""
    return 100.0 * int((ranks < m).sum()) / len(ranks)


def confusion(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Return how often each class (row) was taken for each class (column), int64 (C, C)."""
    pairs = labels * num_classes + predictions
    counts = torch.bincount(pairs, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)
