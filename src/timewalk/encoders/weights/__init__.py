"""Adapters of foreign checkpoint formats: one file a format, two pure functions each.

`recognises(checkpoint)`, `to_ours(checkpoint, own, part)` and `from_ours(own, …)`; ``own`` is the
encoder's state under timm's names. A format's line in ``FORMATS`` makes it known; the first that
recognises a checkpoint reads it. `head(checkpoint)` is there where evaluations may use more of a
format than the encoder.
"""

import logging
from typing import Any

from torch import Tensor

from timewalk.encoders.weights import (
    crw,
    dino,
    dora,
    general,
    keras_resnet_v2,
    smtc,
    timet,
    timm_names,
)
from timewalk.encoders.weights import torchvision_resnet as torchvision
from timewalk.encoders.weights.general import State

log = logging.getLogger(__name__)

FORMATS: tuple[Any, ...] = (
    keras_resnet_v2,
    dora,
    dino,
    smtc,
    timet,
    crw,
    torchvision,
    timm_names,
)


def format_of(checkpoint: Any) -> Any:
    """Return the format of a checkpoint: the first that recognises it."""
    return next(format_ for format_ in FORMATS if format_.recognises(checkpoint))


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the encoder's names, whatever its format.

    Args:
        checkpoint: what the file holds.
        own: state of the encoder under timm's names.
        part: `teacher`, `student`, or another word of the names above the wanted tensors; None: as
            the format's authors do.

    Raises:
        UserError: its text goes on after the file's name.
    """
    keras_resnet_v2.refuse_timm(checkpoint, own)
    published = part is None or part in general.PUBLISHED_PARTS
    chosen = format_of(checkpoint) if published else timm_names
    state = chosen.to_ours(checkpoint, own, part)
    used = {tensor.data_ptr() for tensor in [*state.values(), *head(checkpoint).values()]}
    everything = general.flat_state(checkpoint, part)
    dropped = sorted(key for key, value in everything.items() if value.data_ptr() not in used)
    log.info("weights read as %s's: %d tensors taken", chosen.NAME, len(state))
    if dropped:
        log.info("%d tensors not used: %s", len(dropped), general.some(dropped))
    return state


def head(checkpoint: Any) -> dict[str, Tensor]:
    """Return a checkpoint's tensors that evaluations may use beside the encoder, or none."""
    chosen = format_of(checkpoint)
    return chosen.head(checkpoint) if hasattr(chosen, "head") else {}
