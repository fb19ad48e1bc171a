"""AP on generated objects: with the truth as prediction, shifted, nothing, and a real network."""

import contextlib
import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as official_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional as F

from tests.evaluation.pasting import paste
from timewalk.artefacts import read_json
from timewalk.config import COCOShapes, EncoderConfig
from timewalk.data.detection_views import Sizes, whole_image
from timewalk.data.objects import LabelledObjects
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder
from timewalk.encoders.dense import save_network
from timewalk.encoders.dense.detector import Detector
from timewalk.errors import UserError
from timewalk.evaluation import coco
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.coco import Config, evaluate
from timewalk.evaluation.fine_tuned import with_sizes
from timewalk.evaluation.mask_runs import decoded
from timewalk.evaluation.object_detections import Found, batches, read_kept

CPU = torch.device("cpu")
SHAPES = COCOShapes(kind="coco_shapes", train=4, test=7, height=96, width=128, seed=3)
SIZES = {"name": "it", "sizes": {"short_side": 800, "long_side": 1333}}
SIDES = {"short_side": 96, "long_side": 128}
TINY = EncoderConfig(name="vit_tiny", patch_size=16, image_size=64, depth=2, width=24, heads=3)
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
FILES = ["detections.json", "segmentations.json", "classes.csv", "sheet.png"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    found = tmp_path_factory.mktemp("objects") / "shapes" / "manifest.json"
    prepare("shapes", SHAPES, found)
    return found


class Oracle(torch.nn.Module):
    """Finds the objects of the images that it has been shown, each shifted by some pixels."""

    multiple = 32

    def __init__(self, objects, sizes, shift=0.0, stop_after=None):
        super().__init__()
        self.known = {}
        self.seen, self.shift, self.stop_after = 0, shift, stop_after
        for image in objects:
            fitted = whole_image(image, sizes)
            scale = np.array([fitted.shape[2] / image.width, fitted.shape[1] / image.height] * 2)
            found = [
                (image.boxes[number] * scale, image.classes[number], self.cells(image, number))
                for number in np.flatnonzero(~image.crowd)
            ]
            self.known[fitted.numpy().tobytes()] = found

    @staticmethod
    def cells(image, number):
        left, top, right, bottom = image.boxes[number].astype(int)
        part = torch.from_numpy(image.masks()[number][top:bottom, left:right]).float()
        return F.interpolate(part[None, None], size=(28, 28), mode="area")[0, 0]

    def normalise(self, images, sizes):
        return images

    def detect(self, images, sizes):
        found = []
        for image, (height, width) in zip(images, sizes.tolist(), strict=True):
            if self.seen == self.stop_after:
                raise KeyboardInterrupt
            self.seen += 1
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
            assert image.shape[1] % self.multiple == image.shape[2] % self.multiple == 0
            rows = self.known[image[:, :height, :width].numpy().tobytes()]
            shift = torch.tensor([self.shift, 0, self.shift, 0])
            found.append(
                {
                    "boxes": torch.tensor(np.array([row[0] for row in rows])).reshape(-1, 4)
                    + shift,
                    "scores": torch.linspace(0.9, 0.5, len(rows)),
                    "labels": torch.tensor([int(row[1]) for row in rows], dtype=torch.int64),
                    "masks": torch.stack([row[2] for row in rows])
                    if rows
                    else torch.zeros(0, 28, 28),
                }
            )
        return found


@pytest.fixture
def oracle(manifest, monkeypatch):
    """Return a function that puts an oracle in the network's place."""

    def put(short_side=96, long_side=128, **keys):
        objects = LabelledObjects(manifest, "test")
        sizes = Sizes(test_short_side=short_side, long_side=long_side)
        network = Oracle(objects, sizes, **keys)
        about = {"classes": list(objects.classes), "sha256": "0" * 64, "title": "oracle"}
        about |= SIZES | {"architecture": {"kind": "detector"}, "mean": [0.5], "std": [0.2]}
        monkeypatch.setattr(coco, "load_network", lambda folder, kind: (network, about))
        return network

    return put


@pytest.fixture
def run(manifest, tmp_path):
    """Return a function that evaluates into a folder."""

    def go(folder="out", workers=0, network="network", **keys):
        inputs = Inputs(tmp_path, manifest, CPU, network=tmp_path / network, workers=workers)
        config = Config(**({"dataset": "shapes", "network": "detector"} | SIDES | keys))
        return evaluate(inputs, config, tmp_path / folder)

    return go


def official(manifest, folder):
    """Return pycocotools' figures of the files that were written, named as ours."""
    figures = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(LabelledObjects(manifest, "test").annotations))
        for what, iou, name in (("box", "bbox", "detections"), ("mask", "segm", "segmentations")):
            evaluation = COCOeval(truth, truth.loadRes(str(folder / f"{name}.json")), iou)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip(NAMES, evaluation.stats, strict=False):
                figures[f"{what}_{key}"] = None if value == -1 else 100 * value
    return figures


def true_detections(objects, shift=0):
    """Return the truth of each image as found, shifted to the right, with its exact masks."""
    found = []
    for image in objects:
        places = np.flatnonzero(~image.crowd)
        boxes = image.boxes[places].astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        boxes[:, 0] += shift
        masks = np.roll(image.masks(), shift, axis=2)[places]
        counts = [official_masks.encode(np.asfortranarray(m))["counts"].decode() for m in masks]
        scores = np.linspace(0.9, 0.5, len(places)).tolist()
        found.append(Found(boxes.tolist(), scores, image.classes[places].tolist(), counts))
    return found


@pytest.fixture
def found_is(monkeypatch, oracle):
    """Return a function that sets what is found in all images."""

    def put(found):
        oracle()
        monkeypatch.setattr(coco, "find_all", lambda *arguments: found)

    return put


def test_the_truth_itself_is_exactly_perfect(manifest, run, found_is):
    objects = LabelledObjects(manifest, "test")
    assert any(image.crowd.any() for image in objects)
    assert any(not len(image.boxes) for image in objects)
    found_is(true_detections(objects))
    result = run()
    assert result.metrics == {
        f"{what}_{name}": None if name == "ap_large" else 100.0
        for what in ("box", "mask")
        for name in NAMES
    }


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_shifted_objects_score_as_with_pycocotools(manifest, run, found_is, tmp_path, shift):
    found_is(true_detections(LabelledObjects(manifest, "test"), shift))
    metrics = run().metrics
    assert metrics == pytest.approx(official(manifest, tmp_path / "out"), abs=1e-9)
    assert 0 < metrics["box_ap"] < 100
    assert 0 < metrics["mask_ap"] < 100


@pytest.mark.parametrize("sides", [(96, 128), (160, 400), (70, 90)])
def test_boxes_come_back_from_any_size(manifest, run, oracle, tmp_path, sides):
    oracle(*sides)
    result = run(short_side=sides[0], long_side=sides[1])
    assert result.metrics["box_ap"] == 100.0
    assert result.metrics["mask_ap50"] == 100.0
    assert result.metrics == pytest.approx(official(manifest, tmp_path / "out"), abs=1e-9)
    assert result.samples == 7
    assert [path.name for path in result.artefacts] == FILES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_the_results_are_in_the_official_format(manifest, run, oracle, tmp_path):
    network = oracle(shift=-60.0)
    run()
    objects = LabelledObjects(manifest, "test")
    boxes, masks = (read_json(tmp_path / "out" / name) for name in FILES[:2])
    assert len(boxes) == len(masks) == sum(len(found) for found in network.known.values())
    images = {int(image.image_id): image for image in objects}
    for box, mask in zip(boxes, masks, strict=True):
        assert box.keys() == {"image_id", "category_id", "bbox", "score"}
        assert mask.keys() == {"image_id", "category_id", "segmentation", "score"}
        image = images[box["image_id"]]
        assert box["category_id"] == mask["category_id"] in objects.category_ids
        left, top, width, height = box["bbox"]
        assert 0 <= left <= left + width <= image.width
        assert 0 <= top <= top + height <= image.height
        assert mask["segmentation"]["size"] == [image.height, image.width]
    assert any(box["bbox"][2] == 0 for box in boxes)  # shifted out of the image


def test_masks_are_those_that_are_pasted_one_by_one(manifest, run, oracle, tmp_path):
    network = oracle()
    run()
    masks = iter(read_json(tmp_path / "out/segmentations.json"))
    for image in LabelledObjects(manifest, "test"):
        rows = network.known[whole_image(image, Sizes(test_short_side=96)).numpy().tobytes()]
        for box, _, cells in rows:
            (expected,) = paste(cells[None], torch.from_numpy(box)[None], (96, 128))
            counts = next(masks)["segmentation"]["counts"]
            assert (decoded(counts, (96, 128)) == expected.numpy()).all()


def test_nothing_is_found(run, found_is, tmp_path):
    found_is([Found([], [], [], [])] * 7)
    metrics = run().metrics
    assert {name: value for name, value in metrics.items() if value is not None} == {
        f"{what}_{name}": 0.0 for what in ("box", "mask") for name in NAMES[:5]
    }
    assert read_json(tmp_path / "out/detections.json") == []


def test_classes(run, oracle, manifest, tmp_path):
    oracle()
    run()
    rows = list(csv.DictReader((tmp_path / "out/classes.csv").open()))
    objects = LabelledObjects(manifest, "test")
    assert [(int(row["category_id"]), row["name"]) for row in rows] == list(
        zip(objects.category_ids, objects.classes, strict=True)
    )
    counts = np.zeros(len(rows), int)
    for image in objects:
        np.add.at(counts, image.classes[~image.crowd], 1)
    assert [int(row["objects"]) for row in rows] == counts.tolist()
    assert {row["box_ap"] for row in rows if int(row["objects"])} == {"100"}


def test_batches_and_workers_change_nothing(run, oracle, tmp_path):
    oracle(shift=1.0)
    first = run("one", batch_size=1)
    for folder, keys in (("three", {"batch_size": 3}), ("ahead", {"workers": 2})):
        assert run(folder, **keys).metrics == first.metrics
        for name in FILES:
            assert (tmp_path / folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_interrupted_evaluation_goes_on(run, oracle, tmp_path):
    oracle(shift=1.0)
    whole = run("whole")
    oracle(shift=1.0, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        run(batch_size=2)
    (kept,) = (tmp_path / "out/work").iterdir()
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    # Killed while it wrote.
    kept.write_text("".join(lines[:3]) + lines[3][:20])
    network = oracle(shift=1.0)
    assert run(pictures=3).metrics == whole.metrics
    assert network.seen == 4
    for name in FILES[:3]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_was_found_with_other_settings_is_not_used(run, oracle, tmp_path):
    oracle(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        run()
    network = oracle(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        run(max_detections=1, batch_size=1)
    assert network.seen == 5
    assert len(list((tmp_path / "out/work").iterdir())) == 1


def test_the_best_detections_are_kept(run, oracle, tmp_path):
    network = oracle()
    run(max_detections=1)
    found = read_json(tmp_path / "out/detections.json")
    assert len(found) == sum(bool(rows) for rows in network.known.values())
    assert {one["score"] for one in found} == {0.9}


def test_batches_are_of_one_size_largest_first():
    stored = [(480, 640), (640, 480), (427, 640), (480, 640), (500, 640), (480, 640)]
    found = batches(stored, range(6), Sizes(), 32, 2)
    # 800x1067 and 800x1024 come to 800x1088 and 800x1024, 800x1199 to 800x1216.
    assert found == [[2], [0, 3], [5], [1], [4]]
    assert batches(stored, [5, 1], Sizes(), 32, 2) == [[5], [1]]
    assert batches(stored, [], Sizes(), 32, 2) == []


def test_kept_results_survive_a_line_that_was_cut(tmp_path):
    kept = tmp_path / "work" / "key.jsonl"
    assert read_kept(kept) == {}
    line = {"image": 3, "boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1], "masks": ["ab"]}
    kept.write_text(json.dumps(line) + "\n" + '{"image": 4, "boxes"')
    (tmp_path / "work" / "other.jsonl").write_text("")
    assert read_kept(kept) == {3: Found([[1, 2, 3, 4]], [0.5], [1], ["ab"])}
    assert kept.read_text() == json.dumps(line) + "\n"
    assert [path.name for path in kept.parent.iterdir()] == ["key.jsonl"]


def test_protocols(manifest):
    objects = LabelledObjects(manifest, "test")
    about = {"title": "cascade-1x", "dataset": "shapes"} | SIZES

    def named(**keys):
        config = Config(dataset="shapes", network="detector", **keys)
        return coco.protocol(with_sizes(config, about), objects, about)

    assert named() == "coco_shapes-val2017-cascade-1x"
    assert named(batch_size=1, pictures=0) == named()
    assert named(short_side=400, long_side=666) == named() + "-short400-long666"
    assert named(max_detections=10, precision="bf16") == named() + "-max10-bf16"
    about["sizes"] = {"short_side": 96, "long_side": 160}
    assert named(short_side=96) == "coco_shapes-val2017-cascade-1x"
    about["dataset"] = "others"
    assert named() == "coco_shapes-val2017-from_others-cascade-1x"


def test_sides_that_contradict_each_other():
    with pytest.raises(ValueError, match="long_side is 500, below short_side 800; make it larger"):
        Config(dataset="shapes", network="detector", short_side=800, long_side=500)
    with pytest.raises(UserError, match=r"an evaluation of it: .*long_side is 500, below"):
        with_sizes(Config(dataset="shapes", network="detector", long_side=500), SIZES)


@pytest.mark.parametrize("head", ["cascade", "mask_rcnn"])
def test_a_network_without_training_goes_through(manifest, run, tmp_path, head):
    objects = LabelledObjects(manifest, "test")
    network = Detector(build_encoder(TINY, 0), len(objects.classes), head, fpn_channels=16)
    about = {"classes": list(objects.classes), "title": f"{head}-none", "dataset": "shapes"} | SIZES
    save_network(network, tmp_path / "network", about)
    result = run(precision="bf16" if head == "mask_rcnn" else "fp32")
    mark = "-bf16" if head == "mask_rcnn" else ""
    assert result.protocol == f"coco_shapes-val2017-{head}-none-short96-long128{mark}"
    assert result.metrics["box_ap"] < 20
    assert result.metrics.keys() == {f"{what}_{n}" for what in ("box", "mask") for n in NAMES}
    assert read_json(tmp_path / "out/detections.json")


def test_a_network_of_other_classes(run, manifest, tmp_path):
    network = Detector(build_encoder(TINY, 0), 2, fpn_channels=16)
    save_network(network, tmp_path / "network", {"classes": ["cat", "dog"], "title": "x"})
    with pytest.raises(UserError, match="network tells 2 classes that are not the 4 of 'shapes'"):
        run()


def test_no_network(manifest, tmp_path):
    with pytest.raises(UserError, match="test a fine-tuned network; name it"):
        evaluate(Inputs(tmp_path, manifest, CPU), Config(dataset="a", network="b"), tmp_path)


def test_boxes_that_are_not_finite(run, oracle):
    oracle(shift=float("nan"))
    with pytest.raises(UserError, match=r"that are not finite; fine-tune it again with a lower"):
        run()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_another_size_than_its_set_states(run, oracle, tmp_path, workers, monkeypatch):
    manifest = tmp_path / "own" / "manifest.json"
    prepare("shapes", SHAPES, manifest)
    oracle()
    image = LabelledObjects(manifest, "test")[2].path
    Image.new("RGB", (9, 9)).save(image)
    inputs = Inputs(tmp_path, manifest, CPU, network=tmp_path, workers=workers)
    config = Config(dataset="shapes", network="detector", **SIDES)
    with pytest.raises(UserError, match=f"^{re.escape(str(image))} is 9x9 pixels, but its set"):
        evaluate(inputs, config, tmp_path / "out")
