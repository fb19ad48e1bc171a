"""What a detector finds in the images of a set, kept image by image.

Source: iBOT's evaluation on COCO. Images are resized to fit a short and a long side, and filled up
with zeros below and at the right. The images of a batch have one size once they are filled up, so
that no image's result depends on the others beside it.

Shapes: B images of a batch, h and w rows and columns of them, N detections of an image.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timewalk.data.detection_views import Sizes, collate_images, resized, whole_image
from timewalk.data.objects import LabelledObjects
from timewalk.data.workers import plain_errors
from timewalk.errors import UserError
from timewalk.evaluation.embed import Precision
from timewalk.evaluation.mask_runs import mask_runs

DECIMALS, SCORE_DECIMALS = 3, 6
"""of a box's pixels and of scores, as written and as scored"""

Size = tuple[int, int]
"""height and width in pixels"""
Batch = tuple[list[int], Tensor, Tensor]
"""numbers of images, uint8 (B, 3, h, w), and int64 (B, 2) the rows and columns that are theirs"""


@dataclass(frozen=True)
class Found:
    """Detections of an image, best first.

    Attributes:
        boxes: N times x, y, width, height in pixels of the stored image.
        scores: N.
        labels: N classes from 0.
        masks: N texts of runs.
    """

    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]
    masks: list[str]


class WholeImages(Dataset[tuple[int, Tensor]]):
    """Images of a set at the size of the test: number and uint8 (3, h, w)."""

    def __init__(self, objects: LabelledObjects, sizes: Sizes) -> None:
        self.objects, self.sizes = objects, sizes

    def __getitem__(self, number: int) -> tuple[int, Tensor]:
        return number, whole_image(self.objects[number], self.sizes)


def batches(
    stored: Sequence[Size], numbers: Sequence[int], sizes: Sizes, multiple: int, most: int
) -> list[list[int]]:
    """Return images in batches of one size once filled up, the largest first: where memory is too
    small, that shows at once.

    Args:
        stored: sizes of all images.
        numbers: of those that are wanted.
        sizes: of the test.
        multiple: of which both sides are, once they are filled up.
        most: images of a batch.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in numbers:
        size = resized(stored[number], sizes.test_short_side, sizes.long_side)
        alike[tuple(side + -side % multiple for side in size)].append(number)
    order = sorted(alike, key=lambda size: (-size[0] * size[1], size))
    return [alike[size][i : i + most] for size in order for i in range(0, len(alike[size]), most)]


def loaded(
    images: WholeImages, parts: list[list[int]], multiple: int, workers: int
) -> Iterator[Batch]:
    """Yield batches, filled up to multiples of some pixels, read ahead by so many workers.

    Raises:
        UserError: an image that cannot be read.
    """

    def collated(samples: list[tuple[int, Tensor]]) -> Batch:
        numbers, pixels = zip(*samples, strict=True)
        return list(numbers), *collate_images(pixels, multiple)

    loader = DataLoader(
        images,
        batch_sampler=parts,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        collate_fn=collated,
        pin_memory=torch.cuda.is_available(),
    )
    with plain_errors():
        yield from loader


class Finder:
    """A detector on its device.

    Args:
        network: a :class:`timewalk.encoders.dense.detector.Detector` in evaluation mode.
        device: where it is.
        most: detections of an image.
        precision: arithmetic of the network.
    """

    def __init__(self, network: Any, device: torch.device, most: int, precision: Precision) -> None:
        self.network, self.device, self.most, self.precision = network, device, most, precision

    @torch.no_grad()
    def __call__(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return what the network finds in each image of a batch, in pixels of the batch.

        Args:
            images: uint8 (B, 3, h, w).
            sizes: (B, 2).
        """
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        pixels = self.network.normalise(images.to(self.device, non_blocking=True), sizes)
        with exact, torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
            found: list[dict[str, Tensor]] = self.network.detect(pixels, sizes)
        return [{key: x[: self.most] for key, x in one.items()} for one in found]


def as_stored(found: dict[str, Tensor], resized: Size, stored: Size, path: Path) -> Found:
    """Return detections in pixels of the stored image, cut to it.

    Args:
        found: what the network finds in the resized image.
        resized: rows and columns of that image.
        stored: of the stored one.
        path: of the image, for the message.

    Raises:
        UserError: boxes, scores or masks are not finite.
    """
    boxes, scores, masks = (found[key].double() for key in ("boxes", "scores", "masks"))
    if not all(bool(x.isfinite().all()) for x in (boxes, scores, masks)):
        raise UserError(
            f"the network finds boxes, scores or masks in {path} that are not finite; fine-tune it "
            "again with a lower learning rate."
        )
    rows, columns = stored[0] / resized[0], stored[1] / resized[1]
    boxes = boxes * boxes.new_tensor([columns, rows, columns, rows])
    high = boxes.new_tensor([stored[1], stored[0], stored[1], stored[0]])
    boxes = torch.minimum(boxes.clamp(min=0), high)
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    return Found(
        boxes=np.round(corners.cpu().numpy(), DECIMALS).tolist(),
        scores=np.round(scores.cpu().numpy(), SCORE_DECIMALS).tolist(),
        labels=found["labels"].tolist(),
        masks=mask_runs(masks, boxes, stored),
    )


def find_all(
    finder: Finder,
    objects: LabelledObjects,
    sizes: Sizes,
    batch_size: int,
    workers: int,
    kept: Path,
) -> list[Found]:
    """Return what is found in every image of a set, going on where an interrupted job stopped.

    Args:
        finder: the network.
        objects: the set.
        sizes: of the test.
        batch_size: images at a time.
        workers: processes that read images.
        kept: file of what is found already; those beside it are removed.
    """
    known = read_kept(kept)
    stored = [(int(height), int(width)) for height, width in objects.index.sizes]
    left = [number for number in range(len(objects)) if number not in known]
    multiple = finder.network.multiple
    parts = batches(stored, left, sizes, multiple, batch_size)
    bar = tqdm(
        total=len(objects), initial=len(known), unit="image", disable=not sys.stderr.isatty()
    )
    with open(kept, "a", encoding="utf-8") as file, bar:
        for part, pixels, own in loaded(WholeImages(objects, sizes), parts, multiple, workers):
            for number, one, size in zip(part, finder(pixels, own), own.tolist(), strict=True):
                path = objects[number].path
                known[number] = as_stored(one, (size[0], size[1]), stored[number], path)
                file.write(json.dumps({"image": number, **asdict(known[number])}) + "\n")
            file.flush()
            bar.update(len(part))
    return [known[number] for number in range(len(objects))]


def read_kept(kept: Path) -> dict[int, Found]:
    """Return what an interrupted job found, by number of the image; a line that it did not finish
    is cut off, and what lies beside the file is of other settings and is removed."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    for stale in set(kept.parent.iterdir()) - {kept}:
        stale.unlink()
    if not kept.is_file():
        return {}
    whole = kept.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    with open(kept, "rb+") as file:
        file.truncate(len(whole))
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line.pop("image"): Found(**line) for line in lines}
