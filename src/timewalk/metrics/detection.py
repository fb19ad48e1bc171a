"""Average precision of boxes and masks as COCO defines it.

Source: COCO. A class's AP is the mean over the IoU thresholds 0.50, 0.55 to 0.95 of its precision,
interpolated at 101 recalls; AP is the mean over the classes that have an object. Crowd regions are
neither to be found nor wrong to be found. The matching is done by faster-coco-eval, which gives the
figures of pycocotools in a fraction of the time.

One thing is told apart from pycocotools: the annotations are numbered anew, since it takes a match
with an annotation of id 0 for none.
"""

import importlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from timewalk.artefacts import read_json
from timewalk.errors import UserError

MAX_DETECTIONS = 100
"""of an image and a class, those of highest score"""
KEYS = {"bbox": "bbox", "segm": "segmentation"}
"""what holds the region, by kind of IoU"""
ALL, SMALL, MEDIUM, LARGE = range(4)
"""areas: all, below 32^2, below 96^2 and above, in pixels"""
AT_50, AT_75 = 0, 5
"""places of two IoU thresholds"""

IoU = Literal["bbox", "segm"]


@dataclass(frozen=True)
class ClassScores:
    """AP of one class.

    Attributes:
        category: its id in the annotations.
        name: its name.
        objects: how many there are, without crowd regions.
        ap: percent; None where there is no object.
        ap50: at an IoU of 0.5.
        ap75: at an IoU of 0.75.
    """

    category: int
    name: str
    objects: int
    ap: float | None
    ap50: float | None
    ap75: float | None


@dataclass(frozen=True)
class DetectionScores:
    """AP over the classes that have an object; percent, None where no class has.

    Attributes:
        ap: mean over the IoU thresholds 0.50 to 0.95.
        ap50: at 0.5.
        ap75: at 0.75.
        ap_small: as ``ap``, of objects of less than 32^2 pixels.
        ap_medium: of objects from there to 96^2 pixels.
        ap_large: of larger objects.
        classes: each class alone, by category id.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    classes: tuple[ClassScores, ...]


def average_precision(
    truth: Path | Mapping[str, Any], detections: Sequence[Mapping[str, Any]], iou: IoU
) -> DetectionScores:
    """Score detections of all images of a set.

    Args:
        truth: the official annotations (`instances_*.json`): the file, or what it holds. All its
            images count, those without annotation too.
        detections: in the official results format: `image_id`, `category_id`, `score` and, as
            ``iou`` says, `bbox` (x, y, width, height in pixels) or `segmentation` (RLE of the whole
            image). The size of a detection is that of its box, or of its mask.
        iou: `bbox` or `segm`.

    Raises:
        UserError: faster-coco-eval is missing, annotations or detections lack a key, name an image
            or a category that is not there, or hold numbers that are not finite.
    """
    library = faster_coco_eval()
    where = str(truth) if isinstance(truth, Path) else "the annotations"
    about = checked_truth(read_json(truth) if isinstance(truth, Path) else truth, where)
    check_detections(about, detections, iou)
    key = KEYS[iou]
    results = [
        {
            "image_id": found["image_id"],
            "category_id": found["category_id"],
            "score": found["score"],
            key: found[key],
        }
        for found in detections
    ]
    known = library.COCO(about)
    # Before 1.8 loadRes failed without results.
    found = known.loadRes(results) if results else library.COCO({**about, "annotations": []})
    evaluation = library.COCOeval_faster(known, found, iou)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return _scores(np.asarray(evaluation.eval["precision"])[..., 0], about)


def faster_coco_eval() -> Any:
    """Import the library; its absence is a :class:`UserError`."""
    try:
        return importlib.import_module("faster_coco_eval")
    except ImportError:
        raise UserError(
            "average precision is computed by faster-coco-eval, which is missing: "
            "pip install faster-coco-eval."
        ) from None


def checked_truth(about: Any, where: str) -> dict[str, Any]:
    """Return what the scores need of annotations, in new dictionaries, annotations numbered from 1.

    Raises:
        UserError: names what is missing.
    """
    for key in ("images", "categories", "annotations"):
        if not isinstance(about, Mapping) or key not in about:
            raise UserError(f"{where} has no list '{key}': name annotations in COCO's format.")
    sizes = {image["id"]: (image["height"], image["width"]) for image in about["images"]}
    categories = {category["id"] for category in about["categories"]}
    annotations = []
    for number, annotation in enumerate(about["annotations"], start=1):
        for key in ("image_id", "category_id", "bbox", "area"):
            if key not in annotation:
                raise UserError(f"{where}: annotation {number} has no '{key}'; add it.")
        if annotation["image_id"] not in sizes:
            raise UserError(
                f"{where}: annotation {number} is of image {annotation['image_id']}, which is not "
                "among its images; remove it."
            )
        if annotation["category_id"] not in categories:
            raise UserError(
                f"{where}: annotation {number} is of category {annotation['category_id']}, which "
                "is not among its categories; remove it or add the category."
            )
        own: dict[str, Any] = {"iscrowd": 0} | dict(annotation) | {"id": number}
        if not own.get("segmentation"):
            height, width = sizes[annotation["image_id"]]
            own["segmentation"] = {"size": [height, width], "counts": [height * width]}
        annotations.append(own)
    return {
        "images": [dict(image) for image in about["images"]],
        "categories": [dict(category) for category in about["categories"]],
        "annotations": annotations,
    }


def check_detections(
    about: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], iou: IoU
) -> None:
    """Refuse detections that do not belong to the annotations or are not finite.

    Raises:
        UserError: names the first such detection by its number, from 1.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in about["images"]}
    categories = {category["id"] for category in about["categories"]}
    for number, found in enumerate(detections, start=1):
        for key in ("image_id", "category_id", "score", KEYS[iou]):
            if key not in found:
                raise UserError(f"detection {number} has no '{key}'; add it.")
        if found["image_id"] not in sizes:
            raise UserError(
                f"detection {number} is of image {found['image_id']}, which the annotations do not "
                "have: name the annotations that the detections belong to."
            )
        if found["category_id"] not in categories:
            raise UserError(
                f"detection {number} is of category {found['category_id']}, which the annotations "
                "do not have: write the category's id, not its place in the list."
            )
        if iou == "segm" and list(found["segmentation"]["size"]) != sizes[found["image_id"]]:
            raise UserError(
                f"detection {number} has a mask of {found['segmentation']['size']} (height, "
                f"width), but its image is {sizes[found['image_id']]}; write it at that size."
            )
        numbers = [found["score"], *(found["bbox"] if iou == "bbox" else ())]
        if not all(map(math.isfinite, numbers)):
            raise UserError(
                f"detection {number} has a score or a box that is not finite; leave it out."
            )


def _scores(precision: np.ndarray, about: Mapping[str, Any]) -> DetectionScores:
    """Return the means of precisions (10 thresholds, 101 recalls, classes, areas); -1 is none."""
    every = precision[..., ALL]
    objects = Counter(a["category_id"] for a in about["annotations"] if not a["iscrowd"])
    categories = sorted(about["categories"], key=lambda category: category["id"])
    return DetectionScores(
        ap=_mean(every),
        ap50=_mean(every[AT_50]),
        ap75=_mean(every[AT_75]),
        ap_small=_mean(precision[..., SMALL]),
        ap_medium=_mean(precision[..., MEDIUM]),
        ap_large=_mean(precision[..., LARGE]),
        classes=tuple(
            ClassScores(
                category=category["id"],
                name=category["name"],
                objects=objects[category["id"]],
                ap=_mean(every[..., place]),
                ap50=_mean(every[AT_50, :, place]),
                ap75=_mean(every[AT_75, :, place]),
            )
            for place, category in enumerate(categories)
        ),
    )


def _mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else None
