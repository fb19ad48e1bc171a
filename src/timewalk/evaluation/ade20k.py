"""Semantic segmentation of whole images by a fine-tuned network, scored as ADE20K is.

Source: iBOT's evaluation on ADE20K, to which DoRA refers. Images are resized to fit a scale, their
shape kept; the network sees windows (or the whole image, or several sizes of it), and each pixel of
the stored image gets the class with the largest mean logit
(:mod:`timewalk.evaluation.sliding_window`). One confusion matrix of all images gives mIoU, mean and
overall accuracy.

Shapes: K classes, n windows, H and W rows and columns of a stored image.
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from timewalk.artefacts import atomic_path, read_json, sha256_json, write_json
from timewalk.config import Positive
from timewalk.data.segmentation_views import kept_size, resize_keep
from timewalk.data.segmented import SegmentedSet, open_segmented
from timewalk.data.sequences import VOID, read_frame
from timewalk.encoders.dense.files import CARD, finetuned_title, load_network
from timewalk.encoders.files import read_tensors
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor, Precision
from timewalk.evaluation.fine_tuned import NetworkEvaluation, with_sizes
from timewalk.evaluation.mask_pictures import sheet
from timewalk.evaluation.pictures import save_png
from timewalk.evaluation.segment_images import (
    Scale,
    SizedImages,
    Windows,
    in_parts,
    items,
    read_ahead,
    segment,
)
from timewalk.evaluation.segmentation_scores import spread
from timewalk.metrics.segmentation import SegmentationScores, scores

log = logging.getLogger(__name__)

PART = 64
"""images after which what is done is kept"""
PICTURE = (896, 224)
"""longer and shorter side that an image of the sheet is fitted into, pixels"""
STATE, NOTE = "counts.safetensors", "counts.json"
NOT_FOR_RESULTS = {"runs", "batch_size"}
"""keys that change no score but by rounding"""

Pixels = Annotated[int, Field(ge=8)]
Factor = Annotated[float, Field(gt=0)]


class Config(NetworkEvaluation):
    """Semantic segmentation by a fine-tuned network."""

    kind: Literal["ade20k"] = "ade20k"
    test: Literal["slide", "whole", "multi_scale"] = "slide"
    """what the network sees: windows whose logits are averaged where they overlap; the whole image
    at once; or windows of several sizes of the image, whose probabilities are averaged"""
    crop: Pixels | None = None
    """side in pixels of a window (not with `whole`); null: that of the fine-tuning,
    published 512"""
    stride: Positive | None = None
    """pixels from one window to the next (not with `whole`); null: two thirds of `crop`, published
    341"""
    short_side: Pixels | None = None
    """images are resized until their shorter side has so many pixels; null: as in the fine-tuning,
    published 512"""
    long_side: Pixels | None = None
    """and made smaller again where the longer side has more than these; null: as in the
    fine-tuning, published 2048"""
    ratios: Annotated[list[Factor], Field(min_length=1)] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    """factors on both sides (`multi_scale` only); the shorter side never falls below `short_side`,
    and the longer one has no bound"""
    flip: bool = True
    """every size also mirrored (`multi_scale` only)"""
    batch_size: Positive = 8
    """windows that the network sees at a time; changes speed and memory, results only by
    rounding"""
    precision: Precision = "fp32"
    """arithmetic of the network"""
    pictures: Annotated[int, Field(ge=0)] = 8
    """images in the sheet of input, truth and prediction"""

    @model_validator(mode="after")
    def _covers(self) -> "Config":
        if self.stride and self.crop and self.stride > self.crop:
            raise ValueError(
                f"stride {self.stride} leaves pixels between windows of {self.crop}; set it to "
                "`crop` at most"
            )
        if self.long_side and self.short_side and self.long_side < self.short_side:
            raise ValueError("long_side is less than short_side; set it to that at least")
        return self

    def filled(self, card: Mapping[str, Any]) -> "Config":
        """Return the settings with the fine-tuning's sizes where they name none.

        Raises:
            UserError: together they are not possible.
        """
        found = with_sizes(self, card)
        assert found.crop
        return found.model_copy(update={"stride": self.stride or found.crop * 2 // 3})

    def windows(self) -> Windows:
        """Return what the network sees of an image; all sizes must be there (:meth:`filled`)."""
        assert self.stride
        assert self.short_side
        assert self.long_side
        long, short, several = self.long_side, self.short_side, self.test == "multi_scale"
        scales: tuple[Scale, ...] = (Scale((long, short)),)
        if several:
            scales = tuple(Scale((int(long * r), int(short * r)), short) for r in self.ratios)
        crop = None if self.test == "whole" else self.crop
        return Windows(scales, crop, self.stride, several and self.flip, self.batch_size)


@dataclass
class Counts:
    """What is known after some images.

    Attributes:
        matrix: int64 (K, K) on the CPU, pixels of each true (row) and predicted (column) class.
        done: images that are in it.
        empty: images among them without a pixel of a class.
        pictures: by number of the image, truth and prediction, uint8 (2, h, w).
    """

    matrix: Tensor
    done: int = 0
    empty: int = 0
    pictures: dict[int, Tensor] = field(default_factory=dict)

    def add(self, truth: Tensor, predicted: Tensor, pictured: bool) -> None:
        """Count one image, uint8 (H, W) each, the prediction on any device."""
        if pictured:
            size = kept_size((truth.shape[0], truth.shape[1]), PICTURE)
            both = torch.stack([truth, predicted.cpu()])
            self.pictures[self.done] = F.interpolate(both[None], size, mode="nearest")[0]
        matrix = confusion(truth.to(predicted.device), predicted, len(self.matrix)).cpu()
        self.matrix += matrix
        self.done += 1
        self.empty += not bool(matrix.any())

    def save(self, work: Path, key: str) -> None:
        """Keep the counts in a folder, under a key of what they belong to."""
        tensors = {str(place): picture for place, picture in self.pictures.items()}
        (work / NOTE).unlink(missing_ok=True)
        with atomic_path(work / STATE) as temporary:
            save_file({"matrix": self.matrix, **tensors}, temporary)
        write_json(work / NOTE, {"key": key, "done": self.done, "empty": self.empty})

    @classmethod
    def resumed(cls, work: Path, key: str, classes: int) -> "Counts":
        """Return what was kept under a key, or counts of no image."""
        note: Any = read_json(work / NOTE) if (work / NOTE).is_file() else {}
        if note.get("key") != key:
            return cls(torch.zeros(classes, classes, dtype=torch.int64))
        tensors = read_tensors(work / STATE)
        matrix = tensors.pop("matrix")
        log.info("going on after %d images", note["done"])
        pictures = {int(place): picture for place, picture in tensors.items()}
        return cls(matrix, note["done"], note["empty"], pictures)


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Score a fine-tuned network on masks.

    Args:
        inputs: network and set.
        config: settings.
        output_dir: `classes.csv` and `sheet.png` go here; `work/` holds counts until the end, for
            an interrupted evaluation to go on.

    Raises:
        UserError: no network, one of another task or number of classes, a set without classes, an
            unreadable image or mask, an unknown id, or masks of void alone.
    """
    assert inputs.network is not None
    network, card = load_network(inputs.network, "segmenter")
    scored = open_segmented(inputs.dataset, "test")
    check_classes(network.keys["classes"], card, scored, inputs.network)
    network.requires_grad_(False).to(inputs.device)
    config = config.filled(card)
    settings = config.model_dump(mode="json", exclude=NOT_FOR_RESULTS)
    network_is = [card[name] for name in ("sha256", "architecture", "mean", "std")]
    key = sha256_json([network_is, scored.digest, settings])
    counts = Counts.resumed(output_dir / "work", key, len(scored.classes))
    extractor = Extractor(network.encoder, inputs.device, config.precision, network)
    for _ in count(counts, scored, extractor, network.stride, config, inputs.workers):
        counts.save(output_dir / "work", key)
    if counts.empty:
        log.warning("%d of %d images have no pixel of a class", counts.empty, counts.done)
    if not bool(counts.matrix.any()):
        raise UserError(
            f"every pixel of the {scored.split} split of '{scored.name}' is void; correct the "
            "masks, or the keys that say which ids are classes."
        )
    matrix = counts.matrix.numpy()
    found = scores(matrix)
    files = [write_csv(output_dir / "classes.csv", class_table(found, matrix, scored.classes))]
    if counts.pictures:
        files.append(save_sheet(output_dir / "sheet.png", scored, counts.pictures))
    shutil.rmtree(output_dir / "work", ignore_errors=True)
    metrics: dict[str, float | None] = {
        "miou": 100 * found.mean_iou,
        "macc": 100 * found.mean_accuracy,
        "aacc": 100 * found.overall_accuracy,
    }
    return Result(protocol(config, card, scored), metrics, counts.done, files)


def count(
    counts: Counts,
    scored: SegmentedSet,
    extractor: Extractor,
    stride: float,
    config: Config,
    workers: int,
) -> Iterator[None]:
    """Add the images that are left to the counts; come back after every part of the set.

    Args:
        counts: goes on in place.
        scored: the set.
        extractor: bytes of windows to logits of cells.
        stride: pixels of a window to a cell.
        config: settings.
        workers: processes that read images.
    """
    windows = config.windows()
    images = SizedImages(scored, windows.scales)
    pictured = set(spread(len(images), config.pictures))
    read = items(read_ahead(images, range(counts.done, len(images)), workers), windows)
    with tqdm(total=len(images), unit="image", disable=not sys.stderr.isatty()) as bar:
        while counts.done < len(images):
            # A part's last windows never wait for the next part's: what the network sees together
            # is then the same after an interruption.
            for part in in_parts(islice(read, PART), windows.at_once):
                found = segment(part, extractor, stride, windows.at_once)
                for item, predicted in zip(part, found, strict=True):
                    counts.add(item.truth, predicted, counts.done in pictured)
                bar.update(counts.done - bar.n)
            yield


def check_classes(classes: int, card: dict[str, Any], scored: SegmentedSet, folder: Path) -> None:
    """Refuse a set of other classes than the network's.

    Raises:
        UserError: the set has none, or another number.
    """
    if not scored.classes:
        raise UserError(
            f"the ids of '{scored.name}' only number the objects of each video, so there are no "
            "classes to score; name a set with classes under the key 'dataset'."
        )
    if classes != len(scored.classes):
        raise UserError(
            f"{folder / CARD} tells {classes} classes apart but '{scored.name}' has "
            f"{len(scored.classes)}; name the set of its fine-tuning, '{card.get('dataset')}', or "
            "one of the same classes."
        )
    if card.get("classes", list(scored.classes)) != list(scored.classes):
        log.warning("'%s' has other names of classes than %s", scored.name, folder / CARD)


def protocol(config: Config, card: dict[str, Any], scored: SegmentedSet) -> str:
    """Return the protocol's name; what is not as the fine-tuning and the published test have it is
    part of it."""
    parts = ["ade20k", finetuned_title(card), scored.title, config.test]
    if card.get("dataset", scored.name) != scored.name:
        parts.insert(3, f"from_{card['dataset']}")
    windows = config.test != "whole"
    several = config.test == "multi_scale"
    marks = {
        "short_side": f"{config.short_side}px",
        "long_side": f"long{config.long_side}",
        **({"crop": f"c{config.crop}", "stride": f"s{config.stride}"} if windows else {}),
        **(
            {"ratios": "x".join(f"{r:g}" for r in config.ratios), "flip": "noflip"}
            if several
            else {}
        ),
        "precision": config.precision,
    }
    usual = Config(dataset=config.dataset, network=config.network).filled(card)
    own = [mark for key, mark in marks.items() if getattr(config, key) != getattr(usual, key)]
    return "-".join([*parts, *own])


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the number of pixels of each true (row) and predicted (column) class, int64 (K, K).

    The same as :func:`timewalk.metrics.segmentation.confusion`, on the device that has the pixels.

    Args:
        truth: uint8 (H, W); void does not count.
        predicted: uint8 (H, W), below K but where there is void.
        classes: K.
    """
    # Void becomes a row of its own, so that nothing need be picked out.
    pairs = torch.where(truth == VOID, classes * classes, truth.int() * classes + predicted)
    counts = torch.bincount(pairs.flatten(), minlength=(classes + 1) * classes)
    return counts.unflatten(0, (classes + 1, classes))[:classes]


def class_table(
    found: SegmentationScores, matrix: np.ndarray, names: Sequence[str]
) -> list[list[object]]:
    """Return a table of every class: IoU and accuracy in percent (empty where they have no
    meaning), and pixels in truth and prediction."""
    rows: list[list[object]] = [
        ["class", "name", "iou", "accuracy", "true_pixels", "predicted_pixels"]
    ]
    true, predicted = matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    for number, name in enumerate(names):
        iou = None if np.isnan(found.iou[number]) else f"{100 * found.iou[number]:.6g}"
        right = int(matrix[number, number])
        accuracy = f"{100 * right / true[number]:.6g}" if true[number] else None
        rows.append([number, name, iou, accuracy, true[number], predicted[number]])
    return rows


def save_sheet(target: Path, scored: SegmentedSet, pictures: Mapping[int, Tensor]) -> Path:
    """Write input, truth and prediction of some images as one picture."""
    rows = []
    for place, both in sorted(pictures.items()):
        pixels = resize_keep(read_frame(scored.frames[place][0]), PICTURE)
        rows.append([pixels.permute(1, 2, 0).numpy(), *both.numpy()])
    return save_png(target, sheet(rows, scored.classes))
