"""Images with the classes of their pixels, as segmentation evaluations learn from and score them.

What they share: names of the classes, masks and images as squares, in batches, random crops of
both, and the checks of sizes and sets.

Shapes: N images, S side of an image in pixels, M side of a map of classes.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timewalk.data.seeds import generator
from timewalk.data.segmented import Frame, SegmentedSet, read_classes, read_pair, read_square
from timewalk.data.sequences import VOID
from timewalk.data.views import Pair, random_window
from timewalk.data.workers import plain_errors
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.evaluation.segmentation_config import SegmentationConfig

log = logging.getLogger(__name__)

CROP_SCALE: Pair = (0.5, 1.0)
"""share of the image that a random crop covers"""
MASKS_AT_ONCE = 64


def class_names(segmented: SegmentedSet, config: SegmentationConfig) -> tuple[str, ...]:
    """Return the names of the classes to be told apart, by id.

    Raises:
        UserError: ids that mean nothing beyond a video.
    """
    if config.foreground_only:
        return ("background", "foreground")
    if not segmented.classes:
        raise UserError(
            f"the ids of '{segmented.name}' only number the objects of each video, so there are "
            "no classes to learn; set foreground_only: true, or name a set with classes."
        )
    return segmented.classes


def title(
    config: SegmentationConfig, scored: SegmentedSet, train: SegmentedSet | None = None
) -> str:
    """Return the part of a protocol's name that sets, sizes and the encoder's arithmetic make.

    Args:
        config: settings.
        scored: the set that is scored.
        train: the one that is learnt from, if any.
    """
    parts = [scored.title]
    if train is not None:
        own = f"{scored.title.split('-')[0]}-"
        # Two sets of one layout and part: only their names tell them apart.
        same = train.title == scored.title
        parts.append(f"from_{train.name if same else train.title.removeprefix(own)}")
    parts += [f"{config.image_size}px", f"m{config.map_size}"]
    if scored.videos or (train is not None and train.videos):
        parts.append(f"f{config.frames_per_clip or 'all'}")
    if config.foreground_only:
        parts.append("fg")
    if config.precision != type(config).model_fields["precision"].default:
        parts.append(config.precision)
    return "-".join(parts)


def check_side(encoder: Encoder, image_size: int) -> None:
    """Refuse squares that the network cannot read.

    Raises:
        UserError: names the key.
    """
    rest, least = image_size % encoder.multiple, max(encoder.multiple, encoder.stride)
    if rest or image_size < least:
        raise UserError(
            f"image_size is {image_size} but the encoder needs multiples of {encoder.multiple} "
            f"pixels, {least} at least; set it to {max(image_size - rest, least)}."
        )


def read_target(frame: Frame, size: int | None, foreground_only: bool) -> np.ndarray:
    """Return the classes of a frame's pixels, uint8 (M, M), or of the stored size; 255 is void."""
    _, mask, lookup = frame
    ids = read_classes(mask, lookup, size)
    return merged(ids) if foreground_only else ids


def merged(ids: np.ndarray) -> np.ndarray:
    """Return ids with all objects as class 1; void stays void."""
    return np.where(ids == VOID, ids, np.minimum(ids, 1))


class Targets(Dataset[Tensor]):
    """Classes of the pixels of images by number, uint8 (M, M)."""

    def __init__(self, frames: Sequence[Frame], size: int, foreground_only: bool) -> None:
        self.frames, self.size, self.foreground_only = list(frames), size, foreground_only

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Tensor:
        found = read_target(self.frames[index], self.size, self.foreground_only)
        return torch.from_numpy(found.copy())


class SquarePairs(Dataset[tuple[Tensor, Tensor]]):
    """Maps (pass, number) to image and classes as squares, uint8 (3, S, S) and (M, M): the same in
    every pass."""

    def __init__(
        self, frames: Sequence[Frame], image_size: int, map_size: int, foreground_only: bool
    ) -> None:
        self.frames, self.image_size = list(frames), image_size
        self.targets = Targets(frames, map_size, foreground_only)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index = sample[1]
        pixels = torch.from_numpy(read_square(self.frames[index][0], self.image_size))
        return pixels, self.targets[index]


class RandomPairs(Dataset[tuple[Tensor, Tensor]]):
    """Maps (pass, number) to the same random crop of image and mask, flipped half of the time.

    What is drawn depends on seed, pass and number alone, whichever worker does it.

    Args:
        frames: images with masks.
        image_size: S; images are resized bilinearly.
        map_size: M; masks are resized by nearest neighbour.
        foreground_only: all objects are one class.
        seed: of all draws.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        image_size: int,
        map_size: int,
        foreground_only: bool,
        seed: int,
    ) -> None:
        self.frames, self.image_size, self.map_size = list(frames), image_size, map_size
        self.foreground_only, self.seed = foreground_only, seed

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, index = sample
        frame = self.frames[index]
        pixels, ids = read_pair(frame)
        image = Image.fromarray(pixels)
        mask = Image.fromarray(merged(ids) if self.foreground_only else ids)
        rng = generator(self.seed, number, index)
        window = random_window(image.height, image.width, CROP_SCALE, rng)
        flip = float(torch.rand((), generator=rng)) < 0.5
        right, bottom = window.left + window.width, window.top + window.height
        found = []
        for picture, size, how in (
            (image, self.image_size, Image.Resampling.BILINEAR),
            (mask, self.map_size, Image.Resampling.NEAREST),
        ):
            part = picture.crop((window.left, window.top, right, bottom)).resize((size, size), how)
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part
            found.append(torch.from_numpy(np.array(part)))
        return found[0].permute(2, 0, 1).contiguous(), found[1]


def in_batches(
    dataset: Dataset[Any], batches: Iterable[Sequence[Any]], workers: int
) -> Iterator[Any]:
    """Yield what a data set has, in batches of given numbers (or other keys).

    Raises:
        UserError: as the data set does, without the worker's traceback.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable will do
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    with plain_errors():
        yield from loader


def runs_of(start: int, stop: int, size: int) -> list[range]:
    """Return the numbers from ``start`` to ``stop`` in runs of ``size``."""
    return [range(i, min(i + size, stop)) for i in range(start, stop, size)]


def targets_of(
    frames: Sequence[Frame], size: int, foreground_only: bool, workers: int
) -> Iterator[Tensor]:
    """Yield the classes of all pixels, uint8 (n, M, M) for some images at a time."""
    runs = runs_of(0, len(frames), MASKS_AT_ONCE)
    return in_batches(Targets(frames, size, foreground_only), runs, workers)


def class_counts(targets: Iterable[Tensor], classes: int) -> Tensor:
    """Return the pixels of each class, int64 (C,); void does not count."""
    counts = torch.zeros(256, dtype=torch.int64)
    for part in targets:
        counts += torch.bincount(part.flatten().long(), minlength=256)
    return counts[:classes]


def check_classes(
    learnt: Tensor, scored: Tensor, names: Sequence[str], sets: tuple[SegmentedSet, SegmentedSet]
) -> None:
    """Refuse sets of which nothing can be learnt or scored; warn of classes that cannot be learnt.

    Args:
        learnt: pixels (or shares of cells) of each class in training.
        scored: pixels of each class in what is scored.
        names: of the classes.
        sets: the one that is learnt from, and the one that is scored.

    Raises:
        UserError: only void pixels.
    """
    for found, segmented in zip((learnt, scored), sets, strict=True):
        if not bool(found.any()):
            raise UserError(
                f"every pixel of the {segmented.split} split of '{segmented.name}' is void; "
                "correct the masks, or the keys that say which ids are classes."
            )
    absent = [names[i] for i in ((learnt == 0) & (scored > 0)).nonzero().flatten().tolist()]
    if absent:
        log.warning(
            "'%s' is scored on %s, of which '%s' has no pixel to learn from: their IoU is 0",
            sets[1].name,
            ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else ""),
            sets[0].name,
        )
