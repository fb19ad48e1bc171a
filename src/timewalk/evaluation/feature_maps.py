"""Patch features of many images, reduced to few dimensions, and their clusters as maps.

Source: TimeT's released evaluation. Features are standardised over all rows, projected on their
principal components, enlarged to the map's size and clustered. A data set is worked through in
parts: neither its features nor its enlarged maps are ever in memory as a whole.

Shapes: F images, C channels, h and w rows and columns of patches, d reduced dimensions, S side of
the enlarged maps.
"""

import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from timewalk.artefacts import atomic_path, read_json, sha256_json, write_json
from timewalk.data.segmented import Squares
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.evaluation.embed import Extractor, Precision
from timewalk.evaluation.feature_file import check_disk, check_finite
from timewalk.evaluation.segmentation_pairs import check_side, in_batches, runs_of
from timewalk.ops.kmeans import KMeans, assign, kmeans, training_rows

log = logging.getLogger(__name__)

Mode = Literal["bilinear", "nearest"]

NOTE = "maps.json"
BATCH = 16
"""images that the encoder sees at a time"""
PIXELS = 1 << 19
"""enlarged pixels that are held at a time"""
RESOLUTION = 1e-8
"""a standard deviation below this share of the mean is rounding: the channel is constant"""


def reduced_maps(
    encoder: Encoder,
    paths: Sequence[Path],
    image_size: int,
    *,
    device: torch.device,
    dimensions: int = 50,
    work: Path,
    workers: int = 0,
    weights: np.ndarray | None = None,
    precision: Precision = "fp32",
) -> np.ndarray:
    """Return the reduced patch features of images, float32 (F, d, h, w), memory-mapped.

    What an earlier call with the same encoder, images and settings left in ``work`` is returned as
    it is.

    Args:
        encoder: in eval mode, on the device.
        paths: images.
        image_size: side in pixels to which they are resized.
        device: where the encoder computes.
        dimensions: principal components that are kept; as many as there are, where there are fewer
            channels or patches.
        work: folder of the files.
        workers: processes that read images.
        weights: (F, h, w) bool; features are multiplied by it before anything else.
        precision: arithmetic of the encoder.

    Raises:
        UserError: an unreadable image, a size that the encoder does not take, features that are not
            finite, or too little disk.
    """
    check_side(encoder, image_size)
    target, note = work / "maps.npy", work / NOTE
    key = _key(encoder, paths, image_size, dimensions, weights, precision)
    if not (target.is_file() and note.is_file() and read_json(note)["key"] == key):
        note.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        extractor = Extractor(encoder, device, precision, encoder.dense)
        with atomic_path(work / "features.bin") as file:
            moments, grid = _write_features(
                extractor, paths, image_size, file, workers, weights, dimensions
            )
            projection = moments.projection(dimensions)
            _write_maps(file, projection, (len(paths), *grid), target)
        (work / "features.bin").unlink()
        write_json(note, {"key": key})
    maps: np.ndarray = np.load(target, mmap_mode="r")
    if maps.shape[1] < dimensions:
        log.warning("features have %d principal components, not %d", maps.shape[1], dimensions)
    return maps


def maps_key(work: Path) -> str:
    """Return a digest of what the maps in a folder depend on: images, encoder, settings."""
    return str(read_json(work / NOTE)["key"])


def upsampled(maps: np.ndarray, size: int, mode: Mode = "bilinear") -> np.ndarray:
    """Return the pixels of maps (n, C, h, w) enlarged to squares, float32 (n * S * S, C)."""
    # With channels last in memory the pixels need not be turned round afterwards.
    tensor = torch.from_numpy(np.array(maps.transpose(0, 2, 3, 1), np.float32)).permute(0, 3, 1, 2)
    corners = False if mode == "bilinear" else None
    enlarged = F.interpolate(tensor, (size, size), mode=mode, align_corners=corners)
    pixels: np.ndarray = enlarged.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).numpy()
    return pixels


def pixels_at(maps: np.ndarray, size: int, rows: np.ndarray, mode: Mode = "bilinear") -> np.ndarray:
    """Return some rows (n,) of what :func:`upsampled` returns, without enlarging the rest."""
    image, place = np.divmod(rows, size * size)
    y, x = np.divmod(place, size)
    (top, bottom, down), (left, right, across) = (_taps(n, size, mode) for n in maps.shape[2:])
    down, across = down[y, None], across[x, None]
    above = _mixed(maps[image, :, top[y], left[x]], maps[image, :, top[y], right[x]], across)
    if mode == "nearest":
        return above
    below = _mixed(maps[image, :, bottom[y], left[x]], maps[image, :, bottom[y], right[x]], across)
    return _mixed(above, below, down)


def cluster_maps(
    maps: np.ndarray, clusters: int, size: int, settings: KMeans, mode: Mode = "bilinear"
) -> np.ndarray:
    """Return the cluster of every pixel of some enlarged maps, uint16 (F, S, S).

    One K-means over all of them.

    Args:
        maps: (F, d, h, w).
        clusters: K.
        size: S.
        settings: of K-means.
        mode: how maps are enlarged.

    Raises:
        UserError: fewer pixels than clusters.
    """
    rows = training_rows(len(maps) * size * size, clusters, settings)
    points = upsampled(maps, size, mode) if rows is None else pixels_at(maps, size, rows, mode)
    centroids = kmeans(points, clusters, settings)
    del points
    found = np.empty((len(maps), size, size), np.uint16)
    step = max(1, PIXELS // size**2)
    for start in range(0, len(maps), step):
        part = upsampled(maps[start : start + step], size, mode)
        found[start : start + step] = assign(part, centroids).reshape(-1, size, size)
    return found


@dataclass(frozen=True)
class Projection:
    """Rows to principal components.

    Attributes:
        mean: float64 (C,), subtracted first.
        components: float64 (C, d), those of the standardised rows divided by the deviation.
        variance: float64 (d,), of each component.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the components of rows (n, C), float32 (n, d)."""
        centred = rows - self.mean.astype(np.float32)
        found: np.ndarray = centred @ self.components.astype(np.float32)
        return found


class Moments:
    """Mean and covariance of rows that come in parts, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))
        """(C, C), sum over rows of the products of what differs from the mean"""

    def add(self, rows: np.ndarray) -> None:
        """Take in rows (n, C)."""
        exact = rows.astype(np.float64)
        mean = exact.mean(axis=0)
        centred = exact - mean
        if not self.count:
            self.mean, self.scatter = np.zeros_like(mean), np.zeros((len(mean), len(mean)))
        total = self.count + len(rows)
        away = mean - self.mean
        self.scatter += centred.T @ centred
        self.scatter += np.outer(away, away) * (self.count * len(rows) / total)
        self.mean = self.mean + away * (len(rows) / total)
        self.count = total

    def projection(self, dimensions: int) -> Projection:
        """Return the principal components of the standardised rows; constant channels are 0."""
        variance = np.diag(self.scatter) / self.count
        varies = variance > (RESOLUTION * self.mean) ** 2
        scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        correlation = self.scatter / self.count * np.outer(scale, scale)
        values, vectors = np.linalg.eigh(correlation)
        kept = min(dimensions, len(values), self.count)
        values, vectors = values[::-1][:kept], vectors[:, ::-1][:, :kept]
        # A component's sign is arbitrary: its largest entry becomes positive.
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
        vectors = vectors * np.where(largest < 0, -1, 1)
        return Projection(self.mean, vectors * scale[:, None], values)


def _write_features(
    extractor: Extractor,
    paths: Sequence[Path],
    image_size: int,
    file: Path,
    workers: int,
    weights: np.ndarray | None,
    dimensions: int,
) -> tuple[Moments, tuple[int, int]]:
    """Write all rows, float32 (F * h * w, C); return their moments and the map's shape."""
    batches = in_batches(Squares(paths, image_size), runs_of(0, len(paths), BATCH), workers)
    moments, grid, start = Moments(), (0, 0), 0
    with open(file, "wb") as out, _progress(len(paths)) as bar:
        for batch in batches:
            features = extractor(batch).cpu()
            grid = (features.shape[2], features.shape[3])
            check_finite(features, f"{paths[start]} or the {len(batch) - 1} images after it")
            if weights is not None:
                features *= torch.from_numpy(weights[start : start + len(batch), None])
            rows = features.permute(0, 2, 3, 1).flatten(0, 2).contiguous().numpy()
            if not start:
                bytes_each = rows.nbytes // len(batch)
                reduced = bytes_each * min(dimensions, features.shape[1]) // features.shape[1]
                check_disk(file.parent, len(paths) * (bytes_each + reduced), len(paths))
            moments.add(rows)
            rows.tofile(out)
            start += len(batch)
            bar.update(len(batch))
    return moments, grid


def _write_maps(
    file: Path, projection: Projection, shape: tuple[int, int, int], target: Path
) -> None:
    """Project the rows that lie in a file and write maps, `.npy` of float32 (F, d, h, w)."""
    images, height, width = shape
    channels, kept = projection.components.shape
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": (images, kept, height, width),
    }
    step = max(1, PIXELS // (height * width * 8))
    # Read and written in parts, not mapped: what is mapped counts as memory of the process.
    with open(file, "rb") as rows, atomic_path(target) as temporary, open(temporary, "wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, images, step):
            count = min(step, images - start)
            part = np.fromfile(rows, np.float32, count * height * width * channels)
            maps = projection(part.reshape(-1, channels)).reshape(count, height, width, kept)
            np.ascontiguousarray(maps.transpose(0, 3, 1, 2)).tofile(out)


def _taps(cells: int, size: int, mode: Mode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each enlarged place the cells before and after it, and the latter's share."""
    ramp = torch.arange(cells, dtype=torch.float64)[None, None]
    if mode == "nearest":
        position = F.interpolate(ramp, size, mode="nearest")[0, 0]
    else:
        position = F.interpolate(ramp, size, mode="linear", align_corners=False)[0, 0]
    low = position.floor().long()
    share = (position - low).float()
    return low.numpy(), (low + 1).clamp(max=cells - 1).numpy(), share.numpy()


def _mixed(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.asarray(first + (second - first) * share, np.float32)


def _key(
    encoder: Encoder,
    paths: Sequence[Path],
    image_size: int,
    dimensions: int,
    weights: np.ndarray | None,
    precision: Precision,
) -> str:
    """Return a digest of what reduced maps depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing; restore it, or prepare the set again.")
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return sha256_json(
        {
            "encoder": [digest.hexdigest(), encoder.spec, encoder.mean, encoder.std],
            "files": files,
            "settings": [image_size, dimensions, precision],
            "weights": None if weights is None else hashlib.sha256(weights.tobytes()).hexdigest(),
        }
    )


def _progress(total: int) -> Any:
    return tqdm(total=total, unit="image", disable=not sys.stderr.isatty())
