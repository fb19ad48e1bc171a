"""A segmentation network over whole images: read ahead, cut into windows, decided pixel by pixel.

Source: iBOT's evaluation on ADE20K. Loader workers read and resize; windows of one size pass the
network together, of whichever image they are; what becomes of their logits is in
:mod:`timewalk.evaluation.sliding_window`.

Shapes: n windows of h x w pixels, H and W rows and columns of a stored image.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timewalk.data.segmentation_views import resize_keep
from timewalk.data.segmented import SegmentedSet, read_pair
from timewalk.data.workers import plain_errors
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.sliding_window import Side, cut, decide, make_pass, windows_along

Read = tuple[list[Tensor], Tensor]


@dataclass(frozen=True)
class Scale:
    """What an image is fitted into, its shape kept.

    Attributes:
        sides: most pixels of the longer and of the shorter side.
        least: pixels of the shorter side at least; with it the longer side has no bound.
    """

    sides: tuple[int, int]
    least: int | None = None


@dataclass(frozen=True)
class Windows:
    """What the network sees of an image.

    Attributes:
        scales: sizes of the image.
        crop: side of a window in pixels; None: the whole image.
        stride: pixels from one window to the next.
        mirrored: whether each size is seen mirrored too.
        at_once: windows that the network sees at a time.
    """

    scales: tuple[Scale, ...]
    crop: int | None
    stride: int
    mirrored: bool
    at_once: int


@dataclass(frozen=True)
class View:
    """What the network sees of an image in one pass.

    Attributes:
        windows: uint8 (n, 3, h, w).
        sides: where they lie along rows and columns.
        flipped: whether the image is mirrored.
    """

    windows: Tensor
    sides: tuple[Side, Side]
    flipped: bool


@dataclass(frozen=True)
class Item:
    """An image: its views, and its classes, uint8 (H, W)."""

    views: list[View]
    truth: Tensor


class SizedImages(Dataset[Read]):
    """Images of a set with their masks, by number.

    Each is the image at some sizes, uint8 (3, h, w), and its classes, uint8 (H, W).
    """

    def __init__(self, scored: SegmentedSet, scales: Sequence[Scale]) -> None:
        self.frames, self.scales = scored.frames, list(scales)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Read:
        pixels, truth = read_pair(self.frames[index])
        sizes = [resize_keep(pixels, scale.sides, scale.least) for scale in self.scales]
        return sizes, torch.from_numpy(np.array(truth))


def read_ahead(images: SizedImages, numbers: range, workers: int) -> Iterator[Read]:
    """Yield some images in order, read by that many processes.

    Raises:
        UserError: as the images do, without the worker's traceback.
    """
    loader = DataLoader(
        images,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    with plain_errors():
        yield from loader


def items(images: Iterable[Read], windows: Windows) -> Iterator[Item]:
    """Yield images cut into windows."""
    for sizes, truth in images:
        views = []
        for image in sizes:
            rows, columns = (
                windows_along(length, windows.crop, windows.stride) for length in image.shape[1:]
            )
            for flipped in (False, True) if windows.mirrored else (False,):
                seen = image.flip(2) if flipped else image
                views.append(View(cut(seen, rows, columns), (rows, columns), flipped))
        yield Item(views, truth)


def in_parts(images: Iterable[Item], at_once: int) -> Iterator[list[Item]]:
    """Yield images together as soon as they have so many windows."""
    part: list[Item] = []
    waiting = 0
    for item in images:
        part.append(item)
        waiting += sum(len(view.windows) for view in item.views)
        if waiting >= at_once:
            yield part
            part, waiting = [], 0
    if part:
        yield part


def segment(
    part: Sequence[Item], extractor: Extractor, stride: float, at_once: int
) -> Iterator[Tensor]:
    """Yield the predicted classes of images, uint8 (H, W), on the network's device.

    Args:
        part: the images.
        extractor: bytes of windows (n, 3, h, w) to logits (n, K, cells, cells).
        stride: pixels of a window to one of these cells.
        at_once: windows that the network sees at a time.
    """
    logits = _logits([view.windows for item in part for view in item.views], extractor, at_once)
    for item in part:
        height, width = item.truth.shape
        passes = []
        for view in item.views:
            cells = next(logits)
            rows, columns = (math.ceil(side * stride) for side in cells.shape[2:])
            passes.append(
                make_pass(cells, view.sides, (rows, columns), (height, width), view.flipped)
            )
        yield decide(passes)


def _logits(windows: Sequence[Tensor], extractor: Extractor, at_once: int) -> Iterator[Tensor]:
    """Return the logits of several batches of windows, those of one size computed together."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for number, batch in enumerate(windows):
        groups[batch.shape[1:]].append(number)
    found: dict[int, Tensor] = {}
    for numbers in groups.values():
        together = torch.cat([windows[number] for number in numbers])
        logits = torch.cat([extractor(batch) for batch in together.split(at_once)])
        parts = logits.split([len(windows[number]) for number in numbers])
        found |= dict(zip(numbers, parts, strict=True))
    return (found[number] for number in range(len(windows)))
