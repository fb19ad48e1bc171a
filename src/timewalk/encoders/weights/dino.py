"""DINO's published files: a backbone alone, a full checkpoint, weights of the linear probe.

Backbone: names are ours. Full: `student` holds `module.backbone.*` and `module.head.*`, `teacher`
holds `backbone.*` and `head.*`, beside them `optimizer`, `epoch`, `args`. Source: DINO's released
code.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State
from timewalk.errors import UserError

NAME = "DINO"


def recognises(checkpoint: Any) -> bool:
    """Return whether a checkpoint has DINO's student and teacher, or a teacher alone."""
    return isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("teacher"), Mapping)


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the backbone of a full checkpoint: the teacher's unless ``part`` says `student`."""
    state = general.flat_state(checkpoint, part or "teacher")
    return general.under(state, general.prefix_of(state, own), own)


def from_ours(own: State) -> dict[str, dict[str, Tensor]]:
    """Return the backbone as a full checkpoint's student and teacher, without heads."""
    return {
        "student": {f"module.backbone.{key}": value for key, value in own.items()},
        "teacher": {f"backbone.{key}": value for key, value in own.items()},
    }


def linear_to_ours(checkpoint: Any) -> dict[str, Tensor]:
    """Return ``weight`` (classes, features) and ``bias`` (classes) of a linear probe's file."""
    state = general.flat_state(checkpoint)
    names = {key.removeprefix("module.").removeprefix("linear."): key for key in state}
    if names.keys() != {"weight", "bias"}:
        raise UserError("holds no linear probe: its tensors should be linear.weight, linear.bias.")
    return {name: state[names[name]] for name in ("weight", "bias")}


def linear_from_ours(own: State) -> dict[str, dict[str, Tensor]]:
    """Return ``weight`` and ``bias`` under the names of DINO's linear weights."""
    return {"state_dict": {f"module.linear.{key}": own[key] for key in ("weight", "bias")}}


def head_to_current(state: State) -> dict[str, Tensor]:
    """Return a head with torch's newer names of its weight norm."""
    return _renamed(state, WEIGHT_NORM)


def head_to_published(state: State) -> dict[str, Tensor]:
    """Return a head with the published names of its weight norm."""
    return _renamed(state, {new: old for old, new in WEIGHT_NORM.items()})


WEIGHT_NORM = {
    "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
    "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
}


def _renamed(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        old = next((name for name in names if key.endswith(name)), None)
        result[key if old is None else key.removesuffix(old) + names[old]] = value
    return result
