"""Object detection and instance segmentation on a set like COCO: AP of boxes and of masks.

Source: iBOT's evaluation on COCO. A network that was fine-tuned on a training split finds the
objects of every test image, which is neither flipped nor seen at other scales. What it finds is
written in the official results format, which the test server takes, and scored as pycocotools does.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from timewalk.artefacts import sha256_json, write_text
from timewalk.config import Positive
from timewalk.data.detection_views import Sizes
from timewalk.data.objects import LabelledObjects
from timewalk.encoders.dense.files import finetuned_title, load_network
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Precision
from timewalk.evaluation.fine_tuned import NetworkEvaluation, with_sizes
from timewalk.evaluation.mask_runs import decoded, rle
from timewalk.evaluation.object_detections import Finder, Found, find_all
from timewalk.evaluation.object_pictures import Objects, object_sheet
from timewalk.evaluation.pictures import save_png
from timewalk.evaluation.segmentation_scores import spread
from timewalk.metrics.detection import (
    MAX_DETECTIONS,
    DetectionScores,
    average_precision,
    faster_coco_eval,
)

NOT_FOR_RESULTS = {"batch_size", "pictures", "runs"}
"""keys that change no detection"""
SHOWN_SCORE = 0.3
"""least score of a detection in the pictures"""


class Config(NetworkEvaluation):
    """Average precision of a fine-tuned detector on a set of objects."""

    kind: Literal["coco"] = "coco"
    short_side: Annotated[int, Field(ge=32)] | None = None
    """pixels to which an image's shorter side is resized; null: the largest of the fine-tuning,
    published 800"""
    long_side: Annotated[int, Field(ge=32)] | None = None
    """most pixels of its longer side: an image that would be longer is made smaller; null: as in
    the fine-tuning, published 1333"""
    batch_size: Positive = 4
    """images at a time; changes speed and memory, results only by rounding"""
    max_detections: Annotated[int, Field(ge=1, le=MAX_DETECTIONS)] = MAX_DETECTIONS
    """of an image, those of highest score"""
    precision: Precision = "fp32"
    """arithmetic of the network"""
    pictures: Annotated[int, Field(ge=0)] = 8
    """images in the sheet of truth and prediction"""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.long_side and self.short_side and self.long_side < self.short_side:
            raise ValueError(
                f"long_side is {self.long_side}, below short_side {self.short_side}; make it larger"
            )
        return self


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Find the objects of the test split and score boxes and masks.

    Args:
        inputs: the fine-tuned network and the labelled set.
        config: settings.
        output_dir: `detections.json`, `segmentations.json`, `classes.csv` and `sheet.png` go here;
            `work/` holds what is found until the end, for an interrupted evaluation to go on.

    Raises:
        UserError: no network, one that tells other classes, an image that cannot be read, boxes
            that are not finite, or faster-coco-eval is missing.
    """
    faster_coco_eval()  # said before the work, not after it
    if inputs.network is None:
        raise UserError(f"evaluations of kind '{config.kind}' test a fine-tuned network; name it.")
    network, about = load_network(inputs.network, "detector")
    objects = LabelledObjects(inputs.dataset, "test")
    check_classes(inputs.network, about, objects)
    config = with_sizes(config, about)
    assert config.short_side
    assert config.long_side
    settings = config.model_dump(mode="json", exclude=NOT_FOR_RESULTS)
    network_is = [about[name] for name in ("sha256", "architecture", "mean", "std")]
    key = sha256_json({"network": network_is, "set": objects.digest, "settings": settings})
    work = output_dir / "work"
    found = find_all(
        Finder(network.to(inputs.device), inputs.device, config.max_detections, config.precision),
        objects,
        Sizes(test_short_side=config.short_side, long_side=config.long_side),
        config.batch_size,
        inputs.workers,
        work / f"{key}.jsonl",
    )
    detections, segmentations = (
        [result for number, one in enumerate(found) for result in as_results(objects, number, one)]
        for as_results in (box_results, mask_results)
    )
    boxes = average_precision(objects.annotations, detections, "bbox")
    masks = average_precision(objects.annotations, segmentations, "segm")
    files = [
        write_results(output_dir / "detections.json", detections),
        write_results(output_dir / "segmentations.json", segmentations),
        write_csv(output_dir / "classes.csv", class_table(boxes, masks)),
    ]
    if places := spread(len(objects), config.pictures):
        files.append(save_sheet(output_dir / "sheet.png", objects, found, places))
    shutil.rmtree(work, ignore_errors=True)
    metrics = figures("box", boxes) | figures("mask", masks)
    return Result(protocol(config, objects, about), metrics, len(objects), files)


def check_classes(folder: Path, about: Mapping[str, Any], objects: LabelledObjects) -> None:
    """Refuse a network that was taught other classes than those of the set.

    Raises:
        UserError: names network and set.
    """
    if tuple(about["classes"]) != objects.classes:
        raise UserError(
            f"{folder} tells {len(about['classes'])} classes that are not the "
            f"{len(objects.classes)} of '{objects.name}'; name a network that was fine-tuned on a "
            "set of the same classes."
        )


def protocol(config: Config, objects: LabelledObjects, about: Mapping[str, Any]) -> str:
    """Return the protocol's name: set, what the fine-tuning decides, and every setting of the test
    that is not as in the fine-tuning and the published test."""
    marks = {
        "short_side": f"short{config.short_side}",
        "long_side": f"long{config.long_side}",
        "max_detections": f"max{config.max_detections}",
        "precision": config.precision,
    }
    usual = with_sizes(Config(dataset=config.dataset, network=config.network), about)
    own = [mark for key, mark in marks.items() if getattr(config, key) != getattr(usual, key)]
    learnt = about.get("dataset", objects.name)
    source = [] if learnt == objects.name else [f"from_{learnt}"]
    return "-".join([objects.title, *source, finetuned_title(about), *own])


def box_results(objects: LabelledObjects, number: int, found: Found) -> Iterator[dict[str, Any]]:
    """Yield an image's boxes in the official results format."""
    image = int(objects.index.image_ids[number])
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        category = objects.category_ids[label]
        yield {"image_id": image, "category_id": category, "bbox": box, "score": score}


def mask_results(objects: LabelledObjects, number: int, found: Found) -> Iterator[dict[str, Any]]:
    """Yield an image's masks in the official results format; without boxes, so that pycocotools
    takes the masks' own areas."""
    image, size = int(objects.index.image_ids[number]), stored_size(objects, number)
    for mask, score, label in zip(found.masks, found.scores, found.labels, strict=True):
        category = objects.category_ids[label]
        one = {"image_id": image, "category_id": category, "score": score}
        yield one | {"segmentation": rle(mask, size)}


def stored_size(objects: LabelledObjects, number: int) -> tuple[int, int]:
    """Return height and width of an image."""
    height, width = objects.index.sizes[number]
    return int(height), int(width)


def write_results(path: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Write results on one line: they are millions of numbers."""
    write_text(path, json.dumps(results, separators=(",", ":")))
    return path


def figures(what: str, scores: DetectionScores) -> dict[str, float | None]:
    """Return metrics such as `box_ap` and `box_ap_small`, in percent."""
    return {
        f"{what}_{name}": getattr(scores, name)
        for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    }


def class_table(boxes: DetectionScores, masks: DetectionScores) -> list[list[object]]:
    """Return a table of every class: AP in percent, empty where the truth has no object."""
    names = ("ap", "ap50", "ap75")
    header = [f"{what}_{name}" for what in ("box", "mask") for name in names]
    rows: list[list[object]] = [["category_id", "name", "objects", *header]]
    for both in zip(boxes.classes, masks.classes, strict=True):
        values = [getattr(one, name) for one in both for name in names]
        shown = [None if value is None else f"{value:.6g}" for value in values]
        rows.append([both[0].category, both[0].name, both[0].objects, *shown])
    return rows


def save_sheet(
    path: Path, objects: LabelledObjects, found: Sequence[Found], places: Sequence[int]
) -> Path:
    """Write truth and prediction of some images; detections of low score are left out."""
    rows = []
    for number in places:
        image, one, size = objects[number], found[number], stored_size(objects, number)
        truth = Objects(image.boxes, image.classes, image.masks(), crowd=image.crowd)
        count = sum(score >= SHOWN_SCORE for score in one.scores)
        corners = np.array(one.boxes[:count], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        masks = [decoded(mask, size) for mask in one.masks[:count]]
        predicted = Objects(
            corners,
            np.array(one.labels[:count], np.int64),
            np.array(masks, np.uint8).reshape(-1, *size),
            np.array(one.scores[:count]),
        )
        rows.append((image.read(), truth, predicted))
    return save_png(path, object_sheet(rows, objects.classes))
