"""TimeT's state dict of the whole model: the ViT's names behind two components.

`feature_extractor.backbone.*` (or `feature_extractor.model.*`) beside heads and prototypes. A file
may also hold `teacher.backbone.*`: cutting two components blindly would let it overwrite the
student, so the prefix is chosen. Source: TimeT's released code.
"""

from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State
from timewalk.errors import UserError

NAME = "TimeT"
STUDENT = ("feature_extractor.backbone.", "feature_extractor.model.")
TEACHER = ("teacher.backbone.", "teacher.model.")


def recognises(checkpoint: Any) -> bool:
    """Return whether the tensors of a checkpoint stand under `feature_extractor.`."""
    try:
        state = general.flat_state(checkpoint)
    except UserError:
        return False
    return any(key.removeprefix("module.").startswith(STUDENT) for key in state)


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the ViT of the student, or of the teacher where ``part`` says so.

    What remains (heads, prototypes) is dropped only once all of the ViT was found.
    """
    state = {k.removeprefix("module."): v for k, v in general.flat_state(checkpoint).items()}
    wanted = TEACHER if part == "teacher" else STUDENT
    found = [prefix for prefix in wanted if any(key.startswith(prefix) for key in state)]
    if not found:
        raise UserError(f"holds no '{wanted[0]}*'; change encoder.weights_part.")
    return general.under(state, found[0], own)


def from_ours(own: State) -> dict[str, Tensor]:
    """Return the ViT under TimeT's names, without heads and prototypes."""
    return {STUDENT[0] + key: value for key, value in own.items()}
