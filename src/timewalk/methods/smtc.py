"""SMTC: objects of a video as slots, first of what they are, then of which one of a kind.

"Semantics meets temporal correspondence: self-supervised object-centric learning in videos" (ICCV
2023). A ViT's keys, joined with their correlation to the frame before, are divided among semantic
slots; each semantic's area is divided among instance slots. A student learns to agree with a slow
teacher about the other frames of a clip. Source: SMTC and its released code; docs/deviations.md
says where we differ; slots: encoders/slots.py; losses: methods/smtc_losses.py.

Shapes: B clips, V = 2 views (the student's, then the teacher's), T frames, S semantic slots, P
instances of a semantic, N = h w tokens of a frame, D width, L side of a view in pixels.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timewalk.data.clip_views import photometric_view
from timewalk.data.clips import ClipShape
from timewalk.data.views import Window, crop_resize, normalise
from timewalk.encoders import Encoder, build_encoder, seeded
from timewalk.encoders.slots import SlotNetwork, Slots, slot_masks
from timewalk.methods.base import Losses, Method, ParameterGroup, Step
from timewalk.methods.pictures import labels_picture
from timewalk.methods.smtc_config import SMTCConfig
from timewalk.methods.smtc_losses import (
    instance_consistency,
    semantic_consistency,
    separation,
    valid_instances,
)
from timewalk.ops.collectives import mean_over_processes
from timewalk.ops.ema import ema_update_

BLUR_SIGMA = (0.1, 2.0)


class Network(nn.Module):
    """Encoder and slots: frames of clips to slots."""

    def __init__(self, encoder: Encoder, slots: SlotNetwork) -> None:
        super().__init__()
        self.encoder, self.slots = encoder, slots

    def forward(
        self, images: Tensor, noise: Tensor, iterations: int, *, frozen: bool = False
    ) -> Slots:
        """Return the slots of normalised images (B, T, 3, L, L).

        Args:
            images: normalised.
            noise: (B, T, S, P, D) standard normal, from which the instances start.
            iterations: of each stage.
            frozen: leave no graph of the encoder.
        """
        vit: Any = self.encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            keys_bDhw = vit.keys(images.flatten(0, 1))
        slots: Slots = self.slots(keys_bDhw.unflatten(0, images.shape[:2]), noise, iterations)
        return slots


class SMTC(Method):
    """Student and teacher, each an encoder with slots behind it.

    Attributes:
        student: learns; its encoder is exported, its slots are the head.
        teacher: follows, always in evaluation mode. Its encoder is its own even while frozen: the
            student's moves away from what both began with.
    """

    Config = SMTCConfig
    config: SMTCConfig
    # The instances that are valid in the whole batch divide the loss.
    splits = False

    def __init__(self, config: SMTCConfig) -> None:
        super().__init__()
        self.config = config
        vit: Any = build_encoder(config.encoder, config.seed)
        vit.learn_from_keys()
        side = config.image_size // vit.stride
        with seeded(config.seed + 1):
            slots = SlotNetwork(
                vit.patch_width,
                (side, side),
                config.slots,
                config.instances,
                mask=config.second_stage_mask,
                mask_threshold=config.mask_threshold,
            )
        self.student = Network(vit, slots)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.unused_parameters = config.frozen_steps > 0
        self._sigma = None
        if config.compat == "published":
            self._sigma = float(np.random.default_rng(config.seed).uniform(*BLUR_SIGMA))
        self.train()

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The student's."""
        return self.student.encoder

    def train(self, mode: bool = True) -> "SMTC":
        """Set the mode of all but the teacher, which drops no paths."""
        super().train(mode)
        self.teacher.eval()
        return self

    def clip_shape(self) -> ClipShape:
        """Return the frames of a clip: a window around a frame that is drawn."""
        config = self.config
        return ClipShape(
            config.frames_per_clip,
            config.step_between_frames,
            config.clips_per_video,
            sampling="window",
        )

    def heads(self) -> dict[str, Tensor]:
        """Return the student's slots under their published names, and their settings."""
        return self.student.slots.tensors()

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return `images`, uint8 (2, T, 3, L, L), and `noise_seed`, from which the device draws
        where the instances start."""
        seed = torch.randint(2**63 - 1, (), generator=rng)
        images = photometric_view(clip, self.config.image_size, rng, sigma=self._sigma)
        return {"images": images, "noise_seed": seed}

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of views `images` (B, 2, T, 3, L, L) with a `noise_seed` (B,) each.

        uint8 images are normalised here; floats are taken as they are.
        """
        config, images = self.config, batch["images"]
        if images.dtype == torch.uint8:
            images = normalise(images, self.encoder.mean, self.encoder.std)
        noise = self._noise(batch["noise_seed"].tolist(), images.shape[2])
        frozen = step.index < config.frozen_steps
        student = self.student(images[:, 0], noise[0], config.iterations, frozen=frozen)
        with torch.no_grad():
            teacher = self.teacher(images[:, 1], noise[1], config.iterations)
        return self.objective(student, teacher)

    def objective(self, student: Slots, teacher: Slots) -> Losses:
        """Return the loss of the slots of both networks."""
        config = self.config
        valid_student, valid_teacher = self._valid(student), self._valid(teacher)
        instances = instance_consistency(
            self.student.slots.projected(student.instance),
            self.teacher.slots.projected(teacher.instance),
            valid_student,
            valid_teacher,
            total_valid=mean_over_processes(valid_student.sum().float()),
        )
        semantics = semantic_consistency(
            student.semantic_logits, teacher.semantic_logits, teacher.keys
        )
        apart = separation(student.semantic_logits)
        total = (
            config.consistency_weight * semantics
            + config.separation_weight * apart
            + config.instance_weight * instances
        )
        return Losses(
            total,
            {
                "separation": apart.detach(),
                "semantic_consistency": semantics.detach(),
                "instance_consistency": instances.detach(),
                "valid_share": valid_student.float().mean(),
                "slots_used": _share_used(student.semantic_logits.detach()),
            },
        )

    def _valid(self, slots: Slots) -> Tensor:
        """Return which instances take part, (B, T, S, P)."""
        config = self.config
        return valid_instances(
            slots.semantic_logits,
            slots.semantic,
            slots.instance,
            probability=config.area_probability,
            min_area=config.min_area,
            min_similarity=config.min_similarity,
        )

    def _noise(self, seeds: list[int], frames: int) -> Tensor:
        """Return noise (2, B, T, S, P, D), each clip's from its own seed: the same whatever process
        it is in."""
        config, device = self.config, self.student.slots.transport_proj.weight.device
        shape = (2, frames, config.slots, config.instances, self.encoder.patch_width)
        draws = [
            torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
            for seed in seeds
        ]
        return torch.stack(draws, dim=1)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return encoder, then slots: of each the tensors of two or more dimensions with decay,
        then the rest. Starts and deviations of slots, class token and positions are decayed."""
        parts = {"student.encoder.": self.config.backbone_lr_scale, "student.slots.": 1.0}
        learning = list(self.trainable())
        groups = []
        for start, scale in parts.items():
            own = [parameter for name, parameter in learning if name.startswith(start)]
            decayed = [parameter for parameter in own if parameter.ndim > 1]
            plain = [parameter for parameter in own if parameter.ndim == 1]
            groups += [ParameterGroup(decayed, True, scale), ParameterGroup(plain, False, scale)]
        return groups

    def after_step(self, step: Step, joint: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """Let the teacher follow."""
        student, teacher = self.student, self.teacher
        momentum = self.config.teacher_momentum
        ema_update_(teacher.slots.parameters(), student.slots.parameters(), momentum)
        if self.config.teacher_backbone == "averaged":
            ema_update_(teacher.encoder.parameters(), student.encoder.parameters(), momentum)
        return {}

    @torch.no_grad()
    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return `semantics` and `instances`: the frames of a clip, and below them which slot each
        token belongs to, of the first stage and of the second."""
        config, training = self.config, self.training
        whole = Window(0, 0, clip.shape[2], clip.shape[3])
        frames = crop_resize(clip, whole, config.image_size).round().to(torch.uint8)
        images = normalise(frames, self.encoder.mean, self.encoder.std)
        self.eval()
        noise = self._noise([config.seed], len(frames))[0]
        slots = self.student(images.unsqueeze(0), noise, config.iterations)
        self.train(training)
        masks = slot_masks(slots)
        side = config.image_size // self.encoder.stride
        pixels = frames.permute(0, 2, 3, 1).cpu().numpy()
        pictures = {}
        for name, x in (
            ("semantics", masks.semantic_prob[0]),
            ("instances", masks.instance_masks[0].flatten(1, 2)),
        ):
            labels = x.argmax(dim=1).unflatten(-1, (side, side))
            pictures[name] = labels_picture(pixels, labels.cpu().numpy())
        return pictures


def _share_used(logits_BTSN: Tensor) -> Tensor:
    """Return the share of slots that are the most probable one of some token of their frame."""
    used_BTS = torch.zeros_like(logits_BTSN[..., 0])
    return used_BTS.scatter_(2, logits_BTSN.argmax(dim=2), 1.0).mean()
