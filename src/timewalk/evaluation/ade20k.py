"""Semantic segmentation of whole images by a fine-tuned network, scored as ADE20K is.

Sheet: dense transfer, section 2. Images are resized to fit a scale, their shape kept; the network
sees windows (or the whole image, or several sizes of it), and each pixel of the stored image gets
the class with the largest mean logit (:mod:`timewalk.evaluation.sliding_window`). One confusion
matrix of all images gives mIoU, mean and overall accuracy.

Shapes: K classes, n windows, H and W rows and columns of a stored image.
"""

import logging
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timewalk.artefacts import atomic_path, read_json, sha256_json, write_json
from timewalk.config import EvaluationConfig, Name, Positive
from timewalk.data.segmentation_views import kept_size, resize_keep
from timewalk.data.segmented import SegmentedSet, open_segmented, read_classes
from timewalk.data.sequences import VOID, read_frame
from timewalk.data.workers import plain_errors
from timewalk.encoders.dense.files import CARD, finetuned_title, load_network
from timewalk.encoders.files import read_tensors
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor, Precision
from timewalk.evaluation.mask_pictures import sheet
from timewalk.evaluation.pictures import save_png
from timewalk.evaluation.segmentation_scores import spread
from timewalk.evaluation.sliding_window import Side, cut, decide, make_pass, windows_along
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


class Config(EvaluationConfig):
    """Semantic segmentation by a fine-tuned network."""

    kind: Literal["ade20k"] = "ade20k"
    network: Name
    """which network of the run is tested: name of an entry of `finetuning:` with the task
    `semantic_segmentation`"""
    test: Literal["slide", "whole", "multi_scale"] = "slide"
    """what the network sees: windows whose logits are averaged where they overlap; the whole image
    at once; or windows of several sizes of the image, whose probabilities are averaged"""
    crop: Pixels = 512
    """side in pixels of a window (not with `whole`)"""
    stride: Positive = 341
    """pixels from one window to the next (not with `whole`)"""
    short_side: Pixels = 512
    """images are resized until their shorter side has so many pixels"""
    long_side: Pixels = 2048
    """and made smaller again where the longer side has more than these"""
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
        if self.stride > self.crop:
            raise ValueError(
                f"stride {self.stride} leaves pixels between windows of {self.crop}; set it to "
                "`crop` at most"
            )
        if self.long_side < self.short_side:
            raise ValueError("long_side is less than short_side; set it to that at least")
        return self


@dataclass
class Counts:
    """What is known after some images.

    Attributes:
        matrix: int64 (K, K), pixels of each true (row) and predicted (column) class.
        done: images that are in it.
        empty: images among them without a pixel of a class.
        pictures: by number of the image, truth and prediction, uint8 (2, h, w).
    """

    matrix: Tensor
    done: int = 0
    empty: int = 0
    pictures: dict[int, Tensor] = field(default_factory=dict)

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
    extractor = Extractor(network.encoder, inputs.device, config.precision, network)
    settings = config.model_dump(mode="json", exclude=NOT_FOR_RESULTS)
    key = sha256_json([card["sha256"], card["architecture"], scored.digest, settings])
    work = output_dir / "work"
    counts = Counts.resumed(work, key, len(scored.classes))
    pictured = set(spread(len(scored.frames), config.pictures))
    count(counts, scored, extractor, config, inputs.workers, pictured, work, key)
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
    shutil.rmtree(work, ignore_errors=True)
    metrics: dict[str, float | None] = {
        "miou": 100 * found.mean_iou,
        "macc": 100 * found.mean_accuracy,
        "aacc": 100 * found.overall_accuracy,
    }
    return Result(protocol(config, card, scored), metrics, counts.done, files)


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
    """Return the protocol's name; what differs from the published one is part of it."""
    parts = ["ade20k", finetuned_title(card), scored.title, config.test]
    if card.get("dataset", scored.name) != scored.name:
        parts.insert(3, f"from_{card['dataset']}")
    windows = config.test != "whole"
    several = config.test == "multi_scale"
    marks = {
        "short_side": f"{config.short_side}px",
        "long_side": f"long{config.long_side}",
        **({"crop": f"c{config.crop}", "stride": f"s{config.stride}"} if windows else {}),
        **({"ratios": "x".join(f"{r:g}" for r in config.ratios), "flip": "noflip"} if several else {}),
        "precision": config.precision,
    }
    fields = type(config).model_fields
    own = [mark for key, mark in marks.items() if getattr(config, key) != fields[key].default]
    return "-".join([*parts, *own])


class SizedImages(Dataset[tuple[list[Tensor], Tensor]]):
    """Images of a set with their masks, by number.

    An item is the image at each size that the network sees, uint8 (3, h, w), and its classes, uint8
    (H, W).
    """

    def __init__(self, scored: SegmentedSet, config: Config) -> None:
        self.frames = scored.frames
        long, short = config.long_side, config.short_side
        self.scales: list[tuple[tuple[int, int], int | None]] = [((long, short), None)]
        if config.test == "multi_scale":
            self.scales = [((int(long * r), int(short * r)), short) for r in config.ratios]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        image, mask, lookup = self.frames[index]
        pixels, truth = read_frame(image), read_classes(mask, lookup)
        if pixels.shape[:2] != truth.shape:
            raise UserError(
                f"{mask} is {truth.shape[1]}x{truth.shape[0]} pixels but its image is "
                f"{pixels.shape[1]}x{pixels.shape[0]}; restore the published files."
            )
        sizes = [resize_keep(pixels, scale, least) for scale, least in self.scales]
        return sizes, torch.from_numpy(np.array(truth))


@dataclass(frozen=True)
class View:
    """What the network sees of an image in one pass.

    Attributes:
        windows: uint8 (n, 3, h, w).
        sides: where they lie along rows and columns.
        flipped: whether the image is mirrored.
    """

    windows: Tensor
    sides: tuple[Side, Side]
    flipped: bool


@dataclass(frozen=True)
class Item:
    """An image to be scored: its views, and its classes, uint8 (H, W)."""

    views: list[View]
    truth: Tensor


def items(images: Iterable[tuple[list[Tensor], Tensor]], config: Config) -> Iterator[Item]:
    """Yield images cut into the windows that the network sees."""
    crop = None if config.test == "whole" else config.crop
    mirrored = (False, True) if config.test == "multi_scale" and config.flip else (False,)
    for sizes, truth in images:
        views = []
        for image in sizes:
            height, width = image.shape[1:]
            sides = (
                windows_along(height, crop, config.stride),
                windows_along(width, crop, config.stride),
            )
            for flipped in mirrored:
                seen = image.flip(2) if flipped else image
                views.append(View(cut(seen, *sides), sides, flipped))
        yield Item(views, truth)


def in_parts(found: Iterable[Item], windows: int) -> Iterator[list[Item]]:
    """Yield images together as soon as they have so many windows."""
    part: list[Item] = []
    waiting = 0
    for item in found:
        part.append(item)
        waiting += sum(len(view.windows) for view in item.views)
        if waiting >= windows:
            yield part
            part, waiting = [], 0
    if part:
        yield part


def segmented(part: Sequence[Item], extractor: Extractor, batch_size: int) -> Iterator[Tensor]:
    """Yield the predicted classes of images, uint8 (H, W), on the device.

    Windows of one size pass the network together, of whichever image they are.
    """
    views = [view for item in part for view in item.views]
    logits = dict(_logits(views, extractor, batch_size))
    stride, first = extractor.network.stride, 0
    for item in part:
        passes = []
        for number, view in enumerate(item.views, start=first):
            cells = logits.pop(number)
            covered = tuple(int(np.ceil(side * stride)) for side in cells.shape[2:])
            size = tuple(item.truth.shape)
            passes.append(make_pass(cells, view.sides, covered, size, view.flipped))
        first += len(item.views)
        yield decide(passes)
