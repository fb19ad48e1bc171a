"""Detection and instance segmentation: an encoder with a feature pyramid and region heads.

Source: iBOT's fine-tuning on COCO. The encoder's maps become four levels, a feature pyramid network
makes five of one width, a first network proposes regions in them, and heads say of each region its
class, box and mask: torchvision's Mask R-CNN heads, or the published Cascade Mask R-CNN.

Shapes: B images, H and W rows and columns, K classes, N objects of an image, n detections of one.
Boxes are (left, top, right, bottom) in pixels of the images as they are given.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from timewalk.encoders.base import Encoder
from timewalk.encoders.dense.cascade import MOST, OVERLAP, POSITIVE, SAMPLES, SCORE, CascadeHeads
from timewalk.encoders.dense.pyramid import FeaturePyramid
from timewalk.encoders.dense.regions import (
    BOX_CELLS,
    BOX_FEATURES,
    MASK_CELLS,
    BoxPredictor,
    RegionPool,
    box_layers,
    mask_layers,
    proposal_network,
)

Head = Literal["mask_rcnn", "cascade"]
NAMES = {
    "loss_objectness": "proposal_class",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}
"""our names of torchvision's losses"""


class Detector(nn.Module):
    """Images to losses in training mode, to detections in evaluation mode.

    Args:
        encoder: any.
        classes: K.
        head: `cascade` or `mask_rcnn`.
        out_norm: whether a ViT's final norm is applied to each of its maps.
        fpn_channels: of the five levels and of the heads' convolutions.

    Attributes:
        multiple: to multiples of this many pixels images are filled up with zeros, right and
            below, so that the maps of all strides cover the same pixels.
    """

    encoder: Encoder

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        head: Head = "cascade",
        out_norm: bool = True,
        fpn_channels: int = 256,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_norm = out_norm
        self.keys: dict[str, Any] = {
            "classes": classes,
            "head": head,
            "out_norm": out_norm,
            "fpn_channels": fpn_channels,
        }
        self.pyramid = FeaturePyramid(encoder.tap_widths, encoder.tap_strides)
        self.fpn = FeaturePyramidNetwork(
            list(self.pyramid.widths), fpn_channels, extra_blocks=LastLevelMaxPool()
        )
        strides = self.pyramid.strides
        self.proposals = proposal_network(fpn_channels, (*strides, 2 * strides[-1]))
        self.heads: CascadeHeads | MaskRCNNHeads
        build = CascadeHeads if head == "cascade" else MaskRCNNHeads
        self.heads = build(fpn_channels, classes, strides)
        self.multiple = math.lcm(encoder.multiple, *encoder.tap_strides, int(max(strides)))

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data from which :func:`timewalk.encoders.dense.from_spec` builds it again."""
        return {"kind": "detector", "encoder": self.encoder.spec, **self.keys}

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return images as :meth:`forward` takes them: float32, zero around their content.

        Args:
            images: uint8 (B, 3, H, W).
            sizes: (B, 2), rows and columns of each image's content, top left.
        """
        mean, std = (
            torch.tensor(values, device=images.device).view(3, 1, 1)
            for values in (self.encoder.mean, self.encoder.std)
        )
        rows, columns = (torch.arange(n, device=images.device) for n in images.shape[-2:])
        sizes = sizes.to(images.device)
        inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None]
        return (images.float() / 255 - mean) / std * inside

    def forward(
        self, images: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> Any:
        """Return :meth:`losses` in training mode, :meth:`detect` in evaluation mode."""
        if not self.training:
            return self.detect(images, sizes)
        if targets is None:
            raise ValueError("a detector in training mode needs targets")
        return self.losses(images, sizes, targets)

    def losses(
        self, images: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the losses by name, whose sum is learnt from. For training mode.

        Args:
            images: (B, 3, H, W), as :meth:`normalise` returns them.
            sizes: (B, 2), rows and columns of each image's content.
            targets: of each image ``boxes`` (N, 4) float32 of positive area, ``labels`` (N,) int64
                from 1 to K, ``masks`` (N, H, W) uint8 or bool; N may be 0.
        """
        filled, shapes = self._filled(images), _shapes(sizes)
        maps = self._maps(filled)
        proposals, losses = self.proposals(ImageList(filled, shapes), maps, targets)
        named = {NAMES[name]: x for name, x in losses.items()}
        return named | self.heads.losses(_exact(maps), proposals, shapes, targets)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return the detections of each image, best first. For evaluation mode.

        Args:
            images: (B, 3, H, W), as :meth:`normalise` returns them.
            sizes: (B, 2), rows and columns of each image's content.

        Returns:
            of each image ``boxes`` (n, 4), ``scores`` (n,), ``labels`` (n,) from 0, and ``masks``
            (n, 28, 28): probabilities inside the box. At most 100, of scores above 0.05.
        """
        filled, shapes = self._filled(images), _shapes(sizes)
        maps = self._maps(filled)
        proposals, _ = self.proposals(ImageList(filled, shapes), maps)
        found = self.heads.detect(_exact(maps), proposals, shapes)
        return [x | {"labels": x["labels"] - 1} for x in found]

    def _filled(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.pyramid(self.encoder.taps(images, norm=self.out_norm))
        maps: dict[str, Tensor] = self.fpn({str(i): x for i, x in enumerate(levels)})
        return maps


class MaskRCNNHeads(nn.Module):
    """torchvision's heads of a Mask R-CNN, with the layers and thresholds of the cascade's first
    stage; arguments and results as of :class:`timewalk.encoders.dense.cascade.CascadeHeads`."""

    def __init__(self, channels: int, classes: int, strides: tuple[float, ...]) -> None:
        super().__init__()
        self.heads = RoIHeads(
            RegionPool(strides, BOX_CELLS),
            box_layers(channels),
            BoxPredictor(BOX_FEATURES, classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=SAMPLES,
            positive_fraction=POSITIVE,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=SCORE,
            nms_thresh=OVERLAP,
            detections_per_img=MOST,
            mask_roi_pool=RegionPool(strides, MASK_CELLS),
            mask_head=nn.Identity(),
            mask_predictor=mask_layers(channels, classes),
        )

    def losses(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the losses of class, box and mask."""
        _, losses = self.heads(maps, proposals, sizes, targets)
        return {NAMES[name]: x for name, x in losses.items()}

    def detect(
        self, maps: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the detections of each image."""
        found, _ = self.heads(maps, proposals, sizes)
        return [x | {"masks": x["masks"][:, 0].float()} for x in found]


def _exact(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Once for all stages, instead of once for each."""
    return {name: x.float() for name, x in maps.items()}


def _shapes(sizes: Tensor) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in sizes.tolist()]
