"""A miniature DAVIS, and the evaluation on it."""

import json

import numpy as np
import torch
from PIL import Image

from tests.miniature import video_sets
from timewalk.cli import main
from timewalk.config import Davis2017
from timewalk.data.prepare import prepare
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.video_segmentation import Config, evaluate

SIZE, FRAMES = (64, 80), 6
CPU = torch.device("cpu")


def prepared(folder, **keys):
    """Prepare a set and return its manifest; the set is `folder`/DAVIS."""
    manifest = folder / "set" / "manifest.json"
    config = Davis2017(kind="davis2017", root=str(folder / "DAVIS"), **keys)
    prepare("davis", config, manifest)
    return manifest


def a_set(folder, frames=FRAMES, **keys):
    video_sets.davis2017(folder / "DAVIS", frames=frames, size=SIZE, **keys)
    return prepared(folder)


def run(folder, vit, output, **keys):
    inputs = Inputs(vit, folder / "set" / "manifest.json", CPU)
    return evaluate(inputs, Config(dataset="davis", **{"overlays": False, **keys}), output)


def command(folder, vit, output, **keys):
    """Run the evaluation from the command line and return its exit code."""
    settings = {"kind": "davis", "dataset": "davis", "overlays": False, **keys}
    paths = ["--dataset", str(folder / "set" / "manifest.json")]
    options = ["--settings", json.dumps(settings), *paths, "--gpus", "0", "--threads", "1"]
    return main(["evaluate", "davis", str(vit), str(output), *options])


def mask(folder, name, frame):
    return folder / "DAVIS" / "Annotations" / "480p" / name / f"{frame:05d}.png"


def image(folder, name, frame):
    return folder / "DAVIS" / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg"


def ids_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture)
