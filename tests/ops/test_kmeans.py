"""K-means: what it finds, that it repeats itself, and what it refuses."""

import logging
import sys

import numpy as np
import pytest

from timewalk.errors import UserError
from timewalk.ops.kmeans import KMeans, assign, kmeans, load_faiss, training_rows

VARIANTS = ("published", "fast")


def blobs(clusters=5, each=60, width=8, seed=0):
    """Return points around far centres, and the number of each one's centre."""
    rng = np.random.default_rng(seed)
    centres = 20 * rng.standard_normal((clusters, width))
    of = np.repeat(np.arange(clusters), each)
    points = centres[of] + rng.standard_normal((len(of), width))
    return points.astype(np.float32), of


def inertia(points, centroids):
    return ((points - centroids[assign(points, centroids)]) ** 2).sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_far_blobs_are_found(variant):
    points, of = blobs()
    centroids = kmeans(points, 5, KMeans(variant=variant))
    assert (centroids.dtype, centroids.shape) == (np.float32, (5, 8))
    found = assign(points, centroids)
    assert found.dtype == np.int64
    pairs = set(zip(of.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 5 == len({cluster for _, cluster in pairs})
    means = np.stack([points[found == k].mean(axis=0) for k in range(5)])
    np.testing.assert_allclose(centroids, means, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_gives_the_same_centroids(variant):
    points = np.random.default_rng(0).standard_normal((900, 6)).astype(np.float32)
    first, again, other = (
        kmeans(points, 12, KMeans(seed=seed, variant=variant)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_fast_is_nearly_as_good():
    points = np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float32)
    for clusters in (4, 40, 150):
        first, second = (
            inertia(points, kmeans(points, clusters, KMeans(variant=variant)))
            for variant in VARIANTS
        )
        assert second < 1.04 * first


def test_published_is_faiss_on_the_rows_that_it_would_take_itself():
    faiss = pytest.importorskip("faiss")
    points = np.random.default_rng(1).standard_normal((5000, 6)).astype(np.float32)
    settings = KMeans(iterations=7, redos=2, max_points_per_centroid=50, seed=9)
    model = faiss.Kmeans(6, 20, niter=7, nredo=2, max_points_per_centroid=50, seed=9)
    model.train(points)
    rows = training_rows(5000, 20, settings)
    assert len(set(rows.tolist())) == 1000
    np.testing.assert_array_equal(kmeans(points, 20, settings), model.centroids)
    np.testing.assert_array_equal(kmeans(points[rows], 20, settings), model.centroids)
    assert training_rows(1000, 20, settings) is None


def test_assign_takes_the_nearest():
    rng = np.random.default_rng(2)
    points, centroids = (rng.standard_normal((n, 5)).astype(np.float32) for n in (300, 7))
    distance = ((points[:, None].astype(float) - centroids) ** 2).sum(axis=2)
    np.testing.assert_array_equal(assign(points, centroids), distance.argmin(axis=1))


def test_as_many_points_as_clusters():
    points = np.eye(4, dtype=np.float32)
    assert sorted(assign(points, kmeans(points, 4, KMeans())).tolist()) == [0, 1, 2, 3]


def test_one_cluster_is_the_mean():
    points, _ = blobs(4, 50)
    np.testing.assert_allclose(kmeans(points, 1, KMeans())[0], points.mean(axis=0), atol=1e-3)


def test_fewer_points_than_clusters():
    with pytest.raises(UserError, match=r"3 points cannot make 4 clusters; lower 'clusters'"):
        kmeans(np.zeros((3, 2), np.float32), 4, KMeans())


def test_few_points_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        kmeans(blobs(2, 20)[0], 2, KMeans())
    assert caplog.messages == ["only 40 points for 2 clusters: centroids are rough"]


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"^faiss is missing: pip install 'timewalk\[segm"):
        load_faiss()
