"""DINO: a network from single images, by agreeing with its moving average over crops.

"Emerging properties in self-supervised vision transformers" (ICCV 2021), here the baseline of DoRA
on the frames of a video: each frame is an image. The teacher sees two large crops, the student
these and several small ones; every crop of the student has to get the teacher's answer to the other
large crops. Source: DINO, section 3 and algorithm 1, and its released code.

Shapes: B images, V crops (2 global ones first, then L local ones), D width of the head, S and s
sides of global and local crops. Rows are crop-major: row v * B + b of (V * B, ...).
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import Positive, TrainingConfig
from timewalk.data.views import ColourChain, colour_draws, coloured, image_crops
from timewalk.encoders.base import VIT_SHAPES
from timewalk.methods.base import Losses, Step
from timewalk.methods.distillation import (
    Distillation,
    DistillationConfig,
    Range,
    Side,
    answer_means,
    answer_terms,
    centre_square,
    recoloured,
)
from timewalk.ops.distillation import teacher_probabilities, view_pairs_loss

GLOBAL_CHAINS = (ColourChain(blur_prob=1.0), ColourChain(blur_prob=0.1, solarise_prob=0.2))
LOCAL_CHAIN = ColourChain(blur_prob=0.5)
GLOBALS = len(GLOBAL_CHAINS)
DRAWS = ("draws-0", "draws-1", "draws-local")


class DinoTraining(TrainingConfig):
    """Training as published; `batch_size` counts images over all processes."""

    batch_size: Positive = 64
    """images in one optimiser step, over all processes"""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """arithmetic of the networks, fp16 with a scaled loss; the loss and the last layer are always
    in fp32"""


class DinoConfig(DistillationConfig):
    """Keys of a run of `dino`; the defaults are those of the published command line."""

    training: DinoTraining = DinoTraining()
    """the training loop"""
    global_size: Side = 224
    """side in pixels of the two global crops"""
    global_crops_scale: Range = (0.4, 1.0)
    """share of the image's area that a global crop covers"""
    local_crops: Annotated[int, Field(ge=0)] = 8
    """local crops of each image; 0: the two global ones alone"""
    local_size: Side = 96
    """side in pixels of a local crop"""
    local_crops_scale: Range = (0.05, 0.4)
    """share of the image's area that a local crop covers"""
    use_bn_in_head: bool = False
    """batch normalisation after each hidden layer of the head"""

    @model_validator(mode="after")
    def _fits(self) -> "DinoConfig":
        self.check_vit("global_size", *(["local_size"] if self.local_crops else []))
        self.check_ranges("global_crops_scale", "local_crops_scale")
        return self

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        tiny = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 4, "patch_size": 8}
        return {
            "method": "dino",
            "dataset": "miniature",
            "encoder": {**tiny, "image_size": 32},
            "training": {"batch_size": 2, "epochs": 2, "warmup_epochs": 0, "precision": "fp32"},
            "global_size": 32,
            "local_size": 16,
            "local_crops": 2,
            "out_dim": 32,
            "head_hidden": 32,
            "head_bottleneck": 16,
            "freeze_last_layer_epochs": 0,
        }


class DINO(Distillation):
    """Multi-crop views and the loss over all pairs of them."""

    Config = DinoConfig
    config: DinoConfig

    def __init__(self, config: DinoConfig) -> None:
        super().__init__(config, batch_norm=config.use_bn_in_head)
        # The images of a batch meet in a batch norm's statistics.
        self.splits = not any(
            isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            for module in self.student.modules()
        )

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return `global` (2, 3, S, S) and, if there are any, `local` (L, 3, s, s), both uint8.

        With `augment: device` they are without colours, and beside them are `draws-0` and `draws-1`
        of the global crops and `draws-local`.
        """
        config = self.config
        frame = clip[:1].contiguous(memory_format=torch.channels_last)
        size, scale = config.global_size, config.global_crops_scale
        crops, draws = [], []
        for chain in GLOBAL_CHAINS:
            crops.append(image_crops(frame, 1, scale, size, rng))
            draws.append(colour_draws(1, chain, rng))
        count, size, scale = config.local_crops, config.local_size, config.local_crops_scale
        local = image_crops(frame, count, scale, size, rng)
        draws.append(colour_draws(count, LOCAL_CHAIN, rng))
        result = {}
        if self.colours_on_device:
            result = {key: x.float() for key, x in zip(DRAWS, draws, strict=True)}
        else:
            chains = (*GLOBAL_CHAINS, LOCAL_CHAIN)
            *crops, local = map(coloured, [*crops, local], draws, chains)
        return result | {"global": torch.cat(crops)} | ({"local": local} if count else {})

    def device_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the views of :meth:`views` with their colours."""
        if not self.colours_on_device:
            return batch
        crops = batch["global"].split(1, dim=1)
        coloured_ = [
            recoloured(images, batch[key], chain)
            for images, key, chain in zip(crops, DRAWS, GLOBAL_CHAINS, strict=False)
        ]
        result = {"global": torch.cat(coloured_, dim=1)}
        if "local" in batch:
            result["local"] = recoloured(batch["local"], batch[DRAWS[-1]], LOCAL_CHAIN)
        return result

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of views `global` (B, 2, 3, S, S) and `local` (B, L, 3, s, s).

        uint8 views are normalised here; floats are taken as they are.
        """
        config = self.config
        # Crop-major: consecutive crops of one size make one pass through the backbone.
        groups = [
            self.normalised(batch[key].transpose(0, 1).flatten(0, 1))
            for key in ("global", "local")
            if key in batch
        ]
        images = len(batch["global"])
        with torch.no_grad():
            teacher = self.teacher.logits(groups[0])
        student_VBD = self.student.logits(*groups).unflatten(0, (-1, images))
        target = teacher_probabilities(teacher, self.centre, self.temperature(step))
        target_GBD = target.unflatten(0, (GLOBALS, images))
        loss = view_pairs_loss(student_VBD, target_GBD, config.student_temperature)
        return Losses(
            loss,
            {**answer_terms(target, loss.detach()), "centre_norm": self.centre.norm()},
            means=answer_means(teacher),
        )

    @torch.no_grad()
    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return `crops`: the first frame and its views; of a ViT also `attention`: the frame and
        where the teacher's class token looks in the last block, head by head."""
        size = self.config.global_size
        frame = centre_square(clip[:1], size)
        rng = torch.Generator().manual_seed(self.config.seed)
        views = self.views(clip.cpu(), rng)
        views = {key: x[0] for key, x in self.device_views(_batch_of_one(views)).items()}
        large = torch.cat([frame.cpu(), views["global"]])
        pictures = {"crops": _sheet(large, views.get("local"))}
        if self.config.encoder.name in VIT_SHAPES:
            vit: Any = self.teacher.backbone
            heads_Hhw = vit.cls_attention(self.normalised(frame))[0].float().cpu()
            pictures["attention"] = _attention_strip(frame[0].cpu(), heads_Hhw)
        return pictures


def _batch_of_one(views: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: x.unsqueeze(0) for key, x in views.items()}


def _sheet(large: Tensor, small: Tensor | None) -> np.ndarray:
    """A row of large pictures (., 3, S, S), below it rows of small ones (., 3, s, s)."""
    rows = [_row(large)]
    if small is not None:
        fitting = max(1, rows[0].shape[1] // small.shape[-1])
        count = math.ceil(len(small) / fitting)
        rows += [_row(part) for part in small.tensor_split(count)]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.concatenate(padded)


def _attention_strip(frame_CSS: Tensor, heads_Hhw: Tensor) -> np.ndarray:
    """The frame, then for each head the frame lit by its attention, the head's peak brightest."""
    peaks = heads_Hhw.amax(dim=(1, 2), keepdim=True)
    light = F.interpolate((heads_Hhw / peaks).unsqueeze(1), frame_CSS.shape[-2:])
    lit = (0.15 + 0.85 * light) * frame_CSS
    return _row(torch.cat([frame_CSS.unsqueeze(0), lit.round().to(torch.uint8)]))


def _row(images: Tensor) -> np.ndarray:
    """Images (., 3, H, W) side by side, (H, . W, 3)."""
    row: np.ndarray = images.permute(2, 0, 3, 1).flatten(1, 2).numpy()
    return row
