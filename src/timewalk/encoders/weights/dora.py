"""DoRA's published files: a backbone alone, perhaps under `teacher`, or its trainer's checkpoint.

The trainer's checkpoint is DINO's, with `dino_loss` (the centre) beside. Source: DoRA's released
code.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from timewalk.encoders.weights import dino
from timewalk.encoders.weights.general import State

NAME = "DoRA"


def recognises(checkpoint: Any) -> bool:
    """Return whether a checkpoint is DINO's with a loss's state beside."""
    return dino.recognises(checkpoint) and isinstance(checkpoint.get("dino_loss"), Mapping)


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the backbone: the teacher's unless ``part`` says `student`."""
    return dino.to_ours(checkpoint, own, part)


def from_ours(own: State, outputs: int = 65536) -> dict[str, dict[str, Tensor]]:
    """Return the backbone as a checkpoint with an empty centre of ``outputs`` numbers."""
    return {**dino.from_ours(own), "dino_loss": {"center": torch.zeros(1, outputs)}}
