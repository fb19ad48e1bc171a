"""TimeT: an image encoder tuned in time, by clusters of patches that stay the same in a video.

"Time does tell: self-supervised time-tuning of dense image representations" (ICCV 2023). The
patches of a clip's first frame are assigned to prototypes; the labels are forwarded to the last
frame by the similarity of its patches with those of earlier frames; the last frame's scores learn
to give the label that arrives. Source: TimeT and its released code; docs/deviations.md says where
we differ; forwarding: ops/forwarding.py; prototypes: ops/prototypes.py.

Shapes: B clips, F frames, A frames of a clip whose patches are assigned, N = h w patches of a
frame, D features of the encoder, C channels of the head, K prototypes, S side of a frame.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.data.clip_views import ClipAugmentation, clip_view, plain_view
from timewalk.data.clips import ClipShape
from timewalk.data.views import normalise
from timewalk.encoders import build_encoder, seeded
from timewalk.methods.base import Losses, Method, ParameterGroup, Step
from timewalk.methods.pictures import labels_picture
from timewalk.methods.timet_config import TimeTConfig
from timewalk.methods.timet_features import end_of, run_end, run_start, unfreeze
from timewalk.ops.collectives import rows_of_processes
from timewalk.ops.ema import ema_update_
from timewalk.ops.foreground_mask import attention_masks
from timewalk.ops.forwarding import Forwarding, forward_labels
from timewalk.ops.prototypes import assign, is_full, own_rows, pushed, scores
from timewalk.ops.schedules import warmup_cosine
from timewalk.ops.sinkhorn import sinkhorn

PUSHED_PER_CLIP = 10
"""rows of the queue that a clip brings"""
PUBLISHED_STD = (0.228, 0.224, 0.225)
MASS = 0.65
"""share of the attention's mass that a mask holds"""


class Teacher(nn.Module):
    """Moving averages of what learns; what is frozen is the student's."""

    def __init__(self, end: nn.Module, head: nn.Module, prototypes: Tensor) -> None:
        super().__init__()
        self.end, self.head = deepcopy(end), deepcopy(head)
        self.prototypes = nn.Parameter(prototypes.detach().clone())
        self.requires_grad_(False)


class TimeT(Method):
    """Encoder, head and prototypes; a teacher and a queue if asked for.

    Attributes:
        head: patch features to what is clustered; nothing without `use_head`.
        prototypes: (K, C), rows of length 1.
        teacher: moving averages, or None.
        queue: (Q, C) features of earlier first frames, the newest in front; None without `queue`.
    """

    Config = TimeTConfig
    config: TimeTConfig
    # One assignment balances the patches of all clips of a batch.
    splits = False
    queue: Tensor | None

    def __init__(self, config: TimeTConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = config.trainable_blocks if config.use_head else 0
        self.encoder = build_encoder(config.encoder, config.seed)
        unfreeze(self.encoder, self.blocks)
        width = self.encoder.patch_width
        with seeded(config.seed + 1):
            self.head = _head(width, config.head_widths) if config.use_head else nn.Identity()
            channels = config.head_widths[-1] if config.use_head else width
            self.prototypes = nn.Parameter(F.normalize(torch.randn(config.prototypes, channels)))
        self.teacher = None
        if config.teacher:
            self.teacher = Teacher(self._end(), self.head, self.prototypes)
        self.register_buffer(
            "queue", torch.zeros(config.queue_size, channels) if config.queue else None
        )
        # Networks with convolutions may have layers behind the map that is learnt from.
        self.unused_parameters = self.blocks == "all" and self.encoder.spec["family"] != "vit"
        published = config.compat == "published"
        self._std = PUBLISHED_STD if published else self.encoder.std
        # Published training clips have no masks, and without masks nothing was mirrored.
        self._augmentation = (
            ClipAugmentation(last_only=True, flip_prob=0.0) if published else ClipAugmentation()
        )
        self._forwarding = Forwarding(
            config.context, config.radius, config.top_k, config.forward_temperature
        )
        self.train()

    def train(self, mode: bool = True) -> "TimeT":
        """Set the mode of all but the encoders: the statistics of their batch norms stay."""
        super().train(mode)
        self.encoder.eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def clip_shape(self) -> ClipShape:
        """Return the frames of a clip; which ones is drawn anew each time."""
        config = self.config
        step = config.step_between_frames if config.sampling == "regular" else 1
        return ClipShape(
            config.frames_per_clip, step, config.clips_per_video, sampling=config.sampling
        )

    def heads(self) -> dict[str, Tensor]:
        """Return `prototypes`, and the head's layers as `head.0.weight` and so on."""
        layers = {f"head.{key}": x for key, x in self.head.state_dict().items()}
        return {"prototypes": self.prototypes, **layers}

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return `images`, the augmented frames, uint8 (F, 3, S, S)."""
        return {"images": clip_view(clip, self.config.image_size, self._augmentation, rng)}

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of views `images` (B, F, 3, S, S).

        uint8 images are normalised here; floats are taken as they are.
        """
        config, images = self.config, batch["images"]
        if images.dtype == torch.uint8:
            images = normalise(images, self.encoder.mean, self._std)
        clips, frames = images.shape[:2]
        start = run_start(self.encoder, self.blocks, images.flatten(0, 1))
        start = start.unflatten(0, (clips, frames))
        ends, masked = self._end(), config.attention_mask
        # First with a graph: autocast keeps a weight's cast, and one made without has no gradient.
        last = run_end(self.encoder, ends, start[:, -1], attention=masked)
        last_BNC = self.head(_rows(last.maps))
        with torch.no_grad():
            others = run_end(self.encoder, ends, start[:, :-1].flatten(0, 1), attention=masked)
            maps_BFDhw = _clip_of(others.maps, last.maps)
            shown = frames if config.sinkhorn_scope == "all_frames" else 1
            if self.teacher is None:
                assigned_BANC = self.head(_rows(maps_BFDhw[:, :shown]))
            else:
                taught = run_end(self.encoder, self.teacher.end, start[:, :shown].flatten(0, 1))
                assigned_BANC = self.teacher.head(_rows(taught.maps).unflatten(0, (clips, shown)))
            masks_BFN = None
            if others.attention is not None and last.attention is not None:
                looks = _clip_of(others.attention, last.attention)
                masks = attention_masks(looks.flatten(0, 1).float(), MASS)
                masks_BFN = masks.unflatten(0, (clips, frames)).flatten(2)
        return self.objective(last_BNC, assigned_BANC, maps_BFDhw, step, masks_BFN)

    def objective(
        self,
        last_BNC: Tensor,
        assigned_BANC: Tensor,
        maps_BFDhw: Tensor,
        step: Step,
        masks_BFN: Tensor | None = None,
    ) -> Losses:
        """Return the loss of features: the last frames' scores against the labels that arrive.

        Args:
            last_BNC: the student's head on the last frame.
            assigned_BANC: the teacher's head, or without one the student's, on the first frame or
                all frames: what the prototypes are assigned to. Without a graph.
            maps_BFDhw: the student's encoder on all frames, along which labels are forwarded.
            step: where in the training.
            masks_BFN: patches that take part; None: all.
        """
        config, grid = self.config, maps_BFDhw.shape[-2:]
        if masks_BFN is not None:
            last_BNC = last_BNC * masks_BFN[:, -1, :, None]
            assigned_BANC = assigned_BANC * masks_BFN[:, : assigned_BANC.shape[1], :, None]
        with torch.no_grad():
            first_BNK, joint_RK = self._assigned(assigned_BANC, step)
            forwarded = forward_labels(
                maps_BFDhw, first_BNK.mT.unflatten(-1, grid), self._forwarding
            )[:, -1].flatten(2)
            weight_BN, target_BN = forwarded.max(dim=1)
        scores_BNK = scores(last_BNC, self.prototypes)
        loss_BN = F.cross_entropy(
            scores_BNK.mT / config.score_temperature, target_BN, reduction="none"
        )
        if masks_BFN is not None:
            loss_BN = loss_BN * masks_BFN[:, -1]
        rows = {} if self.queue is None else {"first": assigned_BANC[:, 0].float()}
        return Losses(
            loss_BN.mean(),
            {
                "agreement": (scores_BNK.argmax(dim=-1) == target_BN).float().mean(),
                "label_weight": weight_BN.float().mean(),
                "prototypes_used": _share_used(joint_RK),
            },
            rows=rows,
        )

    def _assigned(self, features_BANC: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return the assignment of the first frames (B, N, K), and of all rows of all processes."""
        config = self.config
        prototypes = self.prototypes if self.teacher is None else self.teacher.prototypes
        older = None
        if self.queue is not None:
            queue = self._pushed(rows_of_processes(features_BANC[:, 0].float()), step)
            older = scores(queue, prototypes) if is_full(queue) else None
        joint_RK = assign(
            scores(features_BANC, prototypes).flatten(0, 2),
            older,
            epsilon=config.epsilon,
            iterations=config.sinkhorn_iterations,
        )
        own = own_rows(joint_RK).unflatten(0, features_BANC.shape[:3])
        return own[:, 0], joint_RK

    def _pushed(self, first_BNC: Tensor, step: Step) -> Tensor:
        """Return the queue with some patches of the first frames of all processes' clips."""
        assert self.queue is not None
        count = min(len(first_BNC) * PUSHED_PER_CLIP, len(self.queue))
        rows_RC = first_BNC.flatten(0, 1)
        return pushed(self.queue, rows_RC[self._picks(len(rows_RC), count, step)])

    def _picks(self, rows: int, count: int, step: Step) -> Tensor:
        """Return which rows are pushed: the same on every process."""
        return torch.from_numpy(step.rng().permutation(rows)[:count]).to(self.prototypes.device)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return prototypes, head, encoder: of each the weights with decay, then the rest."""
        parts = {"prototypes": 1.0, "head.": 1.0, "encoder.": self.config.backbone_lr_scale}
        learning = list(self.trainable())
        groups = []
        for start, scale in parts.items():
            own = [(name, p) for name, p in learning if name.startswith(start)]
            is_weight = [p.ndim > 1 and not name.endswith(".bias") for name, p in own]
            decayed = [p for (_, p), weight in zip(own, is_weight, strict=True) if weight]
            plain = [p for (_, p), weight in zip(own, is_weight, strict=True) if not weight]
            groups += [ParameterGroup(decayed, True, scale), ParameterGroup(plain, False, scale)]
        return groups

    @torch.no_grad()
    def after_step(self, step: Step, joint: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """Push into the queue, bring the prototypes back to length 1, let the teacher follow."""
        if self.queue is not None:
            self.queue.copy_(self._pushed(joint["first"], step))
        self.prototypes.copy_(F.normalize(self.prototypes))
        if self.teacher is None:
            return {}
        # The published schedule is read once the step is counted.
        index = min(step.index + 1, step.total - 1)
        momentum = warmup_cosine(index, step.total, self.config.ema_momentum, 1.0)
        kept = 1 - momentum if self.config.compat == "published" else momentum
        sources = [*self._end().parameters(), *self.head.parameters(), self.prototypes]
        teacher = self.teacher
        targets = [*teacher.end.parameters(), *teacher.head.parameters(), teacher.prototypes]
        ema_update_(targets, sources, kept)
        teacher.prototypes.copy_(F.normalize(teacher.prototypes))
        return {"teacher_momentum": momentum}

    def _end(self) -> nn.Module:
        return end_of(self.encoder, self.blocks)

    @torch.no_grad()
    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return `labels`: the frames of a clip, and below them the prototypes that the first
        frame's patches are assigned to, as they are forwarded to the others."""
        config = self.config
        frames = plain_view(clip.cpu(), config.image_size)
        images = normalise(frames.to(clip.device), self.encoder.mean, self._std)
        start = run_start(self.encoder, self.blocks, images)
        maps_FDhw = run_end(self.encoder, self._end(), start).maps
        first_NK = scores(self.head(_rows(maps_FDhw[0])), self.prototypes)
        labels_1NK = sinkhorn(first_NK.unsqueeze(0), config.epsilon, config.sinkhorn_iterations)
        labels_1Khw = labels_1NK.mT.unflatten(-1, maps_FDhw.shape[-2:])
        forwarded = forward_labels(maps_FDhw.unsqueeze(0), labels_1Khw, self._forwarding)
        labels = torch.cat([labels_1Khw, forwarded[0]]).argmax(dim=1).cpu().numpy()
        return {"labels": labels_picture(frames.permute(0, 2, 3, 1).numpy(), labels)}


def _head(width: int, widths: list[int]) -> nn.Sequential:
    """Linear layers of the given widths, GELU between."""
    layers: list[Any] = []
    for inputs, outputs in zip([width, *widths], widths, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _share_used(assignment_RK: Tensor) -> Tensor:
    """Return the share of prototypes that are the most probable one of some row."""
    used_K = torch.zeros_like(assignment_RK[0])
    return used_K.scatter_(0, assignment_RK.argmax(dim=-1), 1.0).float().mean()


def _rows(maps: Tensor) -> Tensor:
    """Return maps (..., D, h, w) as rows (..., N, D)."""
    return maps.flatten(-2).mT


def _clip_of(others: Tensor, last: Tensor) -> Tensor:
    """Join B (F - 1) frames and the B last ones, (B, F, ...)."""
    return torch.cat([others.unflatten(0, (len(last), -1)), last.unsqueeze(1)], dim=1)
