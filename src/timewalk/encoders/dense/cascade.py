"""The heads of a Cascade Mask R-CNN: three stages, each of which starts from the last one's boxes.

Source: Cascade R-CNN, with the settings of iBOT's fine-tuning on COCO. A stage asks for more
overlap than the one before, and predicts class, box and mask of its regions; the next stage gets
the boxes of the regions' classes. Tests average the stages' class scores before the softmax and
their masks after the sigmoid; boxes are those of the last stage.

Shapes: B images, R regions, K classes (labels from 1, 0 is background), N objects of an image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.ops import (
    batched_nms,
    box_iou,
    clip_boxes_to_image,
    generalized_box_iou_loss,
    remove_small_boxes,
    roi_align,
)

from timewalk.encoders.dense.regions import (
    BOX_CELLS,
    BOX_FEATURES,
    MASK_CELLS,
    BoxPredictor,
    RegionPool,
    box_layers,
    mask_layers,
)

BOX_WEIGHT = 10.0
"""factor on the GIoU loss"""
SAMPLES, POSITIVE = 512, 0.25
"""regions of an image that a stage learns from, and the largest share of objects among them"""
SCORE, OVERLAP, MOST = 0.05, 0.5, 100
"""a detection's score is higher than the first, two of a class overlap by no more than the second,
and an image has at most the third"""

Maps = dict[str, Tensor]
Target = dict[str, Tensor]


class StageShape(NamedTuple):
    """Numbers of one stage.

    Attributes:
        overlap: IoU with an object from which a region counts as that object.
        weight: factor on the stage's losses.
        deviations: of a box's shifts and of the logarithms of its sides, by which they are divided.
    """

    overlap: float
    weight: float
    deviations: tuple[float, float, float, float]


STAGES = (
    StageShape(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),
    StageShape(0.6, 0.5, (0.05, 0.05, 0.1, 0.1)),
    StageShape(0.7, 0.25, (0.033, 0.033, 0.067, 0.067)),
)


@dataclass(frozen=True)
class Samples:
    """The regions of one image that a stage learns from.

    Attributes:
        boxes: (R, 4).
        labels: (R,), 0 background.
        objects: (R,), the object of each region; of background regions any.
        given: (R,), whether a region is an object's own box.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    given: Tensor

    @property
    def positive(self) -> Tensor:
        """Return which regions are objects, (R,)."""
        return self.labels > 0


class Stage(nn.Module):
    """One stage's layers.

    Args:
        shape: its numbers.
        channels: of the maps.
        classes: K.
    """

    def __init__(self, shape: StageShape, channels: int, classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.box_head = box_layers(channels)
        self.box_predictor = BoxPredictor(BOX_FEATURES, classes)
        self.mask_head = mask_layers(channels, classes)
        self.coder = BoxCoder(tuple(1 / deviation for deviation in shape.deviations))
        self.sampler = BalancedPositiveNegativeSampler(SAMPLES, POSITIVE)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (R, 1 + K) and coded boxes of each class (R, 1 + K, 4), in float32."""
        scores, codes = self.box_predictor(self.box_head(regions))
        return scores, codes.unflatten(1, (-1, 4))

    @torch.no_grad()
    def sample(self, proposals: Tensor, target: Target) -> Samples:
        """Draw the regions of one image that are learnt from, of proposals and objects."""
        candidates = torch.cat([target["boxes"], proposals])
        objects = len(target["boxes"])
        overlap = candidates.new_zeros(len(candidates))
        matched = torch.zeros(len(candidates), dtype=torch.long, device=candidates.device)
        labels = torch.zeros_like(matched)
        if objects:
            overlap, matched = box_iou(target["boxes"], candidates).max(dim=0)
            labels = torch.where(overlap >= self.shape.overlap, target["labels"][matched], 0)
        positive, negative = self.sampler([labels])
        kept = torch.where(positive[0] | negative[0])[0]
        return Samples(candidates[kept], labels[kept], matched[kept], kept < objects)

    def decode(self, codes: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes (R, ..., 4) that codes (R, ..., 4) make of regions (R, 4)."""
        decoded: Tensor = self.coder.decode_single(codes.flatten(1), boxes)
        return decoded.view(codes.shape)


class CascadeHeads(nn.Module):
    """Proposals to losses, or to detections.

    Args:
        channels: of the maps.
        classes: K.
        strides: pixels from cell to cell of the four finest maps.
    """

    def __init__(self, channels: int, classes: int, strides: tuple[float, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(shape, channels, classes) for shape in STAGES)
        self.box_pool = RegionPool(strides, BOX_CELLS)
        self.mask_pool = RegionPool(strides, MASK_CELLS)

    def losses(
        self,
        maps: Maps,
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[Target],
    ) -> dict[str, Tensor]:
        """Return the losses of all stages, each already times its weight.

        Args:
            maps: of a pyramid, finest first.
            proposals: (R_i, 4) of each image.
            sizes: rows and columns of each image without what it is padded with.
            targets: of each image ``boxes`` (N, 4), ``labels`` (N,) and ``masks`` (N, H, W).
        """
        losses: dict[str, Tensor] = {}
        for number, stage in enumerate(self._stages(), start=1):
            samples = [stage.sample(*pair) for pair in zip(proposals, targets, strict=True)]
            boxes = [x.boxes for x in samples]
            scores, codes = stage(self.box_pool(maps, boxes))
            found = {
                "class": _class_loss(scores, samples),
                "box": BOX_WEIGHT * _box_loss(stage, codes, samples, targets),
                "mask": self._mask_loss(stage, maps, samples, targets),
            }
            weight = stage.shape.weight
            losses |= {f"stage{number}_{name}": weight * x for name, x in found.items()}
            labels = torch.cat([x.labels for x in samples])
            refined = refine(stage, scores, codes, boxes, sizes, labels)
            proposals = [x[~s.given] for x, s in zip(refined, samples, strict=True)]
        return losses

    def detect(
        self, maps: Maps, proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return of each image ``boxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) from 1 and
        ``masks`` (n, 28, 28), best first."""
        each = []
        boxes = proposals
        for stage in self._stages():
            proposals = boxes
            scores, codes = stage(self.box_pool(maps, proposals))
            each.append(scores)
            boxes = refine(stage, scores, codes, proposals, sizes)
        probabilities = torch.stack(each).mean(dim=0).softmax(dim=1)
        decoded = stage.decode(codes, torch.cat(proposals))
        counts = [len(x) for x in proposals]
        found = [
            select(*item)
            for item in zip(decoded.split(counts), probabilities.split(counts), sizes, strict=True)
        ]
        masks = self._masks(maps, found)
        return [x | {"masks": mask} for x, mask in zip(found, masks, strict=True)]

    def _stages(self) -> list[Stage]:
        return list(self.stages)  # type: ignore[arg-type]

    def _mask_loss(
        self, stage: Stage, maps: Maps, samples: list[Samples], targets: list[Target]
    ) -> Tensor:
        boxes = [x.boxes[x.positive] for x in samples]
        labels = torch.cat([x.labels[x.positive] for x in samples])
        logits = of_class(stage.mask_head(self.mask_pool(maps, boxes)).float(), labels)
        truth = torch.cat(
            [
                mask_targets(target["masks"], x.objects[x.positive], x.boxes[x.positive])
                for x, target in zip(samples, targets, strict=True)
            ]
        )
        total = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        return total / max(1, truth.numel())

    def _masks(self, maps: Maps, found: list[dict[str, Tensor]]) -> list[Tensor]:
        regions = self.mask_pool(maps, [x["boxes"] for x in found])
        labels = torch.cat([x["labels"] for x in found])
        each = [of_class(s.mask_head(regions).float(), labels).sigmoid() for s in self._stages()]
        return list(torch.stack(each).mean(dim=0).split([len(x["boxes"]) for x in found]))


def _class_loss(scores: Tensor, samples: list[Samples]) -> Tensor:
    labels = torch.cat([x.labels for x in samples])
    return F.cross_entropy(scores, labels, reduction="sum") / max(1, len(labels))


def _box_loss(stage: Stage, codes: Tensor, samples: list[Samples], targets: list[Target]) -> Tensor:
    """GIoU loss of the objects' decoded boxes, by the number of all regions."""
    labels = torch.cat([x.labels for x in samples])
    positive = torch.cat([x.positive for x in samples])
    boxes = torch.cat([x.boxes for x in samples])
    truth = torch.cat(
        [target["boxes"][x.objects[x.positive]] for x, target in zip(samples, targets, strict=True)]
    )
    decoded = stage.decode(of_class(codes[positive], labels[positive]), boxes[positive])
    total: Tensor = generalized_box_iou_loss(decoded, truth, reduction="sum")
    return total / max(1, len(labels))


@torch.no_grad()
def refine(
    stage: Stage,
    scores: Tensor,
    codes: Tensor,
    boxes: list[Tensor],
    sizes: list[tuple[int, int]],
    labels: Tensor | None = None,
) -> list[Tensor]:
    """Return the regions' boxes as a stage corrects them, clipped to the images.

    Args:
        stage: the stage.
        scores: (R, 1 + K).
        codes: (R, 1 + K, 4).
        boxes: (R_i, 4) of each image.
        sizes: rows and columns of each image.
        labels: (R,), whose boxes are taken; None, and of background: those of the likeliest class.
    """
    classes = scores[:, 1:].argmax(dim=1) + 1
    if labels is not None:
        classes = torch.where(labels > 0, labels, classes)
    decoded = stage.decode(of_class(codes, classes), torch.cat(boxes))
    parts = decoded.split([len(x) for x in boxes])
    return [clip_boxes_to_image(x, size) for x, size in zip(parts, sizes, strict=True)]


def of_class(x: Tensor, classes: Tensor) -> Tensor:
    """Return of x (R, 1 + K, ...) each row's own class, (R, ...)."""
    return x[torch.arange(len(x), device=x.device), classes]


def mask_targets(masks: Tensor, objects: Tensor, boxes: Tensor) -> Tensor:
    """Return the objects' masks inside regions, 0 or 1, (R, 28, 28).

    Args:
        masks: (N, H, W) of one image.
        objects: (R,), which mask a region has.
        boxes: (R, 4).
    """
    cells = 2 * MASK_CELLS
    if len(objects) == 0:
        return boxes.new_zeros(0, cells, cells)
    regions = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
    cut: Tensor = roi_align(masks[:, None].to(boxes), regions, cells, 1.0, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)


def select(decoded: Tensor, probabilities: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the detections of one image: good enough, apart from each other, the best ones.

    Args:
        decoded: (R, 1 + K, 4).
        probabilities: (R, 1 + K).
        size: rows and columns of the image.
    """
    regions, classes = torch.where(probabilities[:, 1:] > SCORE)
    labels = classes + 1
    boxes = clip_boxes_to_image(decoded[regions, labels], size)
    scores = probabilities[regions, labels]
    large = remove_small_boxes(boxes, 1e-2)
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    kept = batched_nms(boxes, scores, labels, OVERLAP)[:MOST]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
