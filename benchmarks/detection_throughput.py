"""The evaluation `coco`: its images a second beside the forward pass alone, and AP beside
pycocotools.

    python benchmarks/detection_throughput.py

Images: the whole evaluation (reading, resizing, network, masks to runs, AP of both kinds, files)
beside the same network on the same batches that lie in memory already; one after the other, three
times, medians of wall seconds on a GPU, of CPU seconds on CPUs. The network is a Cascade Mask R-CNN
on ViT-S/16 with random weights, which finds 100 things in every image: the most that there can be.
On a GPU 256 images of 480x640 at the published size; on CPUs, where only the ratio says something,
8 at a short side of 256 and a quarter of the channels. Target: a ratio of at most 1.3.

AP: 5000 images with 7 objects of 80 classes and 20 detections each, one thread, three times,
medians of CPU seconds, the files' reading on both sides. The figures must agree to 1e-9. Some
minutes.
"""

import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from timewalk.config import COCOShapes, EncoderConfig
from timewalk.data.detection_views import Sizes
from timewalk.data.objects import LabelledObjects
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder
from timewalk.encoders.dense import save_network
from timewalk.encoders.dense.detector import Detector
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.coco import Config, evaluate
from timewalk.evaluation.object_detections import Finder, WholeImages, batches, loaded
from timewalk.metrics.detection import average_precision, faster_coco_eval

REPEATS = 3
HEIGHT, WIDTH = 480, 640
IMAGES, OBJECTS, DETECTIONS, CLASSES = 5000, 7, 20, 80


def throughput(folder):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    count, short, long, channels = (256, 800, 1333, 256) if on_gpu else (8, 256, 427, 64)
    workers = min(8, (os.cpu_count() or 2) - 1) if on_gpu else 0
    clock = time.perf_counter if on_gpu else time.process_time
    manifest, saved = folder / "shapes" / "manifest.json", folder / "network"
    shapes = {"train": 1, "test": count, "height": HEIGHT, "width": WIDTH, "objects": 8}
    prepare("shapes", COCOShapes(kind="coco_shapes", **shapes), manifest)
    objects = LabelledObjects(manifest, "test")
    encoder = build_encoder(EncoderConfig(name="vit_small", patch_size=16, image_size=224), 0)
    network = Detector(encoder, len(objects.classes), fpn_channels=channels).eval()
    about = {"title": "random", "name": "random", "classes": list(objects.classes)}
    save_network(network, saved, about | {"sizes": {"short_side": short, "long_side": long}})
    keys = {"short_side": short, "long_side": long, "batch_size": 4, "pictures": 0}
    config = Config(dataset="shapes", network="random", **keys)
    inputs = Inputs(folder, manifest, device, network=saved, workers=workers)

    sizes = Sizes(test_short_side=short, long_side=long)
    parts = batches([(HEIGHT, WIDTH)] * count, range(count), sizes, network.multiple, 4)
    ready = [
        (images.to(device), own)
        for _, images, own in loaded(WholeImages(objects, sizes), parts, network.multiple, workers)
    ]
    finder = Finder(network.to(device), device, 100, "fp32")

    def forward():
        found = [len(one["scores"]) for images, own in ready for one in finder(images, own)]
        if on_gpu:
            torch.cuda.synchronize()
        return sum(found) / count

    def whole():
        with tempfile.TemporaryDirectory() as out:
            evaluate(inputs, config, Path(out))

    things = forward()
    seconds = {"forward pass": [], "evaluation": []}
    for _ in range(REPEATS):
        for what, call in (("forward pass", forward), ("evaluation", whole)):
            begun = clock()
            call()
            seconds[what].append(clock() - begun)
    median = {what: statistics.median(values) for what, values in seconds.items()}
    print(f"{device}, {count} images, short side {short}, {things:.0f} detections an image")
    for what, value in median.items():
        print(f"{what:14} {value:8.2f} s {count / value:8.2f} images/s")
    print(f"ratio {median['evaluation'] / median['forward pass']:.3f} (target: at most 1.3)")


def generated():
    """Return annotations, and detections: half of them near objects, half anywhere."""
    rng = np.random.default_rng(0)
    masks = faster_coco_eval().mask
    truth = {
        "images": [{"id": i + 1, "height": HEIGHT, "width": WIDTH} for i in range(IMAGES)],
        "categories": [{"id": i + 1, "name": str(i)} for i in range(CLASSES)],
        "annotations": [],
    }
    detections = []

    def region(image, category, box):
        left, top, right, bottom = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        outline = [left, top, right, top, right, bottom, left, (top + bottom) / 2]
        (found,) = masks.frPyObjects([[float(x) for x in outline]], HEIGHT, WIDTH)
        return {
            "image_id": image,
            "category_id": category,
            "bbox": [float(x) for x in (left, top, right - left, bottom - top)],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()},
        }

    for image in range(1, IMAGES + 1):
        centres = rng.uniform(0, [WIDTH, HEIGHT], (DETECTIONS, 2))
        sides = 10 ** rng.uniform(0.8, 2.5, (DETECTIONS, 2))
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
        classes = rng.integers(1, CLASSES + 1, DETECTIONS)
        for number in range(DETECTIONS):
            category, box = int(classes[number]), boxes[number]
            if number < OBJECTS:
                one = region(image, category, box)
                area = float(masks.area(one["segmentation"]))
                one |= {"id": len(truth["annotations"]) + 1, "area": area}
                truth["annotations"].append(one | {"iscrowd": int(rng.random() < 0.01)})
            near = number % 2 == 0
            source = number // 2 % OBJECTS if near else number
            shaken = boxes[source] + rng.normal(0, 0.08, 4) * np.tile(sides[source], 2)
            one = region(image, int(classes[source]), shaken)
            detections.append(one | {"score": round(float(rng.random()), 4)})
    return truth, detections


def pycocotools(truth, results, iou):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluation = COCOeval(known, known.loadRes(str(results)), iou)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats[:6]]


def ours(truth, results, iou):
    found = average_precision(truth, json.loads(results.read_text()), iou)
    return [found.ap, found.ap50, found.ap75, found.ap_small, found.ap_medium, found.ap_large]


def precision(folder):
    truth, detections = generated()
    path = folder / "instances.json"
    path.write_text(json.dumps(truth))
    for iou, dropped in (("bbox", "segmentation"), ("segm", "bbox")):
        results = folder / f"{iou}.json"
        results.write_text(
            json.dumps([{k: v for k, v in d.items() if k != dropped} for d in detections])
        )
        seconds, figures = {"pycocotools": [], "ours": []}, {}
        for _ in range(REPEATS):
            for what, call in (("pycocotools", pycocotools), ("ours", ours)):
                begun = time.process_time()
                figures[what] = call(path, results, iou)
                seconds[what].append(time.process_time() - begun)
        np.testing.assert_allclose(figures["ours"], figures["pycocotools"], rtol=0, atol=1e-9)
        slow, fast = (statistics.median(seconds[what]) for what in ("pycocotools", "ours"))
        print(
            f"{iou}: AP {figures['ours'][0]:.4f} on both sides; pycocotools {slow:.2f} s, ours "
            f"{fast:.2f} s, ratio {slow / fast:.1f}"
        )


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as name:
        throughput(Path(name))
        precision(Path(name))


if __name__ == "__main__":
    main()
