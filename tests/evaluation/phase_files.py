"""Embeddings of videos as the embed stage writes them, for the evaluations that read them."""

import hashlib

import numpy as np
import torch

from timewalk.evaluation.base import Inputs
from timewalk.evaluation.phase_sequences import (
    PhaseEmbeddings,
    PhaseSequence,
    save_phase_embeddings,
)

NAMES = ["reach", "pour", "leave"]
FILES = {
    "encoder_sha256": "run/encoder.safetensors",
    "head_sha256": "run/head.safetensors",
    "dataset_sha256": "manifest.json",
}
"""what digests are of, beside the embeddings; each holds its key"""
ABOUT = {key: hashlib.sha256(key.encode()).hexdigest() for key in FILES} | {"dataset": "toy"}


def sequence(seed, name="v", noise=0.05, labelled=True, action=-1):
    """Return a video whose embeddings go along a curve at a pace of its own."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(18, 30))
    time = np.sort(rng.uniform(0, 1, length))
    time[[0, -1]] = 0, 0.999
    curve = np.stack([time, time**2, np.sin(3 * time), np.cos(3 * time)], 1)
    embeddings = curve + noise * rng.normal(size=curve.shape)
    labels = (time * 3).astype(np.int64) if labelled else None
    return PhaseSequence(f"{name}{seed}", embeddings, labels, np.arange(length), action)


def write(folder, train=6, test=4, noise=0.05, labelled=True, classes=NAMES, **about):
    """Write both splits and return what an evaluation gets."""
    paths = []
    for split, count, seed in (("train", train, 0), ("test", test, 100)):
        videos = [sequence(seed + i, split, noise, labelled) for i in range(count)]
        paths.append(folder / f"{split}.safetensors")
        save(paths[-1], videos, classes, **ABOUT | {"split": split} | about)
    return inputs_of(*paths)


def save(path, videos, classes=NAMES, **about):
    save_phase_embeddings(path, PhaseEmbeddings(videos, list(classes), about or dict(ABOUT)))


def inputs_of(train, test):
    folder = train.parent
    (folder / "run").mkdir(exist_ok=True)
    for key, name in FILES.items():
        (folder / name).write_text(key)
    manifest, cpu = folder / "manifest.json", torch.device("cpu")
    return Inputs(folder / "run", manifest, cpu, train=train, test=test)
