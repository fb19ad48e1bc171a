"""What the evaluations of embeddings of videos share: keys, protocol names, percentages."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from timewalk.evaluation.phase_embeddings import PhaseEmbeddings
from timewalk.metrics.phases import share


def _rising(values: list[float]) -> list[float]:
    if any(after <= before for before, after in pairwise(values)):
        raise ValueError("let them rise, each once")
    return values


Fraction = Annotated[float, Field(gt=0, le=1)]
Fractions = Annotated[list[Fraction], Field(min_length=1), AfterValidator(_rising)]
"""shares of the training videos, rising"""


def protocol(*parts: object, of: PhaseEmbeddings) -> str:
    """Return the name of a protocol; frames and videos that were left out are named too."""
    stride, most = (int(of.about.get(key) or 0) for key in ("stride", "max_videos"))
    words = [str(part) for part in parts]
    words += [f"every{stride}"] if stride > 1 else []
    words += [f"first{most}"] if most else []
    return "-".join(words)


def joined(values: Sequence[float]) -> str:
    """Return numbers as a part of a protocol's name."""
    return "-".join(f"{value:g}" for value in values)


def first(found: PhaseEmbeddings, fraction: float) -> list[int]:
    """Return the places of the first ``fraction`` of the videos."""
    return list(range(share(fraction, len(found.videos))))


def features(found: PhaseEmbeddings, places: Sequence[int] | None = None) -> np.ndarray:
    """Return the embeddings (F, D) of all frames of some videos, or of all."""
    chosen = range(len(found.videos)) if places is None else places
    return np.concatenate([found.videos[i].embeddings for i in chosen])


def labels(found: PhaseEmbeddings) -> list[np.ndarray]:
    """Return the labels (L,) of each video of a set that has them (``phase_names`` checks)."""
    return [video.labels for video in found.videos if video.labels is not None]


def percent(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the percentage of frames that were recognised."""
    return 100.0 * float((predicted == truth).mean())


def finite(value: float) -> float | None:
    """Return a number, None where it has no meaning."""
    return float(value) if math.isfinite(value) else None
