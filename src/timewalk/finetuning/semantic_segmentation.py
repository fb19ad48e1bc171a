"""Semantic segmentation: a linear head on the frozen encoder, or UperNet with all that is below it.

Source: iBOT's fine-tuning on ADE20K, to which DoRA refers. Random crops of scaled images with
distorted colours, one cross-entropy a pixel, AdamW under a learning rate that falls linearly. The
defaults are the published ones of ADE20K with a ViT-S; both heads share them, for the layers' decay
and the drop path do nothing to a frozen encoder.

Shapes: B images, K classes, S side of a crop.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from timewalk.artefacts import read_json
from timewalk.config import Positive, Probability
from timewalk.data.segmentation_views import Distortion, SegmentationViews, normalised
from timewalk.data.segmented import SegmentedSet, open_segmented, read_pair
from timewalk.data.sequences import KIND
from timewalk.encoders import Encoder
from timewalk.encoders.dense.segmenter import Segmenter
from timewalk.errors import UserError
from timewalk.finetuning.base import (
    FinetuneTraining,
    Finetuning,
    FinetuningConfig,
    freeze_unread,
    marks,
)
from timewalk.methods.base import Losses, Step
from timewalk.ops.resized_loss import resized_cross_entropy

PASSES = 1_000_000
"""more than any number of steps needs: the steps decide"""
MARKS = {
    "auxiliary_weight": "aux",
    "channels": "ch",
    "class_max_share": "share",
    "compat": "",
    "crop": "c",
    "drop_path": "dp",
    "layer_decay": "ld",
    "long_side": "long",
    "short_side": "short",
    "training.batch_size": "b",
    "training.learning_rate": "lr",
    "training.precision": "",
    "training.warmup_steps": "warm",
    "training.weight_decay": "wd",
    "training.weight_decay_end": "wdend",
}
"""what stands before a changed key's value in a protocol's name"""
OF_UPERNET = {"auxiliary_weight", "channels", "compat", "drop_path", "layer_decay"}
"""keys that mean nothing to a linear head on a frozen encoder"""

Pixels = Annotated[int, Field(ge=32)]
Factor = Annotated[float, Field(gt=0)]
Pair = tuple[np.ndarray, np.ndarray]


class SegmentationTraining(FinetuneTraining):
    """The training loop; `batch_size` counts images over all processes."""

    epochs: Positive = PASSES
    """passes over the training images, where `max_steps` allows them"""
    max_steps: Positive | None = 160_000
    """stop after this many optimiser steps, schedules laid over them; null: no limit"""
    batch_size: Positive = 16
    """images in one optimiser step, over all processes"""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """peak learning rate (published: 3e-5 with ViT-S; with ViT-B 8e-5, and 8e-4 for the linear
    head)"""
    warmup_steps: Annotated[int, Field(ge=0)] | None = 1500
    """optimiser steps of the warm-up, instead of `warmup_epochs`; null: those epochs"""

    @model_validator(mode="after")
    def _ends(self) -> "SegmentationTraining":
        if self.max_steps is None and self.epochs == PASSES:
            raise ValueError(
                "has neither `max_steps` nor `epochs` to end it; with `max_steps: null` give "
                "`training.epochs`"
            )
        return self


class SemanticSegmentationConfig(FinetuningConfig):
    """Keys of a fine-tuning for semantic segmentation."""

    task: Literal["semantic_segmentation"] = "semantic_segmentation"
    """what is learnt"""
    head: Literal["linear", "upernet"] = "upernet"
    """`linear`: one 1x1 convolution on the maps of a frozen encoder; `upernet`: UperNet, and the
    encoder learns too"""
    channels: Positive | None = None
    """channels of UperNet's maps; null: as many as the encoder's last map has"""
    out_norm: bool = True
    """a ViT's final norm on each of the four maps"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = 0.9
    """factor on the learning rate from one of the encoder's layers to the one before it; null:
    none (no meaning for `linear`)"""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """weight of the loss of UperNet's auxiliary head; 0: no such head"""
    crop: Pixels = 512
    """side in pixels of the square that is cut out of an image"""
    short_side: Pixels = 512
    """images are resized until their shorter side has so many pixels, times a factor"""
    long_side: Pixels = 2048
    """and made smaller again where the longer side has more than these, times that factor"""
    scale: tuple[Factor, Factor] = (0.5, 2.0)
    """smallest and largest factor"""
    class_max_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """share of a crop's labelled pixels above which one class is too much and the crop is drawn
    again, up to ten times; 1: never"""
    flip: Probability = 0.5
    """chance of mirroring"""
    distortion: bool = True
    """change the colours"""
    brightness: Annotated[float, Field(ge=0, le=255)] = 32.0
    """most levels of 255 that are added or taken"""
    contrast: tuple[Factor, Factor] = (0.5, 1.5)
    """factors of all levels"""
    saturation: tuple[Factor, Factor] = (0.5, 1.5)
    """factors of the saturation"""
    hue: Annotated[int, Field(ge=0, le=90)] = 18
    """most steps of two degrees by which hues turn"""
    training: SegmentationTraining = SegmentationTraining()
    """the training loop"""

    @model_validator(mode="after")
    def _ranges(self) -> "SemanticSegmentationConfig":
        for key in ("scale", "contrast", "saturation"):
            least, most = getattr(self, key)
            if least > most:
                raise ValueError(
                    f"has a `{key}` from {least:g} to {most:g}; give the smaller factor first"
                )
        return self

    def views(self) -> SegmentationViews:
        """Return the augmentation."""
        distortion = Distortion(self.brightness, self.contrast, self.saturation, self.hue)
        return SegmentationViews(
            self.crop,
            (self.long_side, self.short_side),
            self.scale,
            self.class_max_share,
            self.flip,
            distortion if self.distortion else None,
        )

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a fine-tuning that takes seconds on a CPU, for tests."""
        return {
            "task": "semantic_segmentation",
            "dataset": "miniature",
            **{"crop": 64, "short_side": 64, "long_side": 128, "channels": 16},
            "training": {
                **{"max_steps": 2, "warmup_steps": 0, "batch_size": 2, "precision": "fp32"},
                "learning_rate": 1e-3,
            },
        }


class LabelledPixels:
    """Images with the class of each pixel, by number."""

    def __init__(self, segmented: SegmentedSet) -> None:
        self.frames = segmented.frames

    def __len__(self) -> int:
        return len(self.frames)

    def clip(self, index: int, rng: torch.Generator | None = None) -> Pair:
        """Return image, uint8 (H, W, 3), and classes, uint8 (H, W), 255 for void.

        Raises:
            UserError: an unreadable file, an unknown id, or a mask of another size.
        """
        return read_pair(self.frames[index])


class SemanticSegmentation(Finetuning):
    """A network that gives a class to every pixel."""

    Config = SemanticSegmentationConfig
    labels = "masks"
    config: SemanticSegmentationConfig
    network: Segmenter
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: SemanticSegmentationConfig,
        encoder: Encoder,
        about: Mapping[str, Any],
    ) -> None:
        super().__init__(config, encoder, about)
        self._views = config.views()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(encoder, name)), persistent=False)

    def image_size(self) -> int | None:
        """Return the side of a crop."""
        return self.config.crop

    def build(self, encoder: Encoder, about: Mapping[str, Any]) -> nn.Module:
        """Return the encoder with its head.

        Raises:
            UserError: no classes, or crops that the network's maps do not divide.
        """
        config, classes = self.config, about.get("classes")
        if not classes:
            raise UserError(
                f"'{config.dataset}' has no classes to tell apart; name a set with classes under "
                "the fine-tuning's key 'dataset'."
            )
        network = Segmenter(
            encoder,
            len(classes),
            config.head,
            config.channels or encoder.tap_widths[-1],
            config.out_norm,
            aux_channels=256 if config.auxiliary_weight else None,
        )
        if rest := config.crop % network.multiple:
            raise UserError(
                f"crop is {config.crop} but the network's maps need multiples of "
                f"{network.multiple} pixels; set it to {config.crop - rest + network.multiple}."
            )
        if not network.frozen:
            freeze_unread(encoder, config.out_norm)
        return network

    def open(self, manifest: Path) -> LabelledPixels:
        """Return the training split of a set of still images with masks.

        Raises:
            UserError: a set of videos, of something else, or without training images.
        """
        if read_json(manifest).get("kind") == KIND:
            raise UserError(
                f"'{self.config.dataset}' is a set of videos and has no training split; name one "
                "of still images with masks under the fine-tuning's key 'dataset'."
            )
        return LabelledPixels(open_segmented(manifest, "train"))

    def sizes(self) -> dict[str, int]:
        """Return those of the crops and of the images that they are cut out of."""
        config = self.config
        return {
            "crop": config.crop,
            "short_side": config.short_side,
            "long_side": config.long_side,
        }

    def title(self) -> str:
        """Return head and steps, such as `upernet-160k`, and what is not as published."""
        config = self.config
        steps, passes = config.training.max_steps, config.training.epochs
        length = [] if steps is None else [_thousands(steps)]
        length += [] if passes == PASSES else [f"{passes}ep"]
        same = {"dataset", "head"} | (OF_UPERNET if config.head == "linear" else set())
        given = {**config.model_dump(include=same), "training": {"max_steps": steps}}
        given["training"]["epochs"] = passes
        published = type(config).model_validate(given)
        return "-".join([config.head, *length]) + marks(config, published, MARKS)

    def sample(self, clip: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Return a crop: `image` uint8 (3, S, S), `label` uint8 (S, S), and `valid` int64 (2,), the
        rows and columns that the image fills."""
        image, classes = clip
        return self._views(image, classes, rng)

    def device_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `image` float (B, 3, S, S), normalised, and `label`."""
        pixels = normalised(batch["image"], batch["valid"], self.mean, self.std)
        return {"image": pixels, "label": batch["label"]}

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the cross-entropy of images (B, 3, S, S) and labels (B, S, S), the auxiliary
        head's added by its weight; see :func:`~timewalk.ops.resized_loss.resized_cross_entropy`
        for what void pixels count."""
        logits, auxiliary = self.network.training_logits(batch["image"])
        loss, accuracy = resized_cross_entropy(logits, batch["label"])
        terms: dict[str, Tensor | float] = {
            "pixel_loss": loss.detach(),
            "pixel_accuracy": accuracy,
        }
        if auxiliary is not None:
            other, _ = resized_cross_entropy(auxiliary, batch["label"])
            terms["auxiliary_loss"] = other.detach()
            loss = loss + self.config.auxiliary_weight * other
        return Losses(loss, terms)


def _thousands(steps: int) -> str:
    return f"{steps // 1000}k" if steps % 1000 == 0 else f"{steps}it"
