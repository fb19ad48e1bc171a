"""The contract between an evaluation and the rest: features or an encoder in, numbers out."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from timewalk.artefacts import sha256_file, write_text
from timewalk.encoders.files import HEAD, TENSORS
from timewalk.errors import UserError


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
        network: folder of the fine-tuned network that the evaluation's key ``network`` names.
        workers: processes that read images.
    """

    run: Path
    dataset: Path
    device: torch.device
    train: Path | None = None
    test: Path | None = None
    frames: tuple[Path, ...] = ()
    train_dataset: Path | None = None
    network: Path | None = None
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


def check_origin(path: Path, about: Mapping[str, Any], inputs: Inputs) -> None:
    """Refuse embeddings that another encoder or head gave, or of another set.

    Args:
        path: the file of embeddings.
        about: what it says of itself; a digest that is not in it is not checked.
        inputs: run and set that the embeddings are scored as.

    Raises:
        UserError: names what differs.
    """
    files = {
        "encoder_sha256": inputs.run / TENSORS,
        "head_sha256": inputs.run / HEAD,
        "dataset_sha256": inputs.dataset,
    }
    for key, source in files.items():
        found = sha256_file(source) if source.is_file() else None
        if key in about and about[key] != found:
            raise UserError(
                f"{path} was not made with {source} as it is now ({key}): run the embed stage "
                "again, or name the run and the set that it was made of."
            )


def check_split(path: Path, about: Mapping[str, Any], split: str) -> None:
    """Refuse embeddings of the other split; a file that does not say its split is taken.

    Raises:
        UserError: says which split the file holds.
    """
    found = about.get("split", split)
    if found != split:
        raise UserError(
            f"{path} holds the split '{found}' where '{split}' is read: name the training split's "
            "file first, then the test split's."
        )


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a table, its first row the names of the columns; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
    return path
