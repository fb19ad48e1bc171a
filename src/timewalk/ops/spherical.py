"""Spherical K-means: unit vectors by cosine, in a few lines of torch that always repeat.

Shapes: N points, K clusters, D dimensions.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ITERATIONS = 50


def spherical_kmeans(
    points: Tensor, clusters: int, rng: torch.Generator, iterations: int = ITERATIONS
) -> Tensor:
    """Return the unit centroids of some vectors, (K, D): means of the points that are nearest.

    The first ones are points drawn one after another, far ones rather than near (k-means++); the
    rest is Lloyd's algorithm until nothing changes. A cluster that loses all points stays where it
    was.

    Args:
        points: (N, D), of any length, N at least K.
        clusters: K.
        rng: on the CPU; the same on every device.
        iterations: at most.
    """
    points = F.normalize(points, dim=-1)
    centroids = _start(points, clusters, rng)
    before = None
    for _ in range(iterations):
        nearest = (points @ centroids.T).argmax(1)
        if before is not None and torch.equal(nearest, before):
            break
        # A product instead of scattered sums, which differ from run to run on a GPU.
        members = F.one_hot(nearest, clusters).to(points.dtype).T
        sums = F.normalize(members @ points, dim=-1)
        centroids = torch.where(sums.any(1, keepdim=True), sums, centroids)
        before = nearest
    return centroids


def _start(points: Tensor, clusters: int, rng: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(points), (1,), generator=rng))]
    distance = torch.full((len(points),), torch.inf, device=points.device)
    for _ in range(clusters - 1):
        # Squared distance of unit vectors, up to a factor.
        distance = torch.minimum(distance, 1 - points @ points[chosen[-1]])
        # On the CPU, because running sums on a GPU differ from run to run.
        shares = distance.clamp(min=1e-12).double().cpu().cumsum(0)
        drawn = torch.rand(1, generator=rng, dtype=torch.double) * shares[-1]
        chosen.append(min(int(torch.searchsorted(shares, drawn)), len(points) - 1))
    return points[chosen]
