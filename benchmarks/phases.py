"""Does it align: TCC on generated videos of one action, beside fresh weights and raw pixels.

    python benchmarks/phases.py                    the demo's run and set, four seeds: four minutes
    python benchmarks/phases.py --methods sal tcn tcc_sal_tcn classification --seeds 0

A small network with fresh weights learns, from the order of time alone, from 32 videos of a hand
that pours: at another speed, with other looks and other moving distractors in each. On 10 other
videos: Kendall's tau of the nearest frames (1: all in order, 0: none) and the accuracy of an SVM on
all training labels (percent, five phases). Beside it the same network untrained: its embedder, and
the mean of its map; and the pixels themselves at 16x16, which know where the hand is.

What it shows: whether the alignment loss learns the phase of the action where features do not have
it. What not: how good TCC is on real videos. A seed draws weights, clips and videos.
Ends with an error if TCC's mean tau is not `MARGIN` above the best untrained network's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.nn import functional as F

from timewalk.data.clips import open_clips
from timewalk.data.phases import PhaseVideos, link_phases
from timewalk.data.prepare import prepare
from timewalk.encoders import save_encoder, save_head
from timewalk.evaluation.phase_embeddings import embed_phases, load_phase_embeddings
from timewalk.methods import get_method
from timewalk.metrics.phases import fit_classifier, tau_matrix
from timewalk.suite import load_suite, merge
from timewalk.training.loop import Machine, Trainer

DEMO = Path(__file__).parents[1] / "workflow" / "demo.yaml"
MARGIN = 0.25
"""of tau"""
CPU = torch.device("cpu")
OWN_KEYS = {
    "tcc": {},
    "sal": {"tcc": None},
    "tcn": {"tcc": None},
    "tcc_sal_tcn": {},
    "classification": {"tcc": None, "classes": 5},
}


def run_of(method, seed):
    """Return the demo's run under another method and seed."""
    raw = yaml.safe_load(DEMO.read_text())
    keys = merge(raw["runs"]["tcc"], {"method": method, "seed": seed} | OWN_KEYS[method])
    raw["runs"]["tcc"] = {key: value for key, value in keys.items() if value is not None}
    return load_suite(raw).run("tcc")


def save(method, folder, head=True):
    save_head(method.heads() if head else {}, folder)
    save_encoder(method.encoder, folder, {})
    return folder


def trained(config, source, folder):
    """Train a run from fresh weights; return its folders by title."""
    method = get_method(config.method)(config)
    found = {
        "fresh weights, map": save(method, folder / "map", head=False),
        "fresh weights, embedder": save(method, folder / "fresh"),
    }
    shape = method.clip_shape()
    clips = open_clips([source], shape.frames, shape.step, sampler=shape.sampler)
    Trainer(method, config, clips, folder / "checkpoints", Machine(CPU), {"inputs": {}}).run()
    return found | {config.method: save(method, folder / "trained")}


def embedded(run, manifest, folder):
    """Return the videos of both splits: embeddings and labels of each."""
    splits = {}
    for split in ("train", "test"):
        path = folder / f"{split}.safetensors"
        embed_phases(run, manifest, split, path, device="cpu")
        splits[split] = [(x.embeddings, x.labels) for x in load_phase_embeddings(path).videos]
    return splits


def pixels(manifest):
    """Return the same of the frames themselves, 16x16 pixels each."""
    splits = {}
    for split in ("train", "test"):
        splits[split] = []
        for video in PhaseVideos(manifest, split):
            frames = video.frames(list(range(len(video)))).float()
            small = F.interpolate(frames, (16, 16), mode="area")
            splits[split].append((small.flatten(1).numpy(), video.labels))
    return splits


def scores(splits):
    """Return mean tau on test videos and accuracy in percent."""
    matrix = tau_matrix([x for x, _ in splits["test"]], 1, "sqeuclidean")
    joined = {
        split: [np.concatenate(part) for part in zip(*videos, strict=True)]
        for split, videos in splits.items()
    }
    predict = fit_classifier(*joined["train"], "svm", "scale")
    features, labels = joined["test"]
    return float(np.nanmean(matrix)), 100 * float((predict(features) == labels).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=OWN_KEYS, default=["tcc"])
    arguments = parser.parse_args()
    print(f"{'':30}{'tau':>8}{'accuracy, %':>14}", flush=True)
    found = {}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            entry = load_suite(yaml.safe_load(DEMO.read_text())).config.labelled["pour"]
            manifest, source = folder / "set" / "manifest.json", folder / "source" / "folders.json"
            prepare("pour", entry.model_copy(update={"seed": seed}), manifest)
            link_phases(manifest, source)
            rows = {"pixels": pixels(manifest)}
            for method in arguments.methods:
                started = time.monotonic()
                folders = trained(run_of(method, seed), source, folder / method)
                seconds = time.monotonic() - started
                rows |= {
                    title: embedded(run, manifest, run)
                    for title, run in folders.items()
                    if title not in rows
                }
            for title, splits in rows.items():
                tau, accuracy = scores(splits)
                found.setdefault(title, []).append(tau)
                spent = f", {seconds:.0f} s" if title == arguments.methods[-1] else ""
                print(f"{f'{title}, seed {seed}{spent}':30}{tau:8.3f}{accuracy:14.1f}", flush=True)
    means = {title: statistics.mean(taus) for title, taus in found.items()}
    print(", ".join(f"{title} {tau:.3f}" for title, tau in means.items()))
    if "tcc" in means:
        ahead = means["tcc"] - max(tau for title, tau in means.items() if "fresh" in title)
        if ahead < MARGIN:
            sys.exit(f"TCC is {ahead:.3f} ahead of untrained networks, less than {MARGIN}")


if __name__ == "__main__":
    main()
