"""Still images of one colour a class, their masks, and an encoder that sees colours."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image
from torch.nn import functional as F

from timewalk.artefacts import sha256_file
from timewalk.data.generated import save_ids
from timewalk.encoders import Encoder, Features
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD

COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
CLASSES = ("background", "rose", "leaf", "sky")
CELL, CELLS = 8, 8
SIDE = CELL * CELLS
VOID = 255


class MeanColours(Encoder):
    """The mean colour of each cell of 8 x 8 pixels; counts the images it has seen."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self):
        super().__init__()
        self.stride = self.multiple = CELL
        self.width = self.patch_width = 3
        self.spec, self.images = {}, 0

    def forward(self, images):
        self.images += len(images)
        cells = F.avg_pool2d(images, CELL)
        return Features(cells.mean((2, 3)), cells)


def class_maps(count, seed, classes=4):
    """Return maps of the cells' classes, uint8 (count, 8, 8), every class in each of them."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, classes, (count, CELLS, CELLS)).astype(np.uint8)
    maps[:, 0, :classes] = np.arange(classes)
    return maps


def write_set(folder: Path, train, test, *, classes=CLASSES, name="colours", layout="voc2012"):
    """Write images and masks of cells' classes (n, 8, 8); return the manifest.

    A map of 255 is void; its pixels have the background's colour.
    """
    folder.mkdir(parents=True)
    for split, maps in (("train", train), ("test", test)):
        rows = []
        for number, cells in enumerate(maps):
            ids = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
            image, mask = f"{split}{number}.png", f"{split}{number}_mask.png"
            shown = np.where(ids < len(COLOURS), ids, 0)
            Image.fromarray(COLOURS[shown]).save(folder / image)
            save_ids(folder / mask, ids)
            rows.append(f"{image}\t{mask}\n")
        (folder / f"{split}.txt").write_text("".join(rows))
    lists = {s: sha256_file(folder / f"{s}.txt") for s in ("train", "test")}
    source = {"root": ".", "lists_sha256": lists}
    about = {
        **{"kind": "labelled_masks", "format": 1, "name": name, "layout": layout},
        **{"classes": list(classes), "void": True, "source": source},
        "parameters": {"train": "train", "test": "val"},
        "counts": {"train": len(train), "test": len(test), "classes": len(classes)},
        "digest": sha256(np.concatenate([train, test]).tobytes()).hexdigest(),
    }
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(about))
    return manifest


def a_run(folder: Path, **card):
    """Return a run's folder whose encoder files are only looked at for their digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.safetensors").write_bytes(b"colours")
    (folder / "encoder.json").write_text(json.dumps({"architecture": {}} | card))
    return folder


def change(manifest: Path, **about):
    """Change keys of a manifest, or of its `parameters`, and leave the images as they are."""
    known = json.loads(manifest.read_text())
    for key, value in about.items():
        known[key] = known[key] | value if isinstance(value, dict) else value
    manifest.write_text(json.dumps(known))
