"""Linear classification on frozen features, the protocol of DINO (ICCV 2021).

One linear layer on the class tokens of a ViT's last blocks (or the pooled features of another
network), trained with SGD on random resized crops: each epoch is one pass of the frozen encoder
over all training images. Test images never change, so their features are computed once.
``cached`` trains on features computed once, without augmentation: fast, and another protocol.

Shapes: B images of a batch, M test images, C classes, D width of the features.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from timewalk.artefacts import atomic_path, sha256_file, sha256_json
from timewalk.config import EvaluationConfig, Positive
from timewalk.data.labelled import LabelledImages, RandomCrops
from timewalk.data.seeds import generator
from timewalk.data.workers import plain_errors
from timewalk.encoders import Encoder, encoder_digest, load_encoder, seeded
from timewalk.encoders.files import read_checkpoint
from timewalk.encoders.weights.dino import linear_to_ours
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.embed import Extractor, Precision, compute_features
from timewalk.evaluation.probe import Probe, Row
from timewalk.metrics.classification import top_percent
from timewalk.ops.schedules import warmup_cosine

log = logging.getLogger(__name__)

TOP = 5
USUAL_EPOCHS = 100
PART = 256
"""images that the encoder sees at a time, whatever the batch"""
CHECKPOINT_SECONDS = 20.0
COLUMNS = ("epoch", "learning_rate", "train_loss", "test_loss", "top1", "top5")

NOT_FOR_RESULTS = {"runs"}
"""keys that change no result"""

Batch = tuple[Tensor, Tensor]


class Config(EvaluationConfig):
    """A linear classifier on frozen features."""

    kind: Literal["linear"] = "linear"
    n_last_blocks: Positive = 4
    """a ViT's last blocks whose class tokens stand side by side; other networks: pooled features"""
    avgpool: bool = False
    """add the mean patch token, interleaved with the class token; goes with one block only"""
    cached: bool = False
    """train on features computed once without augmentation: fast, and a protocol of its own"""
    epochs: Positive = USUAL_EPOCHS
    """passes over the training images"""
    batch_size: Positive = 128
    """images in one optimiser step"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    """at the start, for 256 images: scaled linearly with batch_size, a cosine to 0 by epochs"""
    val_freq: Positive = 1
    """epochs from one test to the next; the last epoch is always tested"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of the first weights, the order and the crops"""
    precision: Precision = "fp32"
    """arithmetic of the encoder; the classifier is always in fp32"""
    weights: str | None = None
    """path of a trained classifier that is scored without training: ours, or one that DINO
    published; null: train"""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of the weights file"""

    @model_validator(mode="after")
    def _average_of_one(self) -> "Config":
        if self.avgpool and self.n_last_blocks != 1:
            raise ValueError(
                f"avgpool goes with n_last_blocks 1, not {self.n_last_blocks}; change one of them"
            )
        return self


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Train a classifier on a run's features and score it.

    Args:
        inputs: the run and the labelled set.
        config: settings.
        output_dir: `curve.csv` and `classifier.safetensors` go here; `work/` holds a checkpoint
            and the features until the end, for an interrupted evaluation to go on.

    Raises:
        UserError: an encoder of fewer blocks, weights that do not fit, a loss that is not finite.
    """
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    train, test = (LabelledImages(inputs.dataset, split) for split in ("train", "test"))
    features, blocks = probe_input(encoder, config)
    extractor = Extractor(encoder, inputs.device, config.precision, features)
    key = sha256_json(
        {
            "settings": config.model_dump(mode="json", exclude=NOT_FOR_RESULTS),
            "encoder": encoder_digest(inputs.run),
            "dataset": sha256_file(inputs.dataset),
        }
    )
    work = output_dir / "work"

    def cache(images: LabelledImages) -> Batch:
        path = work / f"features-{images.split}.safetensors"
        found = _kept(path, key, lambda: compute_features(extractor, images, PART, inputs.workers))
        if not bool(found.isfinite().all()):
            raise UserError(
                f"{inputs.run} gives features that are not finite for {inputs.dataset}; "
                "train it again."
            )
        return found.to(inputs.device), images.labels.to(inputs.device)

    scored = cache(test)
    probe = new_probe(scored[0].shape[1], len(test.classes), config.seed, inputs.device)
    if config.weights is not None:
        load_classifier(probe.head, Path(config.weights), config.weights_sha256)
        loss, top1, top5 = score(probe.head, *scored)
        log.info("Acc@1 %.3f Acc@5 %s (loss %.4f)", top1, _three(top5), loss)
        shutil.rmtree(work)
        metrics: Row = {"top1_final": top1, "top5_final": top5}
        return Result(f"linear-{blocks}-weights", metrics, len(test))
    probe.resume(work, key)
    if config.cached:
        stream = cached_batches(*cache(train), config, first=len(probe.rows))
    else:
        stream = crop_batches(train, extractor, config, len(probe.rows), inputs.workers)
    with plain_errors():
        fit(probe, stream, -(-len(train) // config.batch_size), scored, config, work, key)
    artefacts = probe.write(output_dir, COLUMNS)
    shutil.rmtree(work, ignore_errors=True)
    return Result(protocol(blocks, config), summary(probe.rows), len(test), artefacts)


def probe_input(encoder: Encoder, config: Config) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return the function from images to the classifier's input, and its name in the protocol.

    Raises:
        UserError: the ViT has fewer blocks than are asked for.
    """
    if encoder.spec["family"] != "vit":
        return encoder.summary, "pooled"
    from timewalk.encoders.vit import ViT, probe_features

    assert isinstance(encoder, ViT)
    if config.n_last_blocks > len(encoder.blocks):
        raise UserError(
            f"n_last_blocks is {config.n_last_blocks} but the encoder has {len(encoder.blocks)} "
            "blocks; ask for no more than these."
        )
    vit, count, average = encoder, config.n_last_blocks, config.avgpool
    name = f"n{count}avg" if average else f"n{count}"
    return lambda images: probe_features(vit, images, count, average), name


def protocol(blocks: str, config: Config) -> str:
    """Return the protocol's name; other than 100 epochs are part of it."""
    length = "" if config.epochs == USUAL_EPOCHS else f"-{config.epochs}ep"
    return f"linear-{blocks}-{'cached' if config.cached else 'aug'}{length}"


def new_probe(width: int, classes: int, seed: int, device: torch.device) -> Probe[nn.Linear]:
    """Return a fresh classifier, weights normal(0, 0.01) and bias 0, with its optimiser."""
    head = nn.Linear(width, classes)
    with seeded(seed):
        nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    head.to(device)
    return Probe(head, torch.optim.SGD(head.parameters(), lr=0.0, momentum=0.9, weight_decay=0.0))


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of all training images in an epoch."""
    return torch.randperm(count, generator=generator(seed, epoch))


class _Samples:
    """Yields the batches of (epoch, number) from the epoch ``first`` to the last."""

    def __init__(self, count: int, config: Config, first: int) -> None:
        self.count, self.config, self.first = count, config, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.first, self.config.epochs):
            order = epoch_order(self.count, self.config.seed, epoch)
            for part in order.split(self.config.batch_size):
                yield [(epoch, number) for number in part.tolist()]


def crop_batches(
    train: LabelledImages, extractor: Extractor, config: Config, first: int, workers: int
) -> Iterator[Batch]:
    """Yield features (B, D) and labels (B,) of fresh crops, epoch after epoch.

    One loader serves all epochs, so that no epoch begins by waiting for its first images.
    """
    loader = DataLoader(
        RandomCrops(train, config.seed),
        batch_sampler=_Samples(len(train), config, first),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=extractor.device.type == "cuda",
    )
    for images, labels in loader:
        parts = [extractor(part) for part in images.split(PART)]
        yield torch.cat(parts), labels.to(extractor.device, non_blocking=True)


def cached_batches(features: Tensor, labels: Tensor, config: Config, first: int) -> Iterator[Batch]:
    """Yield batches of the whole matrix (N, D) on its device, epoch after epoch."""
    for epoch in range(first, config.epochs):
        order = epoch_order(len(labels), config.seed, epoch).to(labels.device)
        for part in order.split(config.batch_size):
            yield features[part], labels[part]


def fit(
    probe: Probe[nn.Linear],
    stream: Iterator[Batch],
    steps: int,
    scored: Batch,
    config: Config,
    work: Path,
    key: str,
) -> None:
    """Train to the last epoch, testing and keeping a checkpoint now and then.

    Args:
        probe: trained in place, from the epoch that its rows have reached.
        stream: batches of the epochs that are left.
        steps: batches in an epoch.
        scored: features (M, D) and labels (M,) of the test images.
        config: settings.
        work: folder of the checkpoint.
        key: digest of what the checkpoint belongs to.
    """
    base = config.learning_rate * config.batch_size / 256
    saved = time.monotonic()
    for epoch in range(len(probe.rows), config.epochs):
        rate = warmup_cosine(epoch, config.epochs, base, 0.0)
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"epoch": epoch + 1, "learning_rate": rate}
        row["train_loss"] = train_epoch(probe, islice(stream, steps), rate)
        if epoch % config.val_freq == 0 or epoch == config.epochs - 1:
            row["test_loss"], top1, row["top5"] = score(probe.head, *scored)
            row["top1"] = top1
            log.info(
                "epoch %d of %d: Acc@1 %.3f Acc@5 %s (loss %.4f)",
                *(epoch + 1, config.epochs, top1, _three(row["top5"]), row["train_loss"]),
            )
        probe.rows.append(row)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS and epoch + 1 < config.epochs:
            probe.save(work, key)
            saved = time.monotonic()


def train_epoch(probe: Probe[nn.Linear], batches: Iterator[Batch], rate: float) -> float:
    """Train on some batches at one learning rate; return the mean loss of an image.

    Raises:
        UserError: the loss is not finite.
    """
    for group in probe.optimizer.param_groups:
        group["lr"] = rate
    total, images = torch.zeros((), device=probe.head.weight.device), 0
    for features, labels in batches:
        loss = F.cross_entropy(probe.head(features), labels)
        probe.optimizer.zero_grad()
        loss.backward()
        probe.optimizer.step()
        total += loss.detach() * len(labels)
        images += len(labels)
    if not bool(total.isfinite()):
        raise UserError(
            f"the linear probe's loss is not finite in epoch {len(probe.rows) + 1}; lower its "
            "learning_rate."
        )
    return float(total) / images


@torch.no_grad()
def score(
    head: nn.Linear, features: Tensor, labels: Tensor, chunk: int = 8192
) -> tuple[float, float, float | None]:
    """Return the mean loss, Top-1 and Top-5 in percent (None below five classes).

    Raises:
        UserError: a logit is not finite.
    """
    loss, ranks = torch.zeros((), device=labels.device, dtype=torch.float64), []
    for part, truth in zip(features.split(chunk), labels.split(chunk), strict=True):
        logits = head(part)
        if not bool(logits.isfinite().all()):
            raise UserError(
                "the linear probe's scores of test images are not finite; lower its "
                "learning_rate, or look for such numbers in the classifier's file."
            )
        loss += F.cross_entropy(logits, truth, reduction="sum").double()
        ranks.append(places(logits, truth))
    place = torch.cat(ranks)
    top5 = top_percent(place, TOP) if head.out_features >= TOP else None
    return float(loss) / len(labels), top_percent(place, 1), top5


def places(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the place of the right class by falling logit, from 0; equal ones by class number."""
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    return ((logits > own) | ((logits == own) & (classes < labels[:, None]))).sum(1)


def summary(rows: list[Row]) -> Row:
    """Return the metrics: those of the last epoch, and the optimistic best of the tested ones."""
    tested = [row for row in rows if row["top1"] is not None]
    final, best = tested[-1], max(tested, key=lambda row: row["top1"] or 0.0)
    return {
        "top1_final": final["top1"],
        "top5_final": final["top5"],
        "top1_best": best["top1"],
        "top5_best": best["top5"],
        "best_epoch": best["epoch"],
    }


def load_classifier(head: nn.Linear, path: Path, sha256: str | None = None) -> None:
    """Load a classifier: `weight`, `bias` of our safetensors, or DINO's `module.linear.*`.

    Raises:
        UserError: the file is missing, damaged, of another digest, or of another shape.
    """
    if not path.is_file():
        raise UserError(f"weights: {path} is missing; correct the path.")
    if sha256 is not None and (found := sha256_file(path)) != sha256:
        raise UserError(
            f"{path} has SHA-256 {found} but weights_sha256 is {sha256}; fetch the right file."
        )
    try:
        loaded = linear_to_ours(read_checkpoint(path))
    except UserError as error:
        raise UserError(f"{path} {str(error).removeprefix(str(path)).strip()}") from None
    shape, wanted = tuple(loaded["weight"].shape), tuple(head.weight.shape)
    if shape != wanted or loaded["bias"].shape != head.bias.shape:
        raise UserError(
            f"{path} is a classifier of {shape} (classes, width) but {wanted} is needed here; "
            "change n_last_blocks, avgpool or the data set."
        )
    head.load_state_dict(loaded)


def _kept(path: Path, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return features that lie in a file of this key, or compute and keep them."""
    if path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") == key:
                kept: Tensor = file.get_tensor("features")
                # Inside the file it is not aligned, and products may round otherwise.
                return kept.clone()
    features = compute()
    with atomic_path(path) as temporary:
        save_file({"features": features}, temporary, metadata={"key": key})
    return features


def _three(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.3f}"
