"""The contract between an evaluation and the rest: features or an encoder in, numbers out."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from timewalk.artefacts import write_text


@dataclass(frozen=True)
class Inputs:
    """What an evaluation reads and where it computes.

    Attributes:
        run: the run's folder, for :func:`timewalk.encoders.load_encoder`.
        dataset: ``manifest.json`` of the labelled set.
        device: where to compute.
        train: embeddings of the training split, for evaluations that need `embeddings`.
        test: embeddings of the test split, likewise.
        frames: manifests of the frames of each video of the data set that the evaluation's key
            ``frames`` names; empty where it has no such key.
        train_dataset: manifest of the labelled set that the evaluation's key ``train_dataset``
            names; None where it names none.
        workers: processes that read images.
    """

    run: Path
    dataset: Path
    device: torch.device
    train: Path | None = None
    test: Path | None = None
    frames: tuple[Path, ...] = ()
    train_dataset: Path | None = None
    workers: int = 0


@dataclass
class Result:
    """What an evaluation returns.

    Attributes:
        protocol: named variant of the evaluation; different protocols are never compared.
        metrics: name and value; percentages are 0 to 100; None where a metric has no meaning.
        samples: number of images, objects or videos that were scored.
        artefacts: files written beside the result.
    """

    protocol: str
    metrics: dict[str, float | None]
    samples: int
    artefacts: list[Path] = field(default_factory=list)


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a table, its first row the names of the columns; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
    return path
