"""Reduced maps against plain formulas on all rows at once, in parts and after an interruption."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from timewalk.encoders import Encoder, Features
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from timewalk.errors import UserError
from timewalk.evaluation import feature_file, feature_maps
from timewalk.evaluation.feature_maps import (
    Moments,
    cluster_maps,
    pixels_at,
    reduced_maps,
    upsampled,
)
from timewalk.ops.kmeans import KMeans

CPU = torch.device("cpu")
SIZE, CELL, WIDTH = 32, 8, 20


class Mixing(Encoder):
    """Fixed mixtures of each cell's pixels; channel 3 is constant. Counts its images."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, bad=False):
        super().__init__()
        self.stride = self.multiple = CELL
        self.width = self.patch_width = WIDTH
        self.spec, self.images, self.bad = {}, 0, bad
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("kernel", torch.randn(WIDTH, 3, CELL, CELL, generator=rng))

    def forward(self, images):
        self.images += len(images)
        maps = F.conv2d(images, self.kernel, stride=CELL)
        maps[:, 3] = 7
        if self.bad:
            maps[-1, 0, 0, 0] = torch.nan
        return Features(maps.mean((2, 3)), maps)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = [folder / f"{number}.png" for number in range(5)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(name)
    return names


@pytest.fixture
def maps_of(paths, tmp_path, monkeypatch):
    """Return a function that reduces the images' features, two images at a time."""
    monkeypatch.setattr(feature_maps, "BATCH", 2)

    def go(encoder, work="work", size=SIZE, **keys):
        return reduced_maps(encoder, paths, size, device=CPU, work=tmp_path / work, **keys)

    return go


def features_of(paths):
    """Return all rows, float64 (F * h * w, C)."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    maps = Mixing()((torch.tensor(pixels) / 255 - mean) / std).patches
    return maps.permute(0, 2, 3, 1).reshape(-1, WIDTH).double().numpy()


def plain(rows, dimensions):
    """Return standardised rows on their principal components, signs as they come."""
    deviation = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(deviation > 1e-6, deviation, 1)
    _, _, axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
    return scaled @ axes[:dimensions].T


def flat(maps):
    return np.asarray(maps).transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])


def test_they_are_those_of_all_rows_at_once(maps_of, paths):
    maps = maps_of(Mixing(), dimensions=6)
    assert (maps.shape, maps.dtype) == ((5, 6, 4, 4), np.float32)
    expected = plain(features_of(paths), 6)
    expected *= np.sign((expected * flat(maps)).sum(axis=0))
    np.testing.assert_allclose(flat(maps), expected, atol=2e-4)


def test_parts_and_their_size_change_nothing(maps_of, monkeypatch, tmp_path):
    first = np.array(maps_of(Mixing(), dimensions=6))
    monkeypatch.setattr(feature_maps, "BATCH", 5)
    monkeypatch.setattr(feature_maps, "PIXELS", 1)
    np.testing.assert_allclose(maps_of(Mixing(), "other", dimensions=6), first, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["maps.json", "maps.npy"]


def test_a_constant_channel_adds_nothing(maps_of, caplog):
    maps = maps_of(Mixing())
    assert np.isfinite(maps).all()
    assert maps.shape[1] == WIDTH
    variance = flat(maps).var(axis=0)
    # 19 channels of variance 1; the last component has nothing left.
    assert variance.sum() == pytest.approx(WIDTH - 1, rel=1e-4)
    assert variance[-1] < 1e-6
    assert "features have 20 principal components, not 50" in caplog.messages


def test_weights_make_rows_zero_before_all_else(maps_of, paths):
    weights = np.random.default_rng(3).random((5, 4, 4)) > 0.4
    maps = maps_of(Mixing(), weights=weights, dimensions=4)
    rows = features_of(paths) * weights.reshape(-1, 1)
    expected = plain(rows, 4)
    expected *= np.sign((expected * flat(maps)).sum(axis=0))
    np.testing.assert_allclose(flat(maps), expected, atol=2e-4)


def test_what_is_done_is_kept_until_something_differs(maps_of):
    encoder = Mixing()
    first = np.array(maps_of(encoder, dimensions=4))
    np.testing.assert_array_equal(maps_of(encoder, dimensions=4), first)
    assert encoder.images == 5
    maps_of(encoder, dimensions=3)
    maps_of(encoder, dimensions=3, weights=np.ones((5, 4, 4), bool))
    assert encoder.images == 15
    encoder.kernel += 1
    maps_of(encoder, dimensions=3, weights=np.ones((5, 4, 4), bool))
    assert encoder.images == 20
    encoder.spec = {"heads": 3}
    maps_of(encoder, dimensions=3, weights=np.ones((5, 4, 4), bool))
    assert encoder.images == 25


def test_an_interrupted_run_leaves_nothing_that_looks_finished(maps_of, monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_maps, "_write_maps", stop)
        with pytest.raises(KeyboardInterrupt):
            maps_of(Mixing())
    assert list((tmp_path / "work").iterdir()) == []
    assert maps_of(Mixing()).shape == (5, WIDTH, 4, 4)


def test_fewer_rows_than_dimensions(tmp_path, paths):
    maps = reduced_maps(Mixing(), paths[:1], 16, device=CPU, work=tmp_path)
    assert maps.shape == (1, 4, 2, 2)


def test_features_that_are_not_finite_name_an_image(maps_of, paths):
    with pytest.raises(UserError, match=rf"not finite for {paths[0]} or the 1 images after it"):
        maps_of(Mixing(bad=True))


def test_a_disk_that_is_too_small(maps_of, monkeypatch, tmp_path):
    encoder = Mixing()
    # 5 images of 16 patches, 20 channels and 6 reduced ones.
    needed = 4 * 5 * 16 * 26
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(feature_file.shutil, "disk_usage", lambda _: usage(needed - 1))
    with pytest.raises(UserError, match=r"work needs 0\.0 GB for the features of 5 images but 0"):
        maps_of(encoder, dimensions=6)
    assert encoder.images == 2
    assert list((tmp_path / "work").iterdir()) == []
    monkeypatch.setattr(feature_file.shutil, "disk_usage", lambda _: usage(needed))
    assert maps_of(encoder, dimensions=6).shape == (5, 6, 4, 4)


def test_a_size_that_does_not_fit_the_encoder(maps_of):
    with pytest.raises(UserError, match="image_size is 36 but the encoder needs multiples of 8"):
        maps_of(Mixing(), size=36)


def test_moments_do_not_lose_digits_far_from_zero():
    rows = np.random.default_rng(0).standard_normal((999, 3)) + 1e6
    moments = Moments()
    for part in np.array_split(rows, 7):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.scatter / 999, np.cov(rows.T, bias=True), rtol=1e-7)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [4, 9, 28])
def test_single_pixels_are_those_of_the_enlarged_map(mode, size):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((3, 5, 4, 6)).astype(np.float32)
    whole = upsampled(maps, size, mode)
    assert (whole.shape, whole.dtype) == ((3 * size * size, 5), np.float32)
    rows = rng.permutation(len(whole))[:100]
    found = pixels_at(maps, size, rows, mode)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole[rows], atol=2e-6)


def test_upsampled_by_hand():
    maps = np.array([[[[0.0, 1.0]], [[4.0, 8.0]]]], np.float32)
    np.testing.assert_allclose(
        upsampled(maps, 4)[:4], [[0, 4], [0.25, 5], [0.75, 7], [1, 8]], atol=1e-6
    )
    assert upsampled(maps, 2, "nearest").tolist() == [[0, 4], [1, 8], [0, 4], [1, 8]]


def halves(count, channels=3):
    """Return maps whose left and right halves differ, with some noise."""
    rng = np.random.default_rng(0)
    maps = 0.05 * rng.standard_normal((count, channels, 4, 4))
    maps[:, 0, :, 2:] += 5
    return maps.astype(np.float32)


@pytest.mark.parametrize("part", [1, 1 << 19])
def test_clusters_go_over_all_maps(monkeypatch, part):
    monkeypatch.setattr(feature_maps, "PIXELS", part)
    clusters = cluster_maps(halves(3), 2, 8, KMeans())
    assert (clusters.shape, clusters.dtype) == ((3, 8, 8), np.uint16)
    left, right = clusters[:, :, :3], clusters[:, :, 5:]
    assert len(np.unique(left)) == len(np.unique(right)) == 1
    assert left[0, 0, 0] != right[0, 0, 0]


def test_a_part_of_the_pixels_trains_the_same_centroids():
    maps, settings = halves(40), KMeans(max_points_per_centroid=64)
    points = upsampled(maps, 8)
    from timewalk.ops.kmeans import assign, kmeans

    expected = assign(points, kmeans(points, 2, settings)).reshape(-1, 8, 8)
    np.testing.assert_array_equal(cluster_maps(maps, 2, 8, settings), expected)


def test_fewer_pixels_than_clusters():
    with pytest.raises(UserError, match="16 points cannot make 20 clusters"):
        cluster_maps(halves(1), 20, 4, KMeans())
