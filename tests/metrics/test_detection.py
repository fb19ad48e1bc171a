"""COCO's average precision: by hand, and beside pycocotools on random sets."""

import contextlib
import copy
import importlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from timewalk.errors import UserError
from timewalk.metrics.detection import average_precision

HEIGHT, WIDTH = 120, 160
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}, {"id": 90, "name": "owl"}]


def rle(box):
    """Return the RLE of a filled box (x, y, width, height) of whole pixels."""
    x, y, width, height = (int(value) for value in box)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    found = masks.encode(pixels)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def region(image, category, box, **more):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(value) for value in box],
        "segmentation": rle(box),
        **more,
    }


def annotation(image, category, box, crowd=0):
    return region(image, category, box, area=float(box[2] * box[3]), iscrowd=crowd)


def truth_of(annotations, images=2):
    return {
        "images": [
            {"id": 10 + number, "height": HEIGHT, "width": WIDTH, "file_name": f"{number}.jpg"}
            for number in range(images)
        ],
        "categories": CATEGORIES,
        "annotations": [{"id": number, **a} for number, a in enumerate(annotations, start=1)],
    }


def official(truth, detections, iou):
    """Return the first six figures of pycocotools, in percent, None for -1, and AP by class."""
    dropped = "segmentation" if iou == "bbox" else "bbox"
    results = [{k: v for k, v in d.items() if k != dropped} for d in copy.deepcopy(detections)]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = copy.deepcopy(truth)
        known.createIndex()
        if results:
            found = known.loadRes(results)
        else:
            # loadRes fails without results.
            found = COCO()
            found.dataset = {**known.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(known, found, iou)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    classes = []
    for place in range(len(truth["categories"])):
        values = evaluation.eval["precision"][:, :, place, 0, 2]
        classes.append(values[values > -1].mean() if (values > -1).any() else -1)
    return [
        [None if value == -1 else 100 * value for value in values]
        for values in (evaluation.stats[:6], classes)
    ]


def check(truth, detections, iou):
    """Compare with pycocotools; return the scores."""
    found = average_precision(truth, detections, iou)
    figures, classes = official(truth, detections, iou)
    assert [getattr(found, name) for name in NAMES] == pytest.approx(figures, abs=1e-9)
    assert [one.ap for one in found.classes] == pytest.approx(classes, abs=1e-9)
    return found


OBJECTS = [
    annotation(10, 3, (5, 5, 20, 20)),
    annotation(10, 3, (60, 20, 50, 60)),
    annotation(10, 8, (2, 2, 150, 100)),
    annotation(11, 8, (40, 40, 10, 30)),
]


def as_detections(annotations, scores=None, shift=0):
    scores = scores or [1.0 - number / 100 for number in range(len(annotations))]
    return [
        region(
            a["image_id"],
            a["category_id"],
            (a["bbox"][0] + shift, *a["bbox"][1:]),
            score=score,
        )
        for a, score in zip(annotations, scores, strict=True)
    ]


@pytest.mark.parametrize("iou", ["bbox", "segm"])
def test_the_truth_itself_is_exactly_perfect(iou):
    found = check(truth_of(OBJECTS), as_detections(OBJECTS), iou)
    assert [getattr(found, name) for name in NAMES] == [100.0] * 6
    assert [(one.category, one.name, one.objects) for one in found.classes] == [
        (3, "cat", 2),
        (8, "dog", 2),
        (90, "owl", 0),
    ]
    assert [one.ap for one in found.classes] == [100.0, 100.0, None]
    assert [one.ap75 for one in found.classes] == [100.0, 100.0, None]


@pytest.mark.parametrize("iou", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("shift", "ap", "ap75"),
    # IoU of two boxes of width 40: (40 - shift) / (40 + shift)
    [(0, 100, 100), (4, 70, 100), (8, 40, 0), (10, 30, 0), (13, 10, 0), (14, 0, 0)],
)
def test_a_shifted_box_counts_up_to_its_iou(iou, shift, ap, ap75):
    """Shifted by 10, the IoU is 30 / 50 = 0.6: found at 0.5, 0.55 and 0.6 itself."""
    objects = [annotation(10, 3, (20, 30, 40, 10))]
    found = check(truth_of(objects), as_detections(objects, shift=shift), iou)
    assert found.ap == pytest.approx(ap, abs=1e-12)
    assert (found.ap50, found.ap75) == (100.0 if shift <= 13 else 0.0, ap75)


def test_precision_at_101_recalls_by_hand():
    """Three objects; hit, miss, hit: precision 1 up to recall 1/3 (34 of the points), then 2/3 up
    to recall 2/3 (33 points, 0.34 to 0.66), then nothing."""
    objects = [annotation(10, 3, (x, 30, 20, 20)) for x in (0, 40, 80)]
    wrong = region(10, 3, (120, 80, 20, 20), score=0.8)
    hits = as_detections(objects[:2], [0.9, 0.7])
    found = check(truth_of(objects), [*hits, wrong], "bbox")
    assert found.ap == pytest.approx(100 * (34 + 33 * 2 / 3) / 101, abs=1e-9)
    assert found.ap50 == found.ap75 == pytest.approx(found.ap, abs=1e-9)


def test_a_second_detection_of_an_object_is_wrong():
    objects = [annotation(10, 3, (0, 0, 40, 40)), annotation(11, 3, (0, 0, 40, 40))]
    found = check(
        truth_of(objects),
        as_detections([objects[0], objects[0], objects[1]], [0.9, 0.8, 0.7]),
        "bbox",
    )
    # recall 1/2 at precision 1: 51 points; recall 1 at 2/3: 50 points
    assert found.ap == pytest.approx(100 * (51 + 50 * 2 / 3) / 101, abs=1e-9)


@pytest.mark.parametrize("iou", ["bbox", "segm"])
def test_crowd_regions_match_any_number_and_count_for_nothing(iou):
    objects = [annotation(10, 3, (0, 0, 30, 30)), annotation(10, 3, (60, 0, 80, 100), crowd=1)]
    inside = [region(10, 3, (60 + x, 10, 20, 20), score=0.95) for x in (0, 25, 50)]
    found = check(truth_of(objects), [*inside, *as_detections(objects[:1], [0.1])], iou)
    assert found.ap == 100.0
    assert found.classes[0].objects == 1
    outside = region(10, 3, (0, 60, 20, 20), score=0.95)
    found = check(truth_of(objects), [outside, *as_detections(objects[:1], [0.1])], iou)
    assert found.ap == pytest.approx(50)


@pytest.mark.parametrize("iou", ["bbox", "segm"])
def test_no_detections_at_all(iou):
    found = check(truth_of(OBJECTS), [], iou)
    assert [getattr(found, name) for name in NAMES] == [0.0] * 6
    assert [one.ap for one in found.classes] == [0.0, 0.0, None]


@pytest.mark.parametrize("iou", ["bbox", "segm"])
@pytest.mark.parametrize("detections", [[], as_detections(OBJECTS)])
def test_no_object_at_all(iou, detections):
    crowd = [annotation(10, 3, (0, 0, 30, 30), crowd=1)]
    for annotations in ([], crowd):
        found = check(truth_of(annotations), detections, iou)
        assert [getattr(found, name) for name in NAMES] == [None] * 6
        assert [one.ap for one in found.classes] == [None] * 3


def test_detections_on_an_image_without_annotation_are_wrong():
    objects = [annotation(10, 3, (0, 0, 30, 30))]
    found = check(
        truth_of(objects),
        [region(11, 3, (0, 0, 30, 30), score=0.9), *as_detections(objects, [0.5])],
        "bbox",
    )
    assert found.ap == pytest.approx(50)


@pytest.mark.parametrize("iou", ["bbox", "segm"])
def test_an_object_without_area_is_never_found(iou):
    objects = [annotation(10, 3, (0, 0, 30, 30)), annotation(10, 3, (50, 50, 0, 0))]
    found = check(truth_of(objects), as_detections(objects), iou)
    assert found.ap == pytest.approx(100 * 51 / 101)
    assert found.ap_small == pytest.approx(100 * 51 / 101)


def test_an_empty_list_of_polygons_is_an_empty_mask():
    """pycocotools fails on it."""
    objects = [annotation(10, 3, (0, 0, 30, 30)), annotation(10, 3, (50, 50, 10, 10))]
    truth = truth_of(objects)
    truth["annotations"][1]["segmentation"] = []
    assert average_precision(truth, as_detections(objects), "segm").ap == pytest.approx(
        100 * 51 / 101
    )


def test_polygons_and_uncompressed_masks_are_read():
    objects = [annotation(10, 3, (4, 6, 30, 20)), annotation(11, 3, (50, 50, 10, 10))]
    truth = truth_of(objects)
    truth["annotations"][0]["segmentation"] = [[4, 6, 34, 6, 34, 26, 4, 26]]
    column = [60] + [10, HEIGHT - 10] * 9 + [10]
    start = 50 * HEIGHT + 50
    counts = [start, *column[1:-1], 10]
    truth["annotations"][1]["segmentation"] = {
        "size": [HEIGHT, WIDTH],
        "counts": [*counts, HEIGHT * WIDTH - sum(counts)],
    }
    assert check(truth, as_detections(objects), "segm").ap == 100.0


def test_an_annotation_of_id_0_can_be_found():
    """pycocotools takes it for not found."""
    truth = truth_of(OBJECTS[:1])
    truth["annotations"][0]["id"] = 0
    detections = as_detections(OBJECTS[:1])
    assert average_precision(truth, detections, "bbox").ap == 100.0
    assert official(truth, detections, "bbox")[0][0] == 0.0


def test_a_mask_counts_with_its_own_area():
    """A large box around a small mask: the results of masks have no boxes, as pycocotools wants."""
    objects = [annotation(10, 3, (0, 0, 20, 20))]
    extra = region(10, 3, (60, 60, 20, 20), score=0.95)
    extra["bbox"] = [0.0, 0.0, 120.0, 110.0]
    found = check(truth_of(objects), [extra, *as_detections(objects, [0.5])], "segm")
    assert found.ap_small == pytest.approx(50)


def test_a_file_and_arguments_that_stay_as_they_were(tmp_path):
    truth, detections = truth_of(OBJECTS), as_detections(OBJECTS, shift=3)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(truth))
    before = copy.deepcopy((truth, detections))
    for iou in ("bbox", "segm"):
        assert average_precision(path, detections, iou) == average_precision(truth, detections, iou)
    assert (truth, detections) == before


@st.composite
def sets(draw):
    """Annotations with crowds and empty objects, and detections near them and elsewhere, ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    images, objects = draw(st.integers(1, 4)), draw(st.integers(0, 12))

    def box():
        width, height = rng.integers(0, 110), rng.integers(0, 110)
        return (rng.integers(0, WIDTH - width), rng.integers(0, HEIGHT - height), width, height)

    def shaken(found):
        x, y, width, height = np.array(found) + rng.integers(-4, 5, 4)
        x, y = np.clip(x, 0, WIDTH - 1), np.clip(y, 0, HEIGHT - 1)
        return (x, y, np.clip(width, 0, WIDTH - x), np.clip(height, 0, HEIGHT - y))

    def score():
        return float(rng.integers(1, 6) / 5)

    ids = [category["id"] for category in CATEGORIES]
    annotations, detections = [], []
    for _ in range(objects):
        image, category, found = 10 + int(rng.integers(images)), int(rng.choice(ids)), box()
        annotations.append(annotation(image, category, found, int(rng.random() < 0.2)))
        for _ in range(rng.integers(0, 4)):
            detections.append(region(image, category, shaken(found), score=score()))
    for _ in range(draw(st.integers(0, 5))):
        image, category = 10 + int(rng.integers(images)), int(rng.choice(ids))
        detections.append(region(image, category, box(), score=score()))
    return truth_of(annotations, images), detections


@settings(max_examples=60)
@given(sets(), st.sampled_from(["bbox", "segm"]))
def test_equals_pycocotools(made, iou):
    check(*made, iou)


def test_at_most_100_detections_of_an_image_and_class():
    objects = [annotation(10, 3, (0, 0, 30, 30))]
    wrong = [region(10, 3, (80, 80, 10, 10), score=0.9) for _ in range(100)]
    assert check(truth_of(objects), [*wrong, *as_detections(objects, [0.5])], "bbox").ap == 0.0
    found = check(truth_of(objects), [*wrong[1:], *as_detections(objects, [0.5])], "bbox")
    assert found.ap == pytest.approx(1.0)


def test_without_the_library(monkeypatch):
    def missing(name, *arguments):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install faster-coco-eval"):
        average_precision(truth_of(OBJECTS), [], "bbox")


def broken_truth(**changes):
    truth = truth_of(OBJECTS)
    truth["annotations"][2].update(changes)
    return truth


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([], "the annotations has no list 'images'"),
        ({"images": [], "categories": []}, "no list 'annotations': name annotations in COCO's"),
        (broken_truth(image_id=5), "annotation 3 is of image 5, which is not among its images"),
        (broken_truth(category_id=5), "annotation 3 is of category 5, which is not among its"),
    ],
)
def test_annotations_that_are_wrong(truth, message):
    with pytest.raises(UserError, match=message):
        average_precision(truth, [], "bbox")


def test_annotations_without_a_key():
    truth = truth_of(OBJECTS)
    del truth["annotations"][1]["area"]
    with pytest.raises(UserError, match="annotation 2 has no 'area'; add it"):
        average_precision(truth, [], "bbox")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "detection 2 is of image 99, which the annotations do not have"),
        ({"category_id": 0}, "detection 2 is of category 0, which the annotations do not have"),
        ({"score": float("nan")}, "detection 2 has a score or a box that is not finite"),
        ({"bbox": [0, 0, float("inf"), 3]}, "detection 2 has a score or a box that is not finite"),
    ],
)
def test_detections_that_are_wrong(change, message):
    detections = as_detections(OBJECTS)
    detections[1] |= change
    with pytest.raises(UserError, match=message):
        average_precision(truth_of(OBJECTS), detections, "bbox")


def test_a_mask_of_another_size():
    detections = as_detections(OBJECTS)
    detections[0]["segmentation"] = {"size": [5, 5], "counts": "0"}
    with pytest.raises(UserError, match=r"detection 1 has a mask of \[5, 5\] \(height, width\)"):
        average_precision(truth_of(OBJECTS), detections, "segm")


def test_a_detection_without_its_region():
    detections = as_detections(OBJECTS)
    del detections[0]["segmentation"]
    with pytest.raises(UserError, match="detection 1 has no 'segmentation'; add it"):
        average_precision(truth_of(OBJECTS), detections, "segm")


def test_true_boxes_beyond_the_image_are_taken_as_they_are():
    """As by pycocotools: a detection that is cut to the image overlaps with a part of them."""
    objects = [annotation(10, 3, (0, 0, 30, 40))]
    objects[0] |= {"bbox": [-10.0, 0.0, 40.0, 40.0], "area": 1600.0}
    found = check(truth_of(objects), [region(10, 3, (0, 0, 30, 40), score=0.5)], "bbox")
    assert found.ap75 == 100.0
    assert found.ap == pytest.approx(60)  # an IoU of 0.75
