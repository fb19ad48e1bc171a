"""ADE20K's evaluation beside the network's forward passes alone, on the same windows.

    python benchmarks/segmentation_throughput.py             ViT-S UperNet, 150 classes, 512 pixels
    python benchmarks/segmentation_throughput.py --head linear --test whole
    python benchmarks/segmentation_throughput.py --quick     small windows: does it run

Images of noise in sizes like those of ADE20K's validation set, a labelled one of several megapixels
among them, with fresh weights. The evaluation reads JPEGs and masks, resizes, cuts windows, passes
the network, averages logits over windows at the stored size, decides and counts; the other side
only passes the network over the same windows in the same batches. The two take turns; medians. On a
CPU: CPU seconds of one thread, reading included; on a GPU: seconds of the clock, images read ahead
by `--workers` processes.

Target: the evaluation takes at most 1.3 times the time of the forward passes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from timewalk.encoders.dense.segmenter import Segmenter
from timewalk.encoders.files import from_spec
from timewalk.evaluation.ade20k import Config, Counts, count
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.segment_images import SizedImages, in_parts, items

VIT = {"family": "vit", "width": 384, "depth": 12, "heads": 6, "patch_size": 16, "image_size": 512}
SIZES = ((512, 683), (512, 683), (683, 512), (512, 768), (1536, 2048))
CLASSES, RATIO = 150, 1.3


def write_images(folder, sizes):
    """Return a set as far as the evaluation reads it."""
    rng, frames = np.random.default_rng(0), []
    for number, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        image, mask = folder / f"{number}.jpg", folder / f"{number}.png"
        Image.fromarray(coarse).resize((width, height)).save(image, quality=95)
        ids = rng.integers(0, CLASSES, (height // 16, width // 16)).astype(np.uint8)
        Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST).save(mask)
        frames.append((image, mask, np.arange(256, dtype=np.uint8)))
    return SimpleNamespace(frames=frames)


def now(device):
    """Return CPU seconds; on a GPU the time of day once its work is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def evaluation(scored, extractor, stride, config, workers, work):
    """Count all images; return seconds."""
    start = now(extractor.device)
    counts = Counts(torch.zeros(CLASSES, CLASSES, dtype=torch.int64))
    for _ in count(counts, scored, extractor, stride, config, workers):
        counts.save(work, "benchmark")
    assert counts.done == len(scored.frames)
    return now(extractor.device) - start


def batches(scored, config):
    """Return the windows of all images as the evaluation passes them."""
    windows, found = config.windows(), []
    images = SizedImages(scored, windows.scales)
    read = items((images[n] for n in range(len(images))), windows)
    for part in in_parts(read, windows.at_once):
        groups = {}
        for view in (view for item in part for view in item.views):
            groups.setdefault(view.windows.shape[1:], []).append(view.windows)
        found += [x for group in groups.values() for x in torch.cat(group).split(windows.at_once)]
    return found


def forward(found, extractor):
    """Pass all windows; return seconds."""
    start = now(extractor.device)
    for batch in found:
        extractor(batch)
    return now(extractor.device) - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small windows and images")
    parser.add_argument("--head", choices=("upernet", "linear"), default="upernet")
    parser.add_argument("--test", choices=("slide", "whole", "multi_scale"), default="slide")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, help="number; by default 5, and 200 on a GPU")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    wanted = options.images or (len(SIZES) if device.type == "cpu" else 200)
    factor = 8 if options.quick else 1
    sizes = [tuple(n // factor for n in SIZES[i % len(SIZES)]) for i in range(wanted)]
    names = ("crop", "stride", "short_side", "long_side")
    shape = dict(zip(names, (n // factor for n in (512, 341, 512, 2048)), strict=True))
    keys = {"dataset": "ade20k", "network": "upernet", "batch_size": options.batch, **shape}
    config = Config(**keys, test=options.test, precision=options.precision)
    network = Segmenter(from_spec(VIT), CLASSES, options.head, aux_channels=None)
    network.eval().requires_grad_(False).to(device)
    extractor = Extractor(network.encoder, device, config.precision, network)
    workers = 0 if device.type == "cpu" else options.workers
    with tempfile.TemporaryDirectory() as name:
        scored = write_images(Path(name), sizes)
        found = batches(scored, config)
        forward(found[:1], extractor)
        seconds = {"forward": [], "evaluation": []}
        for _ in range(options.repeats):
            seconds["forward"].append(forward(found, extractor))
            args = (scored, extractor, network.stride, config, workers, Path(name))
            seconds["evaluation"].append(evaluation(*args))
    whole, passes = (statistics.median(seconds[side]) for side in ("evaluation", "forward"))
    unit = "CPU s" if device.type == "cpu" else "s"
    windows = sum(len(batch) for batch in found)
    print(
        f"{options.head}, {options.test}, {options.precision}: {wanted} images, {windows} windows"
    )
    print(f"| | {unit} | images/s |\n|---|---|---|")
    print(f"| forward passes alone | {passes:.2f} | {wanted / passes:.2f} |")
    print(f"| evaluation | {whole:.2f} | {wanted / whole:.2f} |")
    print(f"ratio {whole / passes:.3f}, the aim at most {RATIO}")
    if not options.quick and whole > RATIO * passes:
        sys.exit("the evaluation costs too much")


if __name__ == "__main__":
    main()
