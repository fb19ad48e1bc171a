"""SMTC's slots: keys of the frames of clips to semantic slots, and to instance slots inside them.

Source: SMTC and its released code; slot attention itself: ops/slots.py. All of it in float32
(float64 stays), whatever the encoder's precision.

Shapes: B clips, T frames, b = B T frames of a batch, S semantic slots, P instances of a semantic,
N = h w tokens of a frame row by row, n0 tokens of the native grid, D width.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.encoders import load_head
from timewalk.encoders.weights import smtc
from timewalk.errors import UserError
from timewalk.ops.distillation import full
from timewalk.ops.slots import SlotAttention

log = logging.getLogger(__name__)

Mask = Literal["logit", "prob", "soft"]
MASKS: tuple[Mask, ...] = get_args(Mask)

SETTINGS = ("native_grid", "instances", "mask", "mask_threshold")
PUBLISHED: dict[str, Any] = {"instances": 4, "mask": MASKS.index("logit"), "mask_threshold": 0.3}
STARTS, PROJECTION = "slot_attention.slots_mu", "transport_proj.weight"
REMEDY = "name a checkpoint of SMTC, or train the run again."


@dataclass
class Slots:
    """What the slots of a batch of clips are.

    Attributes:
        semantic_logits: (B, T, S, N) of the first stage's last iteration.
        keys: (B, T, N, D) before fusion, the original's "frame".
        semantic: (B, T, S, D).
        instance: (B, T, S, P, D).
        instance_logits: (B, T, S, P, N) of the second stage's last iteration, without the mask.
    """

    semantic_logits: Tensor
    keys: Tensor
    semantic: Tensor
    instance: Tensor
    instance_logits: Tensor


class SlotNetwork(nn.Module):
    """What stands behind the encoder: fusion with the previous frame, slots, projection.

    Args:
        width: D, of the keys.
        native_grid: rows and columns of the tokens in training, to which the previous frame's keys
            are brought.
        slots: S.
        instances: P.
        mask: where a semantic's instances may look: `logit`, tokens whose semantic logit is above
            the threshold; `prob`, whose probability is; `soft`, everywhere by probability.
        mask_threshold: for `logit` and `prob`.
    """

    def __init__(
        self,
        width: int,
        native_grid: tuple[int, int],
        slots: int,
        instances: int,
        *,
        mask: Mask = "logit",
        mask_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        self.native_grid, self.instances = native_grid, instances
        self.mask, self.mask_threshold = mask, mask_threshold
        self.transport_proj = nn.Conv1d(math.prod(native_grid), width, 1)
        self.slot_attention = SlotAttention(width, slots)
        self.mlp_slot = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def fuse(self, keys_BTDhw: Tensor) -> Tensor:
        """Return keys with their correlation to the previous frame's added, (B, T, N, D).

        As released, the frame before the first one is the last one.
        """
        with torch.autocast(keys_BTDhw.device.type, enabled=False):
            keys_BTDhw = full(keys_BTDhw)
            native_bDhw = keys_BTDhw.flatten(0, 1)
            if native_bDhw.shape[-2:] != self.native_grid:
                native_bDhw = F.interpolate(
                    native_bDhw, size=self.native_grid, mode="bilinear", align_corners=False
                )
            native_BTDn = native_bDhw.flatten(2).unflatten(0, keys_BTDhw.shape[:2])
            keys_BTND = _tokens(keys_BTDhw)
            correlation_BTNn = keys_BTND @ native_BTDn.roll(1, dims=1)
            projection = self.transport_proj
            return keys_BTND + F.linear(
                correlation_BTNn, projection.weight[..., 0], projection.bias
            )

    def forward(self, keys_BTDhw: Tensor, noise_BTSPD: Tensor, iterations: int) -> Slots:
        """Return the slots of both stages.

        Args:
            keys_BTDhw: the encoder's, of any grid.
            noise_BTSPD: standard normal, from which the instances start.
            iterations: of each stage.
        """
        clips = keys_BTDhw.shape[:2]
        attention = self.slot_attention
        keys, values = attention.project(self.fuse(keys_BTDhw).flatten(0, 1))
        start = attention.start(len(keys)).unsqueeze(1)
        semantic, logits = (x.squeeze(1) for x in attention.attend(keys, values, start, iterations))
        instance, instance_logits = attention.attend(
            keys,
            values,
            attention.sample(noise_BTSPD.flatten(0, 1)),
            iterations,
            semantic_mask(logits, self.mask, self.mask_threshold),
        )
        return Slots(
            semantic_logits=logits.unflatten(0, clips),
            keys=_tokens(full(keys_BTDhw)),
            semantic=semantic.unflatten(0, clips),
            instance=instance.unflatten(0, clips),
            instance_logits=instance_logits.unflatten(0, clips),
        )

    def projected(self, instance: Tensor) -> Tensor:
        """Return instances (..., D) as the loss compares them: projected, of length 1."""
        with torch.autocast(instance.device.type, enabled=False):
            return F.normalize(self.mlp_slot(full(instance)), dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state under the published names, and the settings: what a run saves."""
        settings = {
            "native_grid": torch.tensor(self.native_grid),
            "instances": torch.tensor(self.instances),
            "mask": torch.tensor(MASKS.index(self.mask)),
            "mask_threshold": torch.tensor(self.mask_threshold, dtype=torch.float64),
        }
        return {**self.state_dict(), **settings}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SlotNetwork":
        """Return the network of :meth:`tensors`, or of a published checkpoint's slots.

        The latter have no settings: their native grid is square, and the rest is as published.

        Raises:
            UserError: tensors do not fit; its text goes on after the file's name.
        """
        state = {key: value for key, value in tensors.items() if key not in SETTINGS}
        network = cls(**_arguments(tensors))
        own = network.state_dict()
        if different := sorted(own.keys() ^ state.keys()):
            some = ", ".join(different[:8])
            raise UserError(f"holds slots with tensors missing or unknown ({some}); {REMEDY}")
        for key, value in state.items():
            if value.shape != own[key].shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(own[key].shape)}"
                raise UserError(f"holds slots whose '{key}' is {shapes}; {REMEDY}")
        network.load_state_dict(state)
        return network


def semantic_mask(logits: Tensor, kind: Mask, threshold: float) -> Tensor:
    """Return where each semantic's instances may look.

    Args:
        logits: (b, S, N) of the first stage.
        kind: see :class:`SlotNetwork`; only `soft` carries a gradient.
        threshold: for `logit` and `prob`, strict.

    Returns:
        (b, S, N) weights from 0 to 1.
    """
    if kind == "soft":
        return logits.softmax(dim=1)
    scores = logits if kind == "logit" else logits.softmax(dim=1)
    return (scores > threshold).to(logits.dtype)


@dataclass
class SlotMasks:
    """What an evaluation takes from slots.

    Attributes:
        semantic_prob: (B, T, S, N), of sum 1 over the semantics.
        similarity: (B, T, S, P) cosine of an instance with its semantic.
        instance_masks: (B, T, S, P, N), of sum 1 over all instances.
    """

    semantic_prob: Tensor
    similarity: Tensor
    instance_masks: Tensor


def slot_masks(slots: Slots) -> SlotMasks:
    """Return soft masks of the slots, and how like its semantic each instance is."""
    semantic_prob = slots.semantic_logits.softmax(dim=2)
    return SlotMasks(
        semantic_prob=semantic_prob,
        similarity=F.cosine_similarity(slots.semantic.unsqueeze(3), slots.instance, dim=-1),
        instance_masks=semantic_prob.unsqueeze(3) * slots.instance_logits.softmax(dim=3),
    )


def load_slots(run: Path) -> SlotNetwork | None:
    """Return the slots of a run, in eval mode on the CPU; None if its method has none.

    Args:
        run: the run's folder, or its encoder's file.

    Raises:
        UserError: the file is damaged, or its slots do not fit together.
    """
    tensors = load_head(run)
    if not any(key.startswith(smtc.SLOTS) for key in tensors):
        return None
    try:
        return SlotNetwork.from_tensors(tensors).eval()
    except UserError as error:
        raise UserError(f"the head of {run} {error}") from None


def _tokens(keys_BTDhw: Tensor) -> Tensor:
    return keys_BTDhw.flatten(3).mT


def _arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a network is made with, from the shapes and settings of its tensors."""
    starts, projection = tensors.get(STARTS), tensors.get(PROJECTION)
    if starts is None or starts.ndim != 4 or projection is None or projection.ndim != 3:
        raise UserError(f"holds slots without '{STARTS}' or '{PROJECTION}'; {REMEDY}")
    _, slots, _, width = starts.shape
    settings: dict[str, Any] = {key: tensors[key].tolist() for key in SETTINGS if key in tensors}
    if not settings:
        tokens = projection.shape[1]
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise UserError(f"holds slots for {tokens} tokens, which are no square grid; {REMEDY}")
        settings = {**PUBLISHED, "native_grid": [side, side]}
        log.info(
            "slots without settings, as in the authors' checkpoints: %d instances of each semantic "
            "are assumed, mask '%s' above %g, a grid of %d x %d tokens",
            settings["instances"],
            MASKS[settings["mask"]],
            settings["mask_threshold"],
            side,
            side,
        )
    if settings.keys() != set(SETTINGS) or not _possible(settings, projection.shape[1]):
        raise UserError(f"holds slots with settings that cannot be ({settings}); {REMEDY}")
    settings["native_grid"] = tuple(settings["native_grid"])
    settings["mask"] = MASKS[settings["mask"]]
    return {"width": width, "slots": slots, **settings}


def _possible(settings: Mapping[str, Any], tokens: int) -> bool:
    grid = settings["native_grid"]
    return (
        isinstance(grid, list)
        and len(grid) == 2
        and min(grid) > 0
        and math.prod(grid) == tokens
        and isinstance(settings["instances"], int)
        and settings["instances"] > 0
        and settings["mask"] in range(len(MASKS))
        and isinstance(settings["mask_threshold"], float)
    )
