"""SMTC's checkpoint: `model_state_dict` with the ViT under `encoder.`, and the slots.

Beside it `iteration`, `optimizer_state_dict`, `loss`. Source: SMTC's released code.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State

NAME = "SMTC"
PREFIX = "encoder."
SLOTS = ("transport_proj.", "slot_attention.", "mlp_slot.")


def recognises(checkpoint: Any) -> bool:
    """Return whether a checkpoint has `model_state_dict` with tensors under `encoder.`."""
    state = checkpoint.get("model_state_dict") if isinstance(checkpoint, Mapping) else None
    return isinstance(state, Mapping) and any(
        str(key).removeprefix("module.").startswith(PREFIX) for key in state
    )


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the ViT; the file has the student alone."""
    general.refuse_part(part, held="student")
    return general.under(_state(checkpoint), PREFIX, own)


def head(checkpoint: Any) -> dict[str, Tensor]:
    """Return the tensors of the slots under their published names; none if the file has none."""
    return {key: x for key, x in _state(checkpoint).items() if key.startswith(SLOTS)}


def from_ours(own: State) -> dict[str, dict[str, Tensor]]:
    """Return the ViT as a checkpoint without slots and optimiser."""
    return {"model_state_dict": {PREFIX + key: value for key, value in own.items()}}


def _state(checkpoint: Any) -> dict[str, Tensor]:
    state = general.flat_state(checkpoint["model_state_dict"])
    return {key.removeprefix("module."): value for key, value in state.items()}
