"""An encoder in two parts, as TimeT needs it: a frozen start, and an end that may learn.

The start runs without a graph, for all frames together. The end runs once with a graph, for the
frame that is learnt from, and once without, for the others. A teacher has an end of its own behind
the student's start. Source: TimeT, whose released code passes the encoder six times a step for the
same loss.

Shapes: R images, S their side, N = h w cells of a map, D features.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from timewalk.encoders import Encoder

Blocks = int | Literal["all"]
"""how many of a ViT's last blocks learn; `all`: every parameter of any encoder does"""


@dataclass(frozen=True)
class Seen:
    """What an encoder's end returns.

    Attributes:
        maps: (R, D, h, w).
        attention: (R, h, w), where a ViT's class token looks: the mean over heads.
    """

    maps: Tensor
    attention: Tensor | None


def unfreeze(encoder: Encoder, blocks: Blocks) -> None:
    """Let the parameters of the last blocks learn, and no others."""
    encoder.requires_grad_(blocks == "all")
    if isinstance(blocks, int) and blocks > 0:
        vit: Any = encoder
        vit.blocks[-blocks:].requires_grad_(True)


def end_of(encoder: Encoder, blocks: Blocks) -> nn.Module:
    """Return the part that may learn: some last blocks (one even if none learns), or all."""
    if _is_whole(encoder, blocks):
        return encoder
    vit: Any = encoder
    last: nn.Module = vit.blocks[-max(int(blocks), 1) :]
    return last


def run_start(encoder: Encoder, blocks: Blocks, images: Tensor) -> Tensor:
    """Return what the end takes, (R, ...), without a graph.

    Args:
        encoder: the student's.
        blocks: that learn.
        images: normalised, (R, 3, S, S).
    """
    if _is_whole(encoder, blocks):
        return images
    vit: Any = encoder
    with torch.no_grad():
        x, _ = vit.embed(images)
        for block in vit.blocks[: -max(int(blocks), 1)]:
            x = block(x)
    return x


def run_end(encoder: Encoder, end: Any, x: Tensor, *, attention: bool = False) -> Seen:
    """Return the map of the normalised patch tokens.

    Args:
        encoder: the student's; its last norm is used, which is frozen wherever an end is a part.
        end: as :func:`end_of` returns it, or a copy.
        x: as :func:`run_start` returns it.
        attention: whether the class token's attention is asked for (ViTs).
    """
    rows = slice(None) if attention else None
    vit: Any = encoder
    if not isinstance(end, Encoder):
        for block in end[:-1]:
            x = block(x)
        side = math.isqrt(x.shape[1] - 1)
        tokens = vit.last_block(end[-1], x, (side, side), cls_attention=rows)
    elif attention:
        whole: Any = end
        tokens = whole.tokens(x, cls_attention=rows)
    else:
        return Seen(end.dense(x), None)
    maps = tokens.patches.mT.unflatten(-1, tokens.grid)
    if not attention:
        return Seen(maps, None)
    return Seen(maps, tokens.cls_attention.mean(dim=1).unflatten(-1, tokens.grid))


def _is_whole(encoder: Encoder, blocks: Blocks) -> bool:
    return blocks == "all" or encoder.spec["family"] != "vit"
