"""CRW's checkpoint: a ResNet under `encoder.model.`, in `model`.

Old files have a padding layer before each convolution that pads: `conv1.1.weight` and
`layer1.0.conv2.1.weight` instead of `conv1.weight` and `layer1.0.conv2.weight`. Source: CRW's
released code.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State
from timewalk.errors import UserError

NAME = "CRW"
PREFIX = "encoder.model."
PADDED = re.compile(r"((?:^|\.)conv\d+)\.1\.weight$")


def recognises(checkpoint: Any) -> bool:
    """Return whether the tensors of a checkpoint stand under `encoder.model.`."""
    try:
        state = general.flat_state(checkpoint)
    except UserError:
        return False
    return any(key.removeprefix("module.").startswith(PREFIX) for key in state)


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the ResNet under torchvision's names, which are timm's; the head is dropped."""
    general.refuse_part(part)
    state = {
        PADDED.sub(r"\1.weight", key.removeprefix("module.")): value
        for key, value in general.flat_state(checkpoint).items()
    }
    return general.under(state, PREFIX, own)


def from_ours(own: State, padded: bool = False) -> dict[str, Mapping[str, Tensor]]:
    """Return the ResNet as a checkpoint without head and optimiser.

    Args:
        own: the ResNet's state.
        padded: the old names: 3 x 3 and 7 x 7 convolutions behind a padding layer.
    """
    state = {}
    for key, value in own.items():
        behind = padded and value.ndim == 4 and value.shape[-1] > 1
        state[PREFIX + (re.sub(r"\.weight$", ".1.weight", key) if behind else key)] = value
    return {"model": state}
