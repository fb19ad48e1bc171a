"""What the evaluations that draw share: choice of images, colours, sheets, PNG files."""

import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timewalk.artefacts import atomic_path
from timewalk.errors import UserError

GAP = 4
"""white pixels between the pictures of a sheet"""


def balanced(labels: Tensor, count: int, seed: int) -> list[int]:
    """Return at most ``count`` places of ``labels``, as many of each class as there are, sorted.

    Classes take turns: a class with too few images leaves its turns to the others.
    """
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=rng).tolist()
    turns: dict[int, int] = {}
    ranked = []
    for place in order:
        label = int(labels[place])
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], label, place))
    return sorted(place for _, _, place in sorted(ranked)[:count])


def needed(module: str) -> Any:
    """Import a library of the extra `figures`; its absence is a :class:`UserError`."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{module.split('.')[0]} is missing: pip install 'timewalk[figures]' draws pictures."
        ) from None


def normalised(values: np.ndarray) -> np.ndarray:
    """Stretch to 0..1 between minimum and maximum; a constant becomes 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def heat(values: np.ndarray) -> np.ndarray:
    """Return (h, w) values as uint8 RGB in matplotlib's default colour map, own range."""
    colours = needed("matplotlib").colormaps["viridis"]
    return np.round(colours(normalised(values))[..., :3] * 255).astype(np.uint8)


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """Upsample the first two axes by repetition."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lay uint8 pictures out in rows on white, each row as high as its highest picture."""
    lines = []
    width = max(sum(p.shape[1] + GAP for p in row) - GAP for row in rows)
    for row in rows:
        line = np.full((max(p.shape[0] for p in row), width, 3), 255, np.uint8)
        left = 0
        for picture in row:
            line[: picture.shape[0], left : left + picture.shape[1]] = picture
            left += picture.shape[1] + GAP
        lines += [line, np.full((GAP, width, 3), 255, np.uint8)]
    return np.concatenate(lines[:-1])


def save_png(target: Path, picture: np.ndarray) -> Path:
    """Write a uint8 (H, W, 3) picture, atomically, the same bytes for the same pixels."""
    with atomic_path(target) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
    return target


def save_figure(target: Path, figure: Any) -> Path:
    """Write a matplotlib figure without date or version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    with atomic_path(target) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return target
