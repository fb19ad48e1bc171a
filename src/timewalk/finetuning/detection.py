"""Detection and instance segmentation: an encoder learns to find, name and outline objects.

Source: iBOT's fine-tuning on COCO, to which DoRA refers. The published protocol is a Cascade Mask
R-CNN over a pyramid of the encoder's maps, all of it fine-tuned for 12 epochs ("1x"); torchvision's
Mask R-CNN over the same pyramid is a protocol of its own. The sum of all losses of
:class:`timewalk.encoders.dense.detector.Detector` is learnt from; each is a mean over the regions
of the images that are computed together, so a micro-batch weighs as much as any other. A ViT's
positions stay on their own grid and are interpolated to each image; the original brings them to
800x1008 pixels before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from timewalk.config import Positive
from timewalk.data.detection_views import Sizes, collate, training_sample, unpacked_masks
from timewalk.data.objects import LabelledObjects, ObjectImage
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.finetuning.base import (
    FinetuneTraining,
    Finetuning,
    FinetuningConfig,
    Source,
    freeze_unread,
    marks,
)
from timewalk.methods.base import Losses, Step

if TYPE_CHECKING:
    from timewalk.encoders.dense.detector import Detector

EPOCHS = 12
"""of the schedule "1x" """
MILESTONES = {12: (8, 11), 36: (27, 33)}
"""epochs of the published schedules' milestones, by their length: "1x", "3x" """
PUBLISHED = Sizes()
NAMES = {"cascade": "cascade", "mask_rcnn": "maskrcnn"}
"""of the heads, in a protocol's name"""
MARKS = {
    "training.max_steps": "steps",
    "training.batch_size": "b",
    "training.learning_rate": "lr",
    "training.weight_decay": "wd",
    "training.weight_decay_end": "wdend",
    "training.precision": "",
    "layer_decay": "ld",
    "short_sides": "sides",
    "compat": "",
}
"""what stands before a changed key's value in a protocol's name"""


class DetectionTraining(FinetuneTraining):
    """The training loop, with the published command line as its default."""

    epochs: Positive = EPOCHS
    """passes over all images; unless given, 12 times `schedule_scale`"""
    batch_size: Positive = 32
    """images in one optimiser step, over all processes"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """peak learning rate, of the layers nearest to the losses"""
    schedule: Literal["cosine", "step", "exponential", "linear", "constant"] = "step"
    """how the learning rate falls from its peak: `step`: to `gamma` of it at each milestone"""
    milestones: list[Positive] = list(MILESTONES[EPOCHS])
    """epochs after which the learning rate is multiplied by `gamma`; unless given, 8 and 11
    twelfths of `epochs`, rounded down, but 27 and 33 of 36, as published"""
    warmup_steps: Annotated[int, Field(ge=0)] | None = 500
    """optimiser steps of the warm-up, instead of `warmup_epochs`; null: those epochs"""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = 0.001
    """share of the learning rate with which the warm-up begins"""


class DetectionConfig(FinetuningConfig):
    """Keys of a detection's fine-tuning."""

    head: Literal["cascade", "mask_rcnn"] = "cascade"
    """`cascade`: the published Cascade Mask R-CNN; `mask_rcnn`: torchvision's heads of a Mask
    R-CNN, with less to compute"""
    schedule_scale: Annotated[float, Field(gt=0)] = 1.0
    """length of the schedule as a factor on 12 epochs, which `training.epochs` overrides: 3 is the
    published "3x", 36 epochs"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """factor on the learning rate from one of the encoder's layers to the one before it; null:
    none. Published: 0.8 for ViT-S, 0.75 for ViT-B"""
    out_norm: bool = True
    """apply a ViT's final norm to each of the maps that the pyramid is made of"""
    channels: Positive = 256
    """channels of the pyramid's levels and of the heads' convolutions"""
    short_sides: Annotated[list[Positive], Field(min_length=1)] = list(PUBLISHED.short_sides)
    """pixels; an image is resized to one of them, drawn for each, by its shorter side"""
    long_side: Positive = PUBLISHED.long_side
    """pixels; most that its longer side comes to"""
    crop: bool = True
    """crop every other image before that"""
    crop_short_sides: Annotated[list[Positive], Field(min_length=1)] = list(
        PUBLISHED.crop_short_sides
    )
    """pixels; shorter side, one drawn for each, of an image from which a crop is taken"""
    crop_sides: tuple[Positive, Positive] = PUBLISHED.crop
    """pixels; least and greatest side of a crop, each side drawn by itself"""
    training: DetectionTraining = DetectionTraining()
    """the training loop"""

    @model_validator(mode="after")
    def _scaled(self) -> "DetectionConfig":
        """Fill in the schedule that `schedule_scale` names where `training` names none."""
        given = self.training.model_fields_set
        epochs = self.training.epochs if "epochs" in given else self.scaled_epochs
        schedule = {"epochs": epochs, "milestones": milestones_of(epochs)}
        missing = {key: value for key, value in schedule.items() if key not in given}
        # Frozen from here on: the copy is what a user would have written out.
        object.__setattr__(self, "training", self.training.model_copy(update=missing))
        return self

    @model_validator(mode="after")
    def _possible_crops(self) -> "DetectionConfig":
        low, high = self.crop_sides
        if low > high:
            raise ValueError(
                f"has `crop_sides` from {low} to {high} pixels; give the smaller one first"
            )
        return self

    @property
    def scaled_epochs(self) -> int:
        """Length of the schedule that `schedule_scale` names."""
        return max(1, round(EPOCHS * self.schedule_scale))

    @property
    def sizes(self) -> Sizes:
        """Sizes of the images that are learnt from."""
        sides = tuple(self.short_sides)
        if not self.crop:
            # The largest crop there is: the whole image, resized twice to the same end.
            whole = (self.long_side, self.long_side)
            return Sizes(sides, self.long_side, crop_short_sides=sides, crop=whole)
        return Sizes(
            sides,
            self.long_side,
            crop_short_sides=tuple(self.crop_short_sides),
            crop=self.crop_sides,
        )


def milestones_of(epochs: int) -> list[int]:
    """Return the epochs at which the learning rate falls in a schedule of a length."""
    if epochs in MILESTONES:
        return list(MILESTONES[epochs])
    return sorted({epoch * epochs // EPOCHS for epoch in MILESTONES[EPOCHS]} - {0})


class Images:
    """The images of a split, one by one, with no more of them in memory than the index.

    Args:
        objects: the split.
    """

    def __init__(self, objects: LabelledObjects) -> None:
        self.objects = objects

    def __len__(self) -> int:
        return len(self.objects)

    def clip(self, index: int, rng: torch.Generator | None = None) -> ObjectImage:
        """Return an image with its objects, as they are stored."""
        return self.objects[index]


class Detection(Finetuning):
    """Learns a :class:`timewalk.encoders.dense.detector.Detector`."""

    Config = DetectionConfig
    labels: ClassVar[Literal["masks", "objects"]] = "objects"
    config: DetectionConfig
    network: "Detector"

    def build(self, encoder: Encoder, about: Mapping[str, Any]) -> "Detector":
        """Return the network, its heads drawn from torch's generator."""
        from timewalk.encoders.dense.detector import Detector

        config = self.config
        freeze_unread(encoder, config.out_norm)
        return Detector(
            encoder,
            len(about["classes"]),
            config.head,
            out_norm=config.out_norm,
            fpn_channels=config.channels,
        )

    def open(self, manifest: Path) -> Source:
        """Return the images of the training split that have an object.

        Raises:
            UserError: there are none.
        """
        objects = LabelledObjects(manifest, "train")
        if len(objects) == 0:
            raise UserError(
                f"{manifest}: no image of the training split has an object that can be learnt; "
                "give a set with objects that are no crowds and have an outline."
            )
        return Images(objects)

    def title(self) -> str:
        """Return head, schedule and what is not as published, such as `cascade-1x`."""
        config, epochs = self.config, self.config.training.epochs
        published = DetectionConfig(
            task=config.task,
            dataset=config.dataset,
            head=config.head,
            schedule_scale=config.schedule_scale,
            training=DetectionTraining(epochs=epochs),
        )
        name = f"{NAMES[config.head]}-{config.schedule_scale:g}x"
        # Milestones follow the epochs.
        length = "" if epochs == config.scaled_epochs else f"-epochs{epochs}"
        return name + length + marks(config, published, MARKS)

    def sizes(self) -> dict[str, int]:
        """Return the largest size that was learnt from."""
        return {"short_side": max(self.config.short_sides), "long_side": self.config.long_side}

    def sample(self, clip: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Return an image as it is learnt from, of one as it is stored; see
        :func:`timewalk.data.detection_views.training_sample`."""
        return training_sample(clip, self.config.sizes, rng)

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a batch of images of different sizes, filled up with zeros."""
        return collate(samples, self.network.multiple)

    def device_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Normalise the images."""
        return batch | {"images": self.network.normalise(batch["images"], batch["sizes"])}

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the sum of the detector's losses, and each of them for the log."""
        losses = self.network.losses(batch["images"], batch["sizes"], targets(batch))
        total = torch.stack(list(losses.values())).sum()
        return Losses(total, {name: x.detach() for name, x in losses.items()})


def targets(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the objects of each image of a batch as the detector takes them: labels from 1, masks
    uint8 (N, H, W) of the padded images' size."""
    counts, width = batch["counts"].tolist(), batch["images"].shape[-1]
    parts = (batch[name].split(counts) for name in ("boxes", "classes", "masks"))
    return [
        {"boxes": boxes, "labels": classes + 1, "masks": unpacked_masks(masks, width)}
        for boxes, classes, masks in zip(*parts, strict=True)
    ]
