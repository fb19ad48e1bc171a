"""torchvision's ResNets: names are those of timm's, with the classifier `fc`."""

from typing import Any

from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State
from timewalk.errors import UserError

NAME = "torchvision"
CLASSIFIER, LAST_LAYER = "fc.", "layer4."


def recognises(checkpoint: Any) -> bool:
    """Return whether a flat checkpoint has a ResNet's first and last layer."""
    try:
        state = general.flat_state(checkpoint)
    except UserError:
        return False
    return {"conv1.weight", "bn1.weight", "layer4.0.conv1.weight", "fc.weight"} <= state.keys()


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the network without its classifier, or what an encoder that ends earlier has of it."""
    general.refuse_part(part)
    state = general.flat_state(checkpoint)
    whole = any(key.startswith(LAST_LAYER) for key in own)
    return general.under(
        {
            key: value
            for key, value in state.items()
            if not key.startswith(CLASSIFIER) and (whole or key in own)
        },
        "",
        own,
    )


def from_ours(own: State, classifier: State) -> dict[str, Tensor]:
    """Return torchvision's state; ``classifier`` gives its `weight` and `bias`."""
    return {**own, **{CLASSIFIER + key: value for key, value in classifier.items()}}
