"""timm's own names: those of our encoders, which are timm's networks without a classifier."""

from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State

NAME = "timm"
BODY = "body."


def recognises(checkpoint: Any) -> bool:
    """Return True: this is the rule where no other format is recognised."""
    return True


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the network's tensors, wherever the file has them, by the general rule."""
    return general.to_ours(checkpoint, own, part)


def from_ours(own: State) -> dict[str, Tensor]:
    """Return an encoder's state as timm names it: without the prefix of our wrapper."""
    return {key.removeprefix(BODY): value for key, value in own.items()}
