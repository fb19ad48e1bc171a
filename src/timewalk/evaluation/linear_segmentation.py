"""Semantic segmentation by a small head on frozen patch features: a linear one, or an FCN.

Source: TimeT's released code, the FCN from its second release. The features are enlarged bilinearly
to maps of ``map_size``, and the head is trained with SGD and cross-entropy against masks of that
size. As published nothing is augmented, so the features are computed once, into a file that is
mapped into memory; with ``augment`` every epoch computes those of fresh crops.

A 1x1 convolution and a bilinear resize (its weights sum to 1) may change places, so the linear head
works on the cells, a twentieth of the pixels, and its logits are enlarged.

Shapes: B images of a batch, N images, C classes, D width, h and w cells, M side of the maps.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.artefacts import sha256_json
from timewalk.config import Positive
from timewalk.data.seeds import generator, seed_of
from timewalk.data.segmented import SegmentedSet, Squares
from timewalk.data.sequences import VOID
from timewalk.encoders import encoder_digest, load_encoder, seeded
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.feature_file import PART, FeatureFile, check_finite, feature_file
from timewalk.evaluation.probe import Probe, Row
from timewalk.evaluation.segmentation_config import (
    SegmentationConfig,
    Side,
    WithTraining,
    scored_set,
    training_set,
)
from timewalk.evaluation.segmentation_heads import FCNHead, LinearHead
from timewalk.evaluation.segmentation_pairs import (
    RandomPairs,
    check_classes,
    check_side,
    class_counts,
    class_names,
    in_batches,
    targets_of,
    title,
)
from timewalk.evaluation.segmentation_scores import (
    class_table,
    percent,
    save_sheet,
    spread,
)
from timewalk.metrics.matching import Contingency, MatchedScores, add, contingency, matched_scores

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0
COLUMNS = ("epoch", "learning_rate", "train_loss", "miou", "pixel_accuracy")
ORDER, DROPS, CROPS = 0, 1, 2
"""what is drawn from the seed: the order of images, dropout, crops"""
NOT_FOR_RESULTS = {"runs", "pictures"}
"""keys that change neither the head nor its scores"""

Batch = tuple[Tensor, Tensor]


class Config(SegmentationConfig, WithTraining):
    """A segmentation head on frozen patch features."""

    kind: Literal["linear_segmentation"] = "linear_segmentation"
    head: Literal["linear", "fcn"] = "linear"
    """`linear`: a 1x1 convolution; `fcn`: two 3x3 convolutions of 512 channels, a third over them
    and their input, dropout, and a 1x1 convolution"""
    image_size: Side = 448
    """side in pixels of the square to which images are resized for the encoder"""
    map_size: Side = 100
    """side in pixels of the maps on which the head is trained and scored"""
    epochs: Positive = 50
    """passes over the training images"""
    batch_size: Positive = 60
    """images in one optimiser step"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """at the start"""
    decay_epochs: Positive = 20
    """epochs after which the learning rate falls to a tenth, again and again"""
    shuffle: bool = False
    """train in a new order each epoch (published: the list's order)"""
    augment: bool = False
    """train on random crops, flipped half of the time: every epoch passes the encoder; another
    protocol"""
    features: Literal["float32", "float16"] = "float32"
    """numbers in the file of features: float16 halves it"""
    val_freq: Positive = 1
    """epochs from one test to the next; the last epoch is always tested"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of the first weights, dropout, order and crops"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Train a head on a run's patch features and score it on masks.

    Args:
        inputs: the run and the sets.
        config: settings.
        output_dir: `curve.csv`, `classes.csv`, `classifier.safetensors` and `sheet.png` go here;
            `work/` holds features and a checkpoint until the end, for an interrupted evaluation to
            go on.

    Raises:
        UserError: sets without classes or training images, masks of void alone, classes that
            training does not show, an image size that the network cannot read, a full disk, or a
            loss that is not finite.
    """
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    check_side(encoder, config.image_size)
    scored = scored_set(inputs.dataset, config)
    names = class_names(scored, config)
    train = training_set(inputs.dataset, inputs.train_dataset, config)
    targets, truth = (
        torch.cat([*targets_of(s.frames, config.map_size, config.foreground_only, inputs.workers)])
        for s in (train, scored)
    )
    counts = [class_counts(t, len(names)) for t in (targets, truth)]
    check_classes(counts[0], counts[1], names, (train, scored))

    work = output_dir / "work"
    extractor = Extractor(encoder, inputs.device, config.precision, encoder.dense)
    about = {
        "encoder": encoder_digest(inputs.run),
        "image_size": config.image_size,
        "features": config.features,
        "precision": config.precision,
        "frames_per_clip": config.frames_per_clip,
    }

    def features(segmented: SegmentedSet, name: str) -> FeatureFile:
        images = Squares([frame for frame, *_ in segmented.frames], config.image_size)
        key = sha256_json(about | {"set": segmented.digest, "part": name})
        path = work / f"{name}.npy"
        found = feature_file(path, key, extractor, images, config.features, inputs.workers)
        return found.on(inputs.device)

    tests = features(scored, "test")
    probe = new_probe(tests.shape[1], len(names), config, inputs.device)
    digests = [train.digest, scored.digest]
    settings = config.model_dump(mode="json", exclude=NOT_FOR_RESULTS)
    key = sha256_json(about | {"settings": settings, "sets": digests})
    probe.resume(work, key)
    if config.augment:
        stream = crop_batches(train, extractor, config, len(probe.rows), inputs.workers)
    else:
        trains = features(train, "train")
        stream = cached_batches(trains, targets, config, len(probe.rows))
    steps = -(-len(targets) // config.batch_size)

    def score() -> MatchedScores:
        return matched_scores(tabled(probe.head, tests, truth, inputs.device), "none")

    fit(probe, stream, steps, score, config, work, key)
    found = score()
    files = probe.write(output_dir, COLUMNS)
    files.append(write_csv(output_dir / "classes.csv", class_table(found, names)))
    if places := spread(len(truth), config.pictures):
        maps = predicted(probe.head, tests, places, config.map_size, inputs.device)
        files.append(save_sheet(output_dir, scored, places, truth[places].numpy(), maps, names))
    shutil.rmtree(work, ignore_errors=True)
    metrics = percent(found, len(names), scored.background) | best(probe.rows)
    return Result(protocol(config, scored, train), metrics, len(truth), files)


def protocol(config: Config, scored: SegmentedSet, train: SegmentedSet) -> str:
    """Return the protocol's name; what differs from the published one is part of it."""
    name = f"linear_segmentation-{config.head}-{title(config, scored, train)}"
    marks = {
        "augment": "aug",
        "shuffle": "shuffled",
        "epochs": f"{config.epochs}ep",
        "batch_size": f"b{config.batch_size}",
        "learning_rate": f"lr{config.learning_rate:g}",
        "decay_epochs": f"d{config.decay_epochs}",
        "features": config.features,
        "seed": f"seed{config.seed}",
    }
    fields = type(config).model_fields
    own = [mark for key, mark in marks.items() if getattr(config, key) != fields[key].default]
    return "-".join([name, *own])


def new_probe(width: int, classes: int, config: Config, device: torch.device) -> Probe[nn.Module]:
    """Return a fresh head with its optimiser."""
    with seeded(config.seed):
        head: nn.Module = (LinearHead if config.head == "linear" else FCNHead)(width, classes)
    head.to(device)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=1e-4
    )
    return Probe(head, optimizer)


def order(count: int, config: Config, epoch: int) -> Tensor:
    """Return the numbers of all training images in the order of an epoch."""
    if not config.shuffle:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(config.seed, ORDER, epoch))


def crop_batches(
    train: SegmentedSet, extractor: Extractor, config: Config, first: int, workers: int
) -> Iterator[Batch]:
    """Yield features (B, D, h, w) and classes (B, M, M) of fresh crops, epoch after epoch."""
    frames = train.frames
    pairs = RandomPairs(
        *(frames, config.image_size, config.map_size, config.foreground_only),
        seed=seed_of(config.seed, CROPS),
    )
    keys = (
        [(epoch, number) for number in part.tolist()]
        for epoch in range(first, config.epochs)
        for part in order(len(frames), config, epoch).split(config.batch_size)
    )
    for images, classes in in_batches(pairs, keys, workers):
        features = torch.cat([extractor(part) for part in images.split(PART)])
        check_finite(features, "a random crop")
        yield features, classes.to(extractor.device)


def cached_batches(
    features: FeatureFile, targets: Tensor, config: Config, first: int
) -> Iterator[Batch]:
    """Yield batches of the file's features and of targets (N, M, M), epoch after epoch."""
    for epoch in range(first, config.epochs):
        for part in order(len(targets), config, epoch).split(config.batch_size):
            found = features[part]
            yield found, targets[part].to(found.device, non_blocking=True)


def fit(
    probe: Probe[nn.Module],
    stream: Iterator[Batch],
    steps: int,
    score: Callable[[], MatchedScores],
    config: Config,
    work: Path,
    key: str,
) -> None:
    """Train to the last epoch, testing and keeping a checkpoint now and then.

    Args:
        probe: goes on in place, from the epoch that its rows have reached.
        stream: batches of the epochs that are left.
        steps: batches in an epoch.
        score: returns the scores of the head as it is.
        config: settings.
        work: folder of the checkpoint.
        key: digest of what the checkpoint belongs to.
    """
    saved = time.monotonic()
    for epoch in range(len(probe.rows), config.epochs):
        rate = config.learning_rate * 0.1 ** (epoch // config.decay_epochs)
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"epoch": epoch + 1, "learning_rate": rate}
        with seeded(seed_of(config.seed, DROPS, epoch)):
            row["train_loss"] = train_epoch(probe, islice(stream, steps), rate)
        if epoch % config.val_freq == 0 or epoch == config.epochs - 1:
            found = score()
            row |= {"miou": 100 * found.miou, "pixel_accuracy": 100 * found.accuracy}
            log.info(
                "epoch %d of %d: mIoU %.2f, pixel accuracy %.2f (loss %.4f)",
                *(epoch + 1, config.epochs, row["miou"], row["pixel_accuracy"], row["train_loss"]),
            )
        probe.rows.append(row)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS and epoch + 1 < config.epochs:
            probe.save(work, key)
            saved = time.monotonic()


def train_epoch(probe: Probe[nn.Module], batches: Iterator[Batch], rate: float) -> float:
    """Train on some batches at one learning rate; return the mean loss of a pixel that counts.

    Raises:
        UserError: the loss is not finite.
    """
    for group in probe.optimizer.param_groups:
        group["lr"] = rate
    probe.head.train()
    total, pixels = 0.0, 0
    for features, classes in batches:
        summed, count = pixel_loss(probe.head(features, classes.shape[-1]), classes)
        probe.optimizer.zero_grad()
        (summed / max(count, 1)).backward()
        probe.optimizer.step()
        total, pixels = total + float(summed.detach()), pixels + count
    if not np.isfinite(total):
        raise UserError(
            f"the segmentation head's loss is not finite in epoch {len(probe.rows) + 1}; lower "
            "its learning_rate."
        )
    return total / max(pixels, 1)


def pixel_loss(logits: Tensor, classes: Tensor) -> tuple[Tensor, int]:
    """Return the summed cross-entropy of the pixels that are not void, and their number."""
    loss = F.cross_entropy(logits, classes.long(), ignore_index=VOID, reduction="sum")
    return loss, int((classes != VOID).sum())


@torch.no_grad()
def predicted(
    head: nn.Module, features: FeatureFile, places: Sequence[int], size: int, device: torch.device
) -> np.ndarray:
    """Return the classes of some images, uint8 (n, M, M)."""
    head.eval()
    logits = head(features[torch.as_tensor(places)].to(device), size)
    return logits.argmax(1).to(torch.uint8).cpu().numpy()


def tabled(
    head: nn.Module, features: FeatureFile, truth: Tensor, device: torch.device
) -> Contingency:
    """Return the pixels of each class in each predicted one, of all images."""
    parts = []
    for part in torch.arange(len(truth)).split(PART):
        maps = predicted(head, features, part.tolist(), truth.shape[-1], device)
        parts.append(contingency(truth[part].numpy(), maps, void=VOID))
    return add(parts)


def best(rows: Sequence[Row]) -> Row:
    """Return the best epoch of those tested, chosen on the test images themselves."""
    tested = [row for row in rows if row["miou"] is not None]
    found = max(tested, key=lambda row: row["miou"] or 0.0)
    return {"miou_best": found["miou"], "best_epoch": found["epoch"]}
