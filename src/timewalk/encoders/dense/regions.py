"""Regions of an image: anchors, their proposals, and what is read from the maps inside a region.

Source: iBOT's fine-tuning on COCO. Parts are torchvision's; here is what is otherwise there:
anchors from the maps' own strides, RoIAlign whose samples lie at pixels' centres, and scores and
boxes in float32 whatever the precision around them. Boxes are (left, top, right, bottom) in pixels
of the image.

Shapes: B images, R regions, K classes, C channels, h and w rows and columns of a map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

ANCHOR_SIDES = (32, 64, 128, 256, 512)
"""root of an anchor's area, level by level, in pixels"""
RATIOS = (0.5, 1.0, 2.0)
"""an anchor's height by its width"""
FINEST = 56
"""from twice this root of its area, in pixels, a region is read from the second level; from four
times it, from the third, and so on"""
BOX_CELLS, MASK_CELLS = 7, 14
"""side of the map that is read from a region for its box, and for its mask; masks are predicted
with twice the latter"""
BOX_FEATURES = 1024


class Anchors(nn.Module):
    """The anchors of all levels, where torchvision's proposals ask for them.

    Args:
        strides: pixels from cell to cell, level by level.
    """

    def __init__(self, strides: Sequence[float]) -> None:
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """Return the same anchors for each image, (A, 4) in float32."""
        levels = [
            level_anchors(side, stride, x.shape[-2:], x.device)
            for side, stride, x in zip(ANCHOR_SIDES, self.strides, maps, strict=True)
        ]
        return [torch.cat(levels)] * len(images.tensors)


def level_anchors(side: float, stride: float, grid: Sequence[int], device: torch.device) -> Tensor:
    """Return the anchors of one level, (h w ratios, 4): by rows, then columns, then ratios."""
    roots = torch.tensor(RATIOS, device=device).sqrt()
    half_w, half_h = side / roots / 2, side * roots / 2
    around = torch.stack([-half_w, -half_h, half_w, half_h], dim=1)
    y, x = (torch.arange(n, device=device) * stride for n in grid)
    y, x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1)
    return (centres[:, :, None] + around).reshape(-1, 4)


class ProposalHead(RPNHead):
    """torchvision's, whose scores and boxes are float32 under autocast too."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return of each level the scores (B, ratios, h, w) and boxes (B, 4 ratios, h, w)."""
        scores, boxes = super().forward(maps)
        return [x.float() for x in scores], [x.float() for x in boxes]


def proposal_network(channels: int, strides: Sequence[float]) -> RegionProposalNetwork:
    """Return the network that proposes regions, with iBOT's numbers.

    An object's best anchor counts as the object however little they overlap, as in torchvision.
    """
    return RegionProposalNetwork(
        Anchors(strides),
        ProposalHead(channels, len(RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 2000, "testing": 1000},
        nms_thresh=0.7,
    )


class RegionPool(nn.Module):
    """RoIAlign in float32 from the level that suits a region's size.

    Args:
        strides: pixels from cell to cell of the levels that regions are read from, finest first.
        cells: side of what is read.
    """

    def __init__(self, strides: Sequence[float], cells: int) -> None:
        super().__init__()
        self.strides, self.cells = tuple(strides), cells

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: object = None) -> Tensor:
        """Return (R, C, cells, cells), the regions of all images in order.

        Args:
            maps: the levels in float32, finest first; those beyond ``strides`` are not read.
            boxes: (R_i, 4) of each image.
            sizes: not read; torchvision's heads give it.
        """
        image = torch.cat([torch.full_like(x[:, :1], i) for i, x in enumerate(boxes)])
        flat = torch.cat(boxes)
        regions = torch.cat([image, flat], dim=1)
        side = ((flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])).sqrt()
        level = (side / FINEST + 1e-6).log2().floor().clamp(0, len(self.strides) - 1)
        channels = next(iter(maps.values())).shape[1]
        result = flat.new_zeros(len(flat), channels, self.cells, self.cells)
        with torch.autocast(flat.device.type, enabled=False):
            for number, (stride, x) in enumerate(zip(self.strides, maps.values(), strict=False)):
                here = torch.where(level == number)[0]
                result[here] = roi_align(x, regions[here], self.cells, 1 / stride, aligned=True)
        return result


class BoxPredictor(FastRCNNPredictor):
    """Scores of background and classes (R, 1 + K), and each class's box (R, 4 (1 + K))."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes + 1)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in float32."""
        scores, boxes = super().forward(x)
        return scores.float(), boxes.float()


def box_layers(channels: int) -> nn.Module:
    """Return four convolutions with batch normalisation and one fully connected layer."""
    return FastRCNNConvFCHead(
        (channels, BOX_CELLS, BOX_CELLS),
        [channels] * 4,
        [BOX_FEATURES],
        norm_layer=nn.BatchNorm2d,
    )


def mask_layers(channels: int, classes: int) -> nn.Module:
    """Return four convolutions, a doubling and the mask of background and each class as logits,
    (R, 1 + K, 28, 28); the background's means nothing."""
    return nn.Sequential(
        MaskRCNNHeads(channels, (channels,) * 4, 1),
        MaskRCNNPredictor(channels, channels, classes + 1),
    )
