"""Weighted k-NN classification on frozen features, the protocol of DINO (ICCV 2021).

Feature: the encoder's summary, L2-normalised. The k training images of largest cosine vote for
their classes with weight exp(cosine / T). Top-1 and Top-5 in percent of all test images.
Differences from the published code, all in `docs/evaluations/knn.md`: the number of classes comes
from the data, Top-5 is strict (only classes with a positive score count; equal scores in the
order of class numbers) and null below five classes, any number of test images will do, and a k
above the number of training images means all of them.

Shapes: N training images, M test images, C classes, D width.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import EvaluationConfig
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, check_origin, check_split, write_csv
from timewalk.evaluation.embed import Embeddings, load_embeddings
from timewalk.metrics.classification import confusion, ranks, top_percent

log = logging.getLogger(__name__)

CHUNK = 256
TOP = 5


class Config(EvaluationConfig):
    """Weighted k-NN on frozen features."""

    kind: Literal["knn"] = "knn"
    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [10, 20, 100, 200]
    """numbers of neighbours, each a result of its own; above the training images: all of them"""
    temperature: Annotated[float, Field(ge=0.005, le=10)] = 0.07
    """a neighbour of cosine s votes with weight exp(s / temperature)"""

    @field_validator("k")
    @classmethod
    def _no_doubles(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("each k may stand once")
        return value


@dataclass(frozen=True)
class Votes:
    """The outcome for one k.

    Attributes:
        k: neighbours.
        top1: percent.
        top5: percent; None with fewer than five classes.
        predictions: int64 (M,), the class of the highest score.
    """

    k: int
    top1: float
    top5: float | None
    predictions: Tensor


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score a run's features.

    Args:
        inputs: embeddings of the neighbours (``train``) and of the scored images (``test``).
        config: settings.
        output_dir: `per_class.csv` and `confusion.csv` go here.

    Raises:
        UserError: the two files do not belong together, or not to the run and the set.
    """
    train, test = inputs.train, inputs.test
    assert train is not None
    assert test is not None
    neighbours, scored = load_embeddings(train), load_embeddings(test)
    _check_pair(train, test, neighbours, scored)
    for path, item in ((train, neighbours), (test, scored)):
        check_origin(path, item.about, inputs)
    if max(config.k) > len(neighbours.labels):
        log.warning(
            "k %s: %s holds %d images, all of which vote",
            [k for k in config.k if k > len(neighbours.labels)],
            train,
            len(neighbours.labels),
        )
    votes = weighted_knn(
        neighbours.features,
        neighbours.labels,
        scored.features,
        scored.labels,
        ks=config.k,
        temperature=config.temperature,
        num_classes=len(scored.classes),
    )
    metrics: dict[str, float | None] = {}
    for vote in votes:
        metrics |= {f"top1_k{vote.k}": vote.top1, f"top5_k{vote.k}": vote.top5}
        log.info("%d-NN classifier result: Top1: %s, Top5: %s", vote.k, vote.top1, vote.top5)
    return Result(
        protocol=f"knn-cls-t{config.temperature:g}",
        metrics=metrics,
        samples=len(scored.labels),
        artefacts=_write_tables(output_dir, scored, votes),
    )


def weighted_knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    chunk: int = CHUNK,
) -> list[Votes]:
    """Classify by weighted k-NN for several k at once.

    Args:
        train_features: (N, D), of any length: normalised here.
        train_labels: int64 (N,).
        test_features: (M, D).
        test_labels: int64 (M,).
        ks: numbers of neighbours.
        temperature: T.
        num_classes: C.
        chunk: test images at a time; bounds the memory to about chunk x (N + C) numbers.

    Returns:
        One entry for each of ``ks``, in their order.
    """
    places: dict[int, list[Tensor]] = {k: [] for k in ks}
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    start = 0
    for scores in class_scores(
        train_features, train_labels, test_features, ks, temperature, num_classes, chunk
    ):
        stop = start + len(scores[ks[0]])
        for k in ks:
            places[k].append(ranks(scores[k], test_labels[start:stop]))
            predictions[k].append(scores[k].argmax(1))
        start = stop
    return [_outcome(k, torch.cat(places[k]), torch.cat(predictions[k]), num_classes) for k in ks]


def _outcome(k: int, places: Tensor, predictions: Tensor, num_classes: int) -> Votes:
    top5 = top_percent(places, min(TOP, k)) if num_classes >= TOP else None
    return Votes(k, top_percent(places, 1), top5, predictions)


def class_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    chunk: int = CHUNK,
) -> Iterator[dict[int, Tensor]]:
    """Yield for each chunk of test images the scores (m, C) for each k.

    Score of class c: the sum of exp(cosine / T) over the neighbours of class c. Each image's
    scores are scaled by the same exp(-largest cosine / T), which keeps them finite at low
    temperature and changes no ranking; float64 so that no neighbour's vote vanishes to 0.
    """
    train = F.normalize(train_features.float(), dim=1).T.contiguous()
    most = min(max(ks), len(train_labels))
    for images in test_features.split(chunk):
        # One product and one selection serve every k: neighbours come sorted.
        cosine, nearest = largest(F.normalize(images.float(), dim=1) @ train, most)
        weight = ((cosine - cosine[:, :1]).double() / temperature).exp()
        voted = train_labels[nearest]
        scores = weight.new_zeros(len(images), num_classes)
        result, done = {}, 0
        for k in sorted(set(ks)):
            stop = min(k, most)
            scores = scores.scatter_add(1, voted[:, done:stop], weight[:, done:stop])
            result[k], done = scores, stop
        yield result


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row, falling, and their columns: ``topk``, but faster.

    Columns are put into groups. The k largest values lie in at most k groups, and these are among
    the k groups of largest maximum: only their members need to be compared, with sqrt(n / k)
    members the fewest.

    Args:
        values: (m, n).
        k: at most n.

    Returns:
        (m, k) values and int64 (m, k) columns.
    """
    columns = values.shape[1]
    size = math.isqrt(columns // k)
    if size < 2:
        plain = values.topk(k, dim=1)
        return plain.values, plain.indices
    groups = columns // size
    # Group j is the columns j, j + groups, ...: the maximum then runs along rows of memory.
    maxima = values[:, : size * groups].unflatten(1, (size, groups)).amax(1)
    members = torch.arange(size, device=values.device)[:, None] * groups
    best = maxima.topk(k, dim=1, sorted=False).indices
    rest = torch.arange(size * groups, columns, device=values.device)
    candidates = torch.cat(
        [(best[:, None] + members).flatten(1), rest.expand(len(values), -1)], dim=1
    )
    found, order = values.gather(1, candidates).topk(k, dim=1)
    return found, candidates.gather(1, order)


def _check_pair(train: Path, test: Path, neighbours: Embeddings, scored: Embeddings) -> None:
    again = "run the embed stage again for both."
    for path, item, split in ((train, neighbours, "train"), (test, scored, "test")):
        check_split(path, item.about, split)
    for key in ("encoder_sha256", "dataset_sha256", "precision"):
        if neighbours.about.get(key) != scored.about.get(key):
            raise UserError(f"{train} and {test} differ in {key}: {again}")
    if neighbours.classes != scored.classes:
        raise UserError(f"{train} and {test} have different classes: {again}")
    for path, item in ((train, neighbours), (test, scored)):
        if not bool(item.features.isfinite().all()):
            raise UserError(f"{path} holds features that are not finite: train the run again.")


def _write_tables(folder: Path, scored: Embeddings, votes: Sequence[Votes]) -> list[Path]:
    names, count = scored.classes, len(scored.classes)
    tables = [confusion(scored.labels, vote.predictions, count) for vote in votes]
    images = tables[0].sum(1)
    accuracy = [[class_percent(row, i) for i, row in enumerate(table)] for table in tables]
    per_class = [
        [name, int(images[i]), *(column[i] for column in accuracy)] for i, name in enumerate(names)
    ]
    pairs = [
        [vote.k, names[row], names[column], int(table[row, column])]
        for vote, table in zip(votes, tables, strict=True)
        for row, column in table.nonzero().tolist()
    ]
    heads = ["class", "images", *(f"top1_k{vote.k}" for vote in votes)]
    return [
        write_csv(folder / "per_class.csv", [heads, *per_class]),
        write_csv(folder / "confusion.csv", [["k", "class", "predicted", "images"], *pairs]),
    ]


def class_percent(row: Tensor, label: int) -> float | None:
    """Return the percentage of a class's images that were recognised; None without images."""
    total = int(row.sum())
    return 100.0 * int(row[label]) / total if total else None
