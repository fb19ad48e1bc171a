"""Labelled images as a torch Dataset, under the usual validation transform.

Short side resized (bicubic), centre crop, RGB; bytes: normalisation by the encoder's mean and
standard deviation happens on the device. EXIF orientation is not applied, as in the reference
(DINO's k-NN, torchvision's ImageFolder). For the linear probe's training the same images under
random resized crops.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from timewalk.artefacts import read_manifest
from timewalk.data.images import to_rgb
from timewalk.data.prepare.arrays import load_split
from timewalk.data.prepare.base import read_list
from timewalk.data.seeds import generator
from timewalk.data.views import random_window
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
        image = self.open(index)
        pixels = np.asarray(transform(image, self.resize, self.crop))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(self.labels[index])

    def open(self, index: int) -> Image.Image:
        """Return an image as it is stored; an unreadable one is a :class:`UserError`."""
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


class RandomCrops(Dataset[tuple[Tensor, int]]):
    """Maps (epoch, number) to (uint8 (3, crop, crop), label): a random resized crop, maybe flipped.

    What is drawn depends on seed, epoch and number alone, whichever worker does it.

    Args:
        images: the split, whose ``crop`` is the side of the result.
        seed: of all draws.
        scale: range of the crop's share of the image.
    """

    def __init__(
        self, images: LabelledImages, seed: int, scale: tuple[float, float] = (0.08, 1.0)
    ) -> None:
        self.images, self.seed, self.scale = images, seed, scale

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = sample
        rng = generator(self.seed, epoch, index)
        image = to_rgb(self.images.open(index))
        window = random_window(image.height, image.width, self.scale, rng)
        right, bottom = window.left + window.width, window.top + window.height
        # Cut first: resizing a box of the whole image would mix in pixels from outside it.
        image = image.crop((window.left, window.top, right, bottom))
        image = image.resize((self.images.crop, self.images.crop), Image.Resampling.BILINEAR)
        if float(torch.rand((), generator=rng)) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
        return pixels, int(self.images.labels[index])


def transform(image: Image.Image, short_side: int, crop: int) -> Image.Image:
    """Return the RGB centre crop of an image whose short side was resized (bicubic).

    Pixel for pixel torchvision's ``Resize`` and ``CenterCrop``, whose import takes longer than
    many an evaluation.
    """
    image = to_rgb(image)
    short = min(image.size)
    if short != short_side:
        # The rounding down of the long side is torchvision's.
        width, height = (int(short_side * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (_margin(side, crop) for side in image.size)
    return image.crop((left, top, left + crop, top + crop))


def _margin(side: int, crop: int) -> int:
    """Return where a centre crop begins; of a smaller image it goes beyond the border, in black."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
