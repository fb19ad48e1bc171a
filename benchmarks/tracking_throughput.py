"""Tracking on GOT-10k by label propagation: frames per second beside the forward pass alone.

    python benchmarks/tracking_throughput.py [--quick] [--only NETWORK]

A generated video of 1280x720 pixels is tracked by untrained networks at the defaults (short side
480, context 7), from files to boxes; the other side passes as many frames, already resized and on
the device, through the network in the same batches. On a CPU: one thread, and seconds of the
processor, not of the clock. Repeats alternate between the sides; medians. What propagation and
search of the box take by themselves is given too. `--quick`: small frames, in seconds. With a GPU:
also there.
"""

import argparse
import statistics
import tempfile
import time
from math import lcm
from pathlib import Path

import numpy as np
import torch

from timewalk.config import EncoderConfig
from timewalk.config.dense import GOT10k
from timewalk.data.generated_tracks import moving_object, write_got10k
from timewalk.data.prepare.tracks import prepare_tracks
from timewalk.data.tracks import LabelledTracks
from timewalk.encoders import build_encoder
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.got10k import (
    Config,
    follow,
    input_size,
    one_tile,
    propagation,
    read_ahead,
)
from timewalk.evaluation.got10k_boxes import BoxFinder, first_labels
from timewalk.ops.propagation import Propagator

FRAMES, SIZE, QUICK, REPEATS = 16, (720, 1280), (96, 128), 3
NETWORKS = {
    "vit_small, patch 16": {"name": "vit_small", "patch_size": 16, "image_size": 224},
    "tf_efficientnet_lite0": {"name": "tf_efficientnet_lite0"},
    "resnet18_s8": {"name": "resnet18_s8"},
}


def a_track(folder, size):
    video = moving_object(FRAMES, size, 0, np.random.default_rng(0))
    write_got10k(folder / "GOT-10k", {"video": video})
    config = GOT10k(kind="got10k", root=str(folder / "GOT-10k"))
    prepare_tracks("benchmark", config, folder / "set" / "manifest.json")
    return LabelledTracks(folder / "set" / "manifest.json")["video"]


def now(device):
    """Return seconds: of a CPU those in use, whatever else the machine does."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def forward(extractor, batches, device):
    """Return seconds of the network, and its maps."""
    start = now(device)
    maps = [extractor(batch) for batch in batches]
    return now(device) - start, torch.cat(maps)


def carried(track, encoder, maps, config, device):
    """Return seconds of the propagation, and of the search for boxes."""
    labels = first_labels(track.boxes[0], track.size, tuple(maps.shape[2:]), config.first_mask)
    settings = propagation(config, encoder).propagation
    start = now(device)
    tile = one_tile(settings, tuple(maps.shape[2:]), device)
    propagator = Propagator(settings, maps[0], labels[1:].to(device), tile)
    found = [propagator.step(features)[0] for features in maps[1:]]
    between = now(device)
    found = torch.stack(found).cpu().numpy()
    finder = BoxFinder(
        track.boxes[0], labels[1].numpy(), track.size, config.threshold, config.smoothing
    )
    for one in found:
        finder(one)
    return between - start, now(device) - between


def measure(track, name, config, device):
    encoder = build_encoder(EncoderConfig(**NETWORKS[name]), seed=0)
    encoder = encoder.eval().requires_grad_(False).to(device)
    extractor = Extractor(encoder, device, features=encoder.dense)
    size = input_size(track.size, config.short_side, lcm(encoder.multiple, encoder.stride))
    batches = [batch.to(device) for batch in read_ahead(track, size, config.frames_at_once, 1)]
    extractor(batches[0])
    times = {"forward": [], "whole": [], "propagation": [], "boxes": []}
    for _ in range(REPEATS):
        seconds, maps = forward(extractor, batches, device)
        times["forward"].append(seconds)
        start = now(device)
        follow(track, encoder, config, device, workers=1)
        times["whole"].append(now(device) - start)
        parts = carried(track, encoder, maps, config, device)
        for key, seconds in zip(("propagation", "boxes"), parts, strict=True):
            times[key].append(seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    cells = f"{maps.shape[2]}x{maps.shape[3]}"
    rates = [f"{FRAMES / medians[key]:.2f}" for key in ("forward", "whole")]
    ratio = f"{medians['whole'] / medians['forward']:.2f}"
    parts = [f"{1000 * medians[key] / FRAMES:.1f}" for key in ("propagation", "boxes")]
    print(f"| {' | '.join([name, cells, *rates, ratio, *parts])} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Tracking beside the forward pass alone.")
    parser.add_argument("--quick", action="store_true", help="small frames, in seconds")
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    config = Config(dataset="benchmark", short_side=96 if quick else 480)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as folder:
        track = a_track(Path(folder), QUICK if quick else SIZE)
        for device in devices:
            print(f"\n{device}")
            columns = [
                "network",
                "cells",
                "forward, frames/s",
                "evaluation, frames/s",
                "time, ratio",
            ]
            columns += ["propagation, ms a frame", "boxes, ms a frame"]
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
            for name in [arguments.only] if arguments.only else NETWORKS:
                measure(track, name, config, torch.device(device))


if __name__ == "__main__":
    main()
