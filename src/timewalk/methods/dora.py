"""DoRA: a ViT from one long video, by discovering objects and tracking them.

"Is ImageNet worth 1 video?" (ICLR 2024). A teacher sees the frames of a clip; three heads of its
last block's class-token attention give three objects in the first frame, Sinkhorn-Knopp keeps them
apart, the keys of every frame track them. The student sees each frame masked to one object, and
local crops, and has to say what the teacher says of the whole frame. Source: DoRA and its released
code; docs/deviations.md says where we differ.

Shapes: B clips, F frames, K objects, L local views, N patches (h x w), H heads, d width of the
ViT, D width of the head, S and s sides of global and local views. Images lie clip-major: row
b * F + f of (B * F, ...).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import Positive, TrainingConfig
from timewalk.data.clips import ClipShape
from timewalk.data.views import (
    ColourChain,
    coloured,
    crop_resize,
    global_crop,
    local_crops,
    random_window,
)
from timewalk.encoders.base import VIT_SHAPES, vit_shape
from timewalk.methods.base import Losses, Step
from timewalk.methods.distillation import (
    Distillation,
    DistillationConfig,
    Range,
    Side,
    StudentEncoder,
    Temperature,
    answer_means,
    answer_terms,
    centre_square,
    recoloured,
)
from timewalk.ops.collectives import mean_over_processes
from timewalk.ops.distillation import cross_entropy, full, teacher_probabilities
from timewalk.ops.sinkhorn import sinkhorn, sinkhorn_published, underflows

if TYPE_CHECKING:
    from timewalk.encoders.vit import Tokens

COLOURS = ((230, 60, 60), (60, 120, 240), (250, 200, 40), (60, 190, 100), (180, 80, 220))
Published = Literal["intended", "published"]


class DoraTraining(TrainingConfig):
    """Training as published; `batch_size` counts clips over all processes, frames do not count."""

    batch_size: Positive = 16
    """clips in one optimiser step, over all processes"""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """arithmetic of the networks; losses, Sinkhorn and the last layer are always in fp32"""


class DoraConfig(DistillationConfig):
    """Keys of a run of `dora`; the defaults are those of the published command line."""

    encoder: StudentEncoder = StudentEncoder()
    """the image encoder: one of our ViTs"""
    training: DoraTraining = DoraTraining()
    """the training loop"""
    frames_per_clip: Positive = 8
    """frames in a clip"""
    step_between_clips: Positive = 30
    """frames of the data set from one frame of a clip to the next"""
    outer_size: Side = 300
    """side in pixels of the clip-wide crop from which all views are cut"""
    outer_scale: Range = (0.2, 1.0)
    """share of the frame's area that this crop covers"""
    global_size: Side = 224
    """side in pixels of the global view"""
    global_crops_scale: Range = (0.4, 1.0)
    """share of the outer crop's area that the global view covers"""
    local_crops: Positive = 8
    """local views of each frame"""
    local_size: Side = 112
    """side in pixels of a local view"""
    local_crops_scale: Range = (0.05, 0.4)
    """share of the outer crop's area that a local view covers"""
    num_objects: Positive = 3
    """objects to discover: as many heads of the last block are drawn"""
    sinkhorn_epsilon: Temperature = 0.05
    """entropic regularisation of the assignment of patches to objects"""
    sinkhorn_iterations: Positive = 30
    """iterations of that assignment"""
    compat: Published = "intended"
    """`published` repeats the defects of the published code, see docs/deviations.md"""

    @model_validator(mode="after")
    def _fits(self) -> "DoraConfig":
        if self.encoder.name not in VIT_SHAPES:
            raise ValueError(
                f"encoder.name is '{self.encoder.name}', but dora needs the attention of a ViT; "
                f"choose one of {', '.join(VIT_SHAPES)}"
            )
        self.check_vit("global_size", "local_size")
        self.check_ranges("outer_scale", "global_crops_scale", "local_crops_scale")
        _, _, heads = vit_shape(self.encoder)
        if self.num_objects > heads:
            raise ValueError(
                f"num_objects is {self.num_objects}, but the encoder has {heads} heads to draw from"
            )
        if self.compat == "published" and self.local_crops < 2:
            raise ValueError(
                "local_crops is 1, but compat: published drops one crop; use 2 or more"
            )
        return self

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        tiny = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 4, "patch_size": 8}
        return {
            "method": "dora",
            "dataset": "miniature",
            "encoder": {**tiny, "image_size": 32},
            "training": {"batch_size": 2, "epochs": 2, "warmup_epochs": 0, "precision": "fp32"},
            "frames_per_clip": 3,
            "step_between_clips": 1,
            "outer_size": 40,
            "global_size": 32,
            "local_size": 16,
            "local_crops": 2,
            "out_dim": 32,
            "head_hidden": 32,
            "head_bottleneck": 16,
            "freeze_last_layer_epochs": 0,
        }


@dataclass
class Objects:
    """What the first frame of each clip shows.

    Attributes:
        prototypes: (B, K, d) queries averaged by the attention of K heads.
        scores: (B, N, K) of patches for prototypes.
        assignment: (B, N, K) after Sinkhorn-Knopp.
        refined: (B, K, d) patches averaged by the assignment.
    """

    prototypes: Tensor
    scores: Tensor
    assignment: Tensor
    refined: Tensor


def discover(
    queries_BNd: Tensor,
    cls_attention_BKN: Tensor,
    patches_BNd: Tensor,
    *,
    epsilon: float,
    iterations: int,
    compat: Published,
) -> Objects:
    """Find K objects in the first frame, from the attention of K heads.

    Args:
        queries_BNd: of the last block, not scaled.
        cls_attention_BKN: of the chosen heads.
        patches_BNd: after the final norm.
        epsilon: of Sinkhorn-Knopp.
        iterations: of Sinkhorn-Knopp.
        compat: `published` underflows to NaN where the published code does.
    """
    prototypes_BKd = cls_attention_BKN @ queries_BNd
    unit_BNd = F.normalize(patches_BNd, dim=-1)
    scores_BNK = unit_BNd @ prototypes_BKd.mT
    balance = sinkhorn_published if compat == "published" else sinkhorn
    assignment_BNK = balance(scores_BNK, epsilon, iterations)
    return Objects(prototypes_BKd, scores_BNK, assignment_BNK, assignment_BNK.mT @ unit_BNd)


def track(refined_BKd: Tensor, keys_BFNd: Tensor) -> Tensor:
    """Return where each object is in each frame: softmax over patches, (B, F, K, N) (step 9)."""
    scores = refined_BKd.unsqueeze(1) @ keys_BFNd.mT
    return (scores / keys_BFNd.shape[-1] ** 0.5).softmax(dim=-1)


def threshold(maps_BFKN: Tensor, compat: Published) -> Tensor:
    """Return masks (B, F, K, N) bool: patches strictly above the mean of the normalised map.

    The mean is each clip's own; the published code takes it over all clips of the batch, so that
    clips change each other's masks (step 10).
    """
    unit = F.normalize(maps_BFKN, dim=-1)
    if compat == "published":
        return unit > mean_over_processes(unit.mean(dim=(0, 3), keepdim=True))
    return unit > unit.mean(dim=-1, keepdim=True)


def mask_images(images_BFCSS: Tensor, masks_BFKN: Tensor, patch: int) -> Tensor:
    """Return the images with all but one object set to 0, (K, B, F, 3, S, S) (step 11)."""
    rows, columns = (side // patch for side in images_BFCSS.shape[-2:])
    grid = masks_BFKN.permute(2, 0, 1, 3).unflatten(-1, (rows, columns))
    cells = images_BFCSS.unflatten(-1, (columns, patch)).unflatten(-3, (rows, patch))
    kept = cells * grid[:, :, :, None, :, None, :, None]
    return kept.flatten(-2).flatten(-3, -2)


def object_weights(objects: int, frames: int, compat: Published) -> list[float]:
    """Return the weight of each object's mean over frames in the loss.

    Intended: 1/K. Published: the sum over frames is carried over from object to object and divided
    by F each time, so object k counts (F^-1 + ... + F^-(K-k)) F / K (docs/deviations.md).
    """
    if compat == "intended":
        return [1 / objects] * objects
    return [
        sum(frames**-j for j in range(1, objects - k + 1)) * frames / objects
        for k in range(objects)
    ]


@dataclass
class Parts:
    """The loss and what it is made of: mean cross-entropies with the teacher.

    Attributes:
        total: 0.5 (object term + local term), weighted.
        objects: mean over objects, frames and clips.
        local: mean over local views, frames and clips.
    """

    total: Tensor
    objects: Tensor
    local: Tensor


def dora_loss(
    objects_KRD: Tensor,
    local_LRD: Tensor,
    target_RD: Tensor,
    weights: list[float],
    temperature: float = 0.1,
) -> Parts:
    """Return the loss over R = B F frames: half of it the objects', half the local views'.

    Args:
        objects_KRD: student logits of the frames masked to each object.
        local_LRD: student logits of the local views that count.
        target_RD: the teacher's probabilities of the whole frames.
        weights: of the K objects (:func:`object_weights`).
        temperature: of the student.
    """
    objects = [cross_entropy(target_RD, x, temperature).mean() for x in objects_KRD.unbind()]
    locals_ = [cross_entropy(target_RD, x, temperature).mean() for x in local_LRD.unbind()]
    local = torch.stack(locals_).mean()
    weighted = [0.5 * w * (term + local) for w, term in zip(weights, objects, strict=True)]
    return Parts(torch.stack(weighted).sum(), torch.stack(objects).mean().detach(), local.detach())


class DoRA(Distillation):
    """Teacher, student, tracker and loss; its teacher's backbone is evaluated, as in the paper."""

    Config = DoraConfig
    config: DoraConfig

    def __init__(self, config: DoraConfig) -> None:
        super().__init__(config)
        # The published threshold is a mean over all clips of a batch.
        self.splits = config.compat == "intended"
        self._global_chain = ColourChain(blur_prob=0.1)
        self._local_chain = ColourChain(blur_prob=0.5)

    def clip_shape(self) -> ClipShape:
        """Return the frames of a clip: every start counts."""
        return ClipShape(self.config.frames_per_clip, self.config.step_between_clips)

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return `global` (F, 3, S, S) and `local` (L, F, 3, s, s), both uint8.

        With `augment: device` they are without colours, and beside them are the `draws` of each.
        """
        config = self.config
        height, width = clip.shape[-2:]
        window = random_window(height, width, config.outer_scale, rng)
        outer = crop_resize(clip, window, config.outer_size)
        whole, whole_draws = global_crop(
            outer, config.global_crops_scale, config.global_size, self._global_chain, rng
        )
        local, local_draws = local_crops(
            outer,
            config.local_crops,
            config.local_crops_scale,
            config.local_size,
            self._local_chain,
            rng,
        )
        grid = (config.local_crops, len(clip))
        if self.colours_on_device:
            draws = {"draws-global": whole_draws.float()}
            draws["draws-local"] = local_draws.float().unflatten(0, grid)
            return {"global": whole, "local": local.unflatten(0, grid), **draws}
        return {
            "global": coloured(whole, whole_draws, self._global_chain),
            "local": coloured(local, local_draws, self._local_chain).unflatten(0, grid),
        }

    def device_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the views of :meth:`views` with their colours."""
        if not self.colours_on_device:
            return batch
        chains = {"global": self._global_chain, "local": self._local_chain}
        return {
            key: recoloured(batch[key], batch[f"draws-{key}"], chain)
            for key, chain in chains.items()
        }

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of views `global` (B, F, 3, S, S) and `local` (B, L, F, 3, s, s).

        uint8 views are normalised here; floats are taken as they are.
        """
        config = self.config
        images_BFCSS = self.normalised(batch["global"])
        local = self.normalised(batch["local"]).transpose(0, 1)
        # The published loop takes local view 0 for the teacher's own and leaves it out.
        local_LBFCss = local[1:] if config.compat == "published" else local
        teacher_RD, objects, masks_BFKN = self.look(images_BFCSS, self.choose_heads(step))
        masked = mask_images(images_BFCSS, masks_BFKN, config.encoder.patch_size)
        objects_RD, local_RD = self.student(masked.flatten(0, 2), local_LBFCss.flatten(0, 2))
        target_RD = teacher_probabilities(teacher_RD, self.centre, self.temperature(step))
        parts = dora_loss(
            objects_RD.unflatten(0, (len(masked), -1)),
            local_RD.unflatten(0, (len(local_LBFCss), -1)),
            target_RD,
            object_weights(config.num_objects, images_BFCSS.shape[1], config.compat),
            config.student_temperature,
        )
        return Losses(
            parts.total,
            {
                "object_loss": parts.objects,
                "local_loss": parts.local,
                **answer_terms(target_RD, 0.5 * (parts.objects + parts.local)),
                "mask_coverage": masks_BFKN.float().mean(),
                "sinkhorn_underflows": underflows(objects.scores, config.sinkhorn_epsilon).sum(),
            },
            means=answer_means(teacher_RD),
        )

    @torch.no_grad()
    def look(self, images_BFCSS: Tensor, heads: list[int]) -> tuple[Tensor, Objects, Tensor]:
        """Run the teacher and its tracker on whole frames.

        Of the last block only frame 0's queries and class-token attention and every frame's keys
        are taken.

        Returns:
            logits (B F, D) float32, the objects, and masks (B, F, K, N) bool.
        """
        clips, frames = images_BFCSS.shape[:2]
        first = slice(None, None, frames)
        vit: Any = self.teacher.backbone
        tokens: Tokens = vit.tokens(
            images_BFCSS.flatten(0, 1), queries=first, keys=True, cls_attention=first
        )
        logits_RD = full(self.teacher.head(tokens.cls))
        assert tokens.queries is not None
        assert tokens.keys is not None
        assert tokens.cls_attention is not None
        with torch.autocast(logits_RD.device.type, enabled=False):
            objects = discover(
                full(tokens.queries),
                tokens.cls_attention[:, heads],
                full(tokens.patches[first]),
                epsilon=self.config.sinkhorn_epsilon,
                iterations=self.config.sinkhorn_iterations,
                compat=self.config.compat,
            )
            maps = track(objects.refined, full(tokens.keys).unflatten(0, (clips, frames)))
        return logits_RD, objects, threshold(maps, self.config.compat)

    def choose_heads(self, step: Step) -> list[int]:
        """Draw K distinct heads for the whole batch: the same on every process, after a resume."""
        _, _, heads = vit_shape(self.config.encoder)
        drawn: list[int] = step.rng().choice(heads, self.config.num_objects, replace=False).tolist()
        return drawn

    @torch.no_grad()
    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return `objects`: the frames of a clip, and below them each object's masks over them."""
        size = self.config.global_size
        frames = centre_square(clip, size)
        images = self.normalised(frames).unsqueeze(0)
        heads = self.choose_heads(Step(0, 0, 1, 1, 1, self.config.seed))
        _, _, masks_BFKN = self.look(images, heads)
        patch = self.config.encoder.patch_size
        masks_KFN = masks_BFKN[0].transpose(0, 1)
        grid = masks_KFN.unflatten(-1, (size // patch, size // patch)).float()
        masks_KFSS = grid.repeat_interleave(patch, -1).repeat_interleave(patch, -2) > 0
        return {"objects": _overlay(frames.cpu().numpy(), masks_KFSS.cpu().numpy())}


def _overlay(frames_FCSS: np.ndarray, masks_KFSS: np.ndarray) -> np.ndarray:
    """A row of frames, then one row an object: its mask in its colour, the rest darkened."""
    frames = frames_FCSS.transpose(0, 2, 3, 1).astype(np.float32)
    rows = [frames]
    for number, masks in enumerate(masks_KFSS):
        colour = np.array(COLOURS[number % len(COLOURS)], dtype=np.float32)
        inside, outside = 0.5 * frames + 0.5 * colour, 0.35 * frames
        rows.append(np.where(masks[..., None], inside, outside))
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    return picture.round().astype(np.uint8)
