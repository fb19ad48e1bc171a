"""Small encoders, and images whose colour says their class."""

import numpy as np
import pytest
from PIL import Image

from timewalk.config import EncoderConfig, FolderLabels
from timewalk.data.prepare import prepare
from timewalk.encoders import build_encoder, save_encoder
from timewalk.evaluation import over_videos

ENCODERS = {
    "vit": EncoderConfig(name="vit_tiny", patch_size=8, image_size=16, depth=3, width=24, heads=3),
    "resnet": EncoderConfig(name="resnet18"),
}
COLOURS = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (220, 220, 10), (10, 220, 220), (9, 9, 9)]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """Return a function that gives the folder of a run: `vit` or `resnet`."""
    folder = tmp_path_factory.mktemp("runs")

    def find(name):
        if not (folder / name).exists():
            save_encoder(build_encoder(ENCODERS[name], 0), folder / name, {})
        return folder / name

    return find


def write_images(root, classes, train=6, test=3):
    """Write `<root>/<train|val>/<class>/*.png`: noise around one colour a class, sizes differ."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for label, colour in enumerate(COLOURS[:classes]):
            folder = root / split / f"n{label:04d}"
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-9, 10, (20 + number, 24, 3))
                pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="session")
def set_of(tmp_path_factory):
    """Return a function that gives the manifest of a set of so many classes."""
    folder = tmp_path_factory.mktemp("sets")

    def find(classes):
        manifest = folder / f"colours{classes}" / "manifest.json"
        if not manifest.exists():
            root = folder / f"images{classes}"
            write_images(root, classes)
            config = FolderLabels(kind="folder", root=str(root), resize=18, crop=16)
            prepare("colours", config, manifest)
        return manifest

    return find


@pytest.fixture
def seen_by(monkeypatch):
    """Return a function that puts an encoder in the place of the run's, for label propagation."""

    def put(encoder):
        monkeypatch.setattr(over_videos, "load_encoder", lambda run: encoder)
        return encoder

    return put
