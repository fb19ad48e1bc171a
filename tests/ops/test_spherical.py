"""Spherical K-means."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from timewalk.ops.spherical import spherical_kmeans


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_finds_the_directions_whatever_the_lengths():
    directions = torch.eye(4)
    points = directions.repeat(20, 1) + 0.05 * torch.randn(80, 4, generator=rng())
    points *= torch.rand(80, 1, generator=rng()) * 10 + 0.1
    centroids = spherical_kmeans(points, 4, rng())
    cosines = centroids @ directions.T
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2, 3]
    assert (cosines.amax(1) > 0.99).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_centroids_are_unit_means_of_their_points(seed, clusters):
    points = F.normalize(torch.randn(40, 3, generator=rng(seed)), dim=1)
    centroids = spherical_kmeans(points, clusters, rng(seed), iterations=200)
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(clusters))
    nearest = (points @ centroids.T).argmax(1)
    for number in nearest.unique().tolist():
        mean = F.normalize(points[nearest == number].sum(0), dim=0)
        torch.testing.assert_close(centroids[number], mean, rtol=0, atol=1e-5)


def test_repeats_by_seed():
    points = torch.randn(50, 5, generator=rng())
    assert torch.equal(spherical_kmeans(points, 4, rng(1)), spherical_kmeans(points, 4, rng(1)))
    assert not torch.equal(spherical_kmeans(points, 4, rng(1)), spherical_kmeans(points, 4, rng(2)))


def test_equal_points_leave_clusters_where_they_were():
    centroids = spherical_kmeans(torch.ones(6, 2), 3, rng())
    torch.testing.assert_close(centroids, torch.full((3, 2), 0.5**0.5))
