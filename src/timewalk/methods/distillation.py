"""What DINO and DoRA share: a student that learns to answer as its own moving average does.

Student and teacher are the same network, a backbone and DINO's head. The teacher's logits, centred
by their running mean and sharpened by a low temperature, are the target; the teacher follows the
student by an exponential moving average. A method says which images each of the two sees and which
answers are compared. Source: DINO, section 3.1, and its released code, which DoRA's shares.

Shapes: R rows, D width of the head.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.config import EncoderConfig, Positive, Probability
from timewalk.data.colour import apply_chain
from timewalk.data.views import ColourChain, normalise
from timewalk.encoders import Encoder, build_encoder, seeded
from timewalk.encoders.base import VIT_SHAPES, vit_shape
from timewalk.encoders.heads import DinoHead, multi_crop
from timewalk.methods.base import Method, Step, TrainedRunConfig
from timewalk.ops.distillation import update_centre_
from timewalk.ops.ema import ema_update_
from timewalk.ops.schedules import linear_then_constant, warmup_cosine

Share = Annotated[float, Field(gt=0, le=1)]
Range = tuple[Share, Share]
Side = Annotated[int, Field(ge=8)]
Temperature = Annotated[float, Field(gt=0)]


class StudentEncoder(EncoderConfig):
    """The backbone; only the student drops paths."""

    drop_path: Probability = 0.1
    """stochastic depth of the student's last block (rises linearly from 0; ViT names only); the
    teacher has none"""


class DistillationConfig(TrainedRunConfig):
    """Keys that DINO and DoRA share; the defaults are those of the published command lines."""

    encoder: StudentEncoder = StudentEncoder()
    """the image encoder"""
    out_dim: Positive = 65536
    """width of the head's output"""
    head_hidden: Positive = 2048
    """width of the head's hidden layers"""
    head_bottleneck: Positive = 256
    """width of what the head's last layer sees"""
    norm_last_layer: bool = True
    """keep the gain of the head's last layer at 1"""
    freeze_last_layer_epochs: Annotated[int, Field(ge=0)] = 1
    """epochs in which the head's last layer does not learn"""
    student_temperature: Temperature = 0.1
    """temperature of the student"""
    warmup_teacher_temperature: Temperature = 0.04
    """temperature of the teacher in the first epoch"""
    teacher_temperature: Temperature = 0.04
    """temperature of the teacher after its warm-up"""
    warmup_teacher_temperature_epochs: Annotated[int, Field(ge=0)] = 0
    """epochs in which it rises linearly"""
    momentum_teacher: Probability = 0.996
    """momentum of the teacher's average at the start; a cosine takes it to 1"""
    centre_momentum: Probability = 0.9
    """momentum of the mean teacher output"""
    export: Literal["teacher", "student"] = "teacher"
    """whose backbone is saved and evaluated"""

    def check_vit(self, *sizes: str) -> None:
        """Refuse a ViT whose shape, or one of the sizes named by key, cannot be."""
        if self.encoder.name not in VIT_SHAPES:
            return
        width, _, heads = vit_shape(self.encoder)
        if width % heads:
            raise ValueError(f"encoder.width {width} is no multiple of encoder.heads {heads}")
        patch = self.encoder.patch_size
        for key in sizes:
            if getattr(self, key) % patch:
                raise ValueError(
                    f"{key} is {getattr(self, key)}; make it a multiple of "
                    f"encoder.patch_size {patch}"
                )

    def check_ranges(self, *keys: str) -> None:
        """Refuse a range whose larger end stands first."""
        for key in keys:
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is [{low}, {high}]; put the smaller share first")


class Network(nn.Module):
    """Backbone and head: images to logits."""

    def __init__(self, backbone: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, *crops: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (., D) of each tensor of images (., 3, H, W)."""
        return self.logits(*crops).split([len(images) for images in crops])

    def logits(self, *crops: Tensor) -> Tensor:
        """Return the logits (R, D) of all images, in their order: one pass of the head."""
        return multi_crop(self.backbone.summary, self.head, crops)


class Distillation(Method):
    """Student, teacher, centre, and how the last two follow.

    Attributes:
        student: learns.
        teacher: its moving average, never in evaluation mode while it trains.
        centre: (1, D) mean teacher logits.
    """

    config: DistillationConfig
    student: Network
    teacher: Network
    centre: Tensor

    def __init__(self, config: DistillationConfig, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.config = config
        self.student = _network(config, config.encoder.drop_path, batch_norm)
        self.teacher = _network(config, 0.0, batch_norm)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("centre", torch.zeros(1, config.out_dim))

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The backbone that is saved: the teacher's, unless `export: student`."""
        return (self.teacher if self.config.export == "teacher" else self.student).backbone

    def temperature(self, step: Step) -> float:
        """Return the teacher's temperature in this epoch."""
        return linear_then_constant(
            step.epoch,
            self.config.warmup_teacher_temperature,
            self.config.teacher_temperature,
            self.config.warmup_teacher_temperature_epochs,
        )

    def after_backward(self, step: Step) -> None:
        """Take the gradients of the head's last layer away in the first epochs."""
        if step.epoch < self.config.freeze_last_layer_epochs:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, step: Step, joint: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """Let the centre follow the teacher's outputs, and the teacher the student."""
        update_centre_(self.centre, joint["centre"], self.config.centre_momentum)
        momentum = warmup_cosine(step.index, step.total, self.config.momentum_teacher, 1.0)
        # Parameters only, as published: what batch norms have seen is each network's own.
        ema_update_(self.teacher.parameters(), self.student.parameters(), momentum)
        spread = (joint["squares"] - joint["centre"].square()).clamp(min=0).sqrt().mean()
        return {
            "teacher_momentum": momentum,
            "teacher_temperature": self.temperature(step),
            "teacher_std": spread,
        }

    @property
    def colours_on_device(self) -> bool:
        """Whether views leave the loader's workers without their colours, with the draws."""
        return self.config.training.augment == "device"

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images as the backbone wants them; floats are taken as they are."""
        if images.dtype != torch.uint8:
            return images
        return normalise(images, self.encoder.mean, self.encoder.std)


def recoloured(images: Tensor, draws: Tensor, chain: ColourChain) -> Tensor:
    """Send uint8 images (..., 3, H, W) through a chain on their device, by draws (..., n)."""
    shape = images.shape
    flat = apply_chain(images.reshape(-1, *shape[-3:]), draws.flatten(0, -2), chain)
    return flat.reshape(shape)


def answer_means(teacher_RD: Tensor) -> dict[str, Tensor]:
    """Return what the whole batch's teacher logits are asked for: mean and mean square, (1, D)."""
    return {
        "centre": teacher_RD.mean(dim=0, keepdim=True),
        "squares": teacher_RD.square().mean(dim=0, keepdim=True),
    }


def answer_terms(target_RD: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Return what the log says of the teacher's answers.

    Args:
        target_RD: its probabilities.
        loss: mean cross-entropy of the student with them.
    """
    entropy = torch.special.entr(target_RD).sum(dim=-1).mean()
    return {
        "target_entropy": entropy,
        "kl": loss - entropy,
    }


def centre_square(clip: Tensor, size: int) -> Tensor:
    """Return the largest centred square of each frame, resized: uint8 (F, 3, size, size)."""
    height, width = clip.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = clip[..., top : top + side, left : left + side].float()
    resized = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _network(config: DistillationConfig, drop_path: float, batch_norm: bool) -> Network:
    encoder = config.encoder.model_copy(update={"drop_path": drop_path})
    backbone: Any = build_encoder(encoder, config.seed)
    with seeded(config.seed + 1):
        head = DinoHead(
            backbone.width,
            config.out_dim,
            hidden=config.head_hidden,
            bottleneck=config.head_bottleneck,
            norm_last_layer=config.norm_last_layer,
            batch_norm=batch_norm,
        )
    return Network(backbone, head)
