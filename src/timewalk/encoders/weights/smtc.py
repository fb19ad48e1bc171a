"""SMTC's checkpoint: `model_state_dict` with the ViT under `encoder.`.

Beside it `iteration`, `optimizer_state_dict`, `loss`. Sheet: SMTC section 10.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State

NAME = "SMTC"
PREFIX = "encoder."


def recognises(checkpoint: Any) -> bool:
    """Return whether a checkpoint has `model_state_dict` with tensors under `encoder.`."""
    state = checkpoint.get("model_state_dict") if isinstance(checkpoint, Mapping) else None
    return isinstance(state, Mapping) and any(
        str(key).removeprefix("module.").startswith(PREFIX) for key in state
    )


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the ViT; the file has the student alone."""
    general.refuse_part(part, held="student")
    state = general.flat_state(checkpoint["model_state_dict"])
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return general.under(state, PREFIX, own)


def from_ours(own: State) -> dict[str, dict[str, Tensor]]:
    """Return the ViT as a checkpoint without slots and optimiser."""
    return {"model_state_dict": {PREFIX + key: value for key, value in own.items()}}
