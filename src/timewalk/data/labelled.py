"""Labelled images as a torch Dataset, under the usual validation transform.

Short side resized (bicubic), centre crop, RGB; bytes: normalisation by the encoder's mean and
standard deviation happens on the device. EXIF orientation is not applied, as in the reference
(DINO's k-NN, torchvision's ImageFolder).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from timewalk.artefacts import read_manifest
from timewalk.data.prepare.arrays import load_split
from timewalk.data.prepare.base import read_list
from timewalk.errors import UserError


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images of one split: (uint8 (3, crop, crop), label).

    Attributes:
        classes: name of each class.
        labels: int64 (N,).
        name: the set's name.
        split: `train` or `test`.
    """

    def __init__(self, manifest: Path, split: Literal["train", "test"]) -> None:
        """Open a split.

        Args:
            manifest: ``manifest.json`` of the prepare stage.
            split: `train` or `test`.

        Raises:
            UserError: a file is missing or does not agree with the manifest.
        """
        about = read_manifest(manifest, "labelled")
        settings, source = about["parameters"], about["source"]
        self.name, self.split, self.classes = str(about["name"]), split, list(about["classes"])
        self.resize, self.crop = int(settings["resize"]), int(settings["crop"])
        self._images: np.ndarray | list[Path]
        if source["kind"] == "arrays":
            self._images, labels = load_split(manifest.parent / source["path"], split)
            self.labels = torch.from_numpy(labels)
        else:
            numbers, files = read_list(manifest.parent / f"{split}.txt")
            root = manifest.parent / source["root"]
            self._images = [root / file for file in files]
            self.labels = torch.tensor(numbers, dtype=torch.long)
        self._check(manifest, about)

    def _check(self, manifest: Path, about: dict[str, Any]) -> None:
        expected = about["counts"][self.split]
        if len(self) != expected or int(self.labels.max()) >= len(self.classes):
            raise UserError(
                f"{manifest} says {expected} {self.split} images of {len(self.classes)} classes "
                "but its source has changed; run the prepare stage again."
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._open(index)
        pixels = np.asarray(transform(image, self.resize, self.crop))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(self.labels[index])

    def _open(self, index: int) -> Image.Image:
        item = self._images[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
        try:
            with Image.open(item) as image:
                image.load()
                return image
        except (UnidentifiedImageError, OSError) as error:
            reason = str(error).split("<")[0].strip()
            raise UserError(
                f"{item} cannot be read ({reason}); restore it, or run the prepare stage again."
            ) from None


def transform(image: Image.Image, short_side: int, crop: int) -> Image.Image:
    """Return the RGB centre crop of an image whose short side was resized (bicubic)."""
    image = to_rgb(image)
    image = resize(image, [short_side], InterpolationMode.BICUBIC)
    return center_crop(image, [crop])


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB; Pillow alone would clip 16-bit grey values at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
