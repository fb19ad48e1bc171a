"""Patch features of many images, reduced to few dimensions, and their clusters as maps.

Sheet: segmentation-eval section 1. Features are standardised over all rows, projected on their
principal components, enlarged to the map's size and clustered. A data set is worked through in
parts: what is held in memory does not grow with the enlarged maps.

Shapes: F images, C channels, h and w rows and columns of patches, d reduced dimensions.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from timewalk.artefacts import atomic_path, read_json, sha256_json, write_json
from timewalk.data.segmented import Squares
from timewalk.data.workers import plain_errors
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.evaluation.embed import Extractor, Precision
from timewalk.ops.kmeans import KMeans, assign, kmeans, training_rows

log = logging.getLogger(__name__)

Mode = Literal["bilinear", "nearest"]

BATCH = 16
CHUNK = 1 << 19
"""enlarged pixels that are held at a time"""
RESOLUTION = 1e-8
"""standard deviations below this share of the mean are rounding: the channel is constant"""


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

    What lies finished in ``work`` from an earlier call with the same encoder, images and settings
    is returned as it is.

    Args:
        encoder: in eval mode, on the device.
        paths: images.
        image_size: side in pixels to which they are resized.
        device: where the encoder computes.
        dimensions: principal components that are kept; fewer where there are fewer channels or
            patches.
        work: folder of the files.
        workers: processes that read images.
        weights: (F, h, w) bool; features are multiplied by it before anything else.
        precision: arithmetic of the encoder.

    Raises:
        UserError: an unreadable image, a size that does not fit the encoder, or features that are
            not finite.
    """
    check_size(encoder, image_size)
    target, note = work / "maps.npy", work / "maps.json"
    key = _key(encoder, paths, image_size, dimensions, weights, precision)
    if note.is_file() and target.is_file() and read_json(note)["key"] == key:
        return np.load(target, mmap_mode="r")
    note.unlink(missing_ok=True)
    extractor = Extractor(encoder, device, precision, encoder.dense)
    loader = DataLoader(
        Squares(paths, image_size),
        BATCH,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=device.type == "cuda",
    )
    moments, grid = Moments(), (0, 0)
    with atomic_path(work / "features.bin") as raw:
        with open(raw, "wb") as file, _progress(len(paths)) as bar, plain_errors():
            start = 0
            for batch in loader:
                features = extractor(batch).cpu()
                grid = (features.shape[2], features.shape[3])
                rows = _rows(features, weights, slice(start, start + len(batch)))
                if not np.isfinite(rows).all():
                    raise UserError(
                        f"the encoder gives features that are not finite for {paths[start]} or "
                        "one of the images after it; train it again."
                    )
                moments.add(rows)
                rows.tofile(file)
                start += len(batch)
                bar.update(len(batch))
        projection = moments.projection(dimensions)
        project(raw, projection, len(paths), grid, target)
    (work / "features.bin").unlink()
    write_json(note, {"key": key, "dimensions": projection.components.shape[1]})
    return np.load(target, mmap_mode="r")
