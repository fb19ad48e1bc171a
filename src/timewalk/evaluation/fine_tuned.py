"""What evaluations of a fine-tuned network share."""

from collections.abc import Mapping
from typing import Any, TypeVar

from timewalk.check import check
from timewalk.config import EvaluationConfig, Name
from timewalk.errors import UserError


class NetworkEvaluation(EvaluationConfig):
    """What every evaluation of a fine-tuned network has."""

    network: Name
    """which network of the run is tested: name of an entry of `finetuning:`"""


Settings = TypeVar("Settings", bound=NetworkEvaluation)


def with_sizes(config: Settings, card: Mapping[str, Any]) -> Settings:
    """Return an evaluation's settings with the sizes of the fine-tuning where they name none.

    Args:
        config: with a key for each size, null for the fine-tuning's.
        card: of the network; ``sizes`` are in pixels.

    Raises:
        UserError: together they are not possible, or the card names no sizes.
    """
    if missing := {"name", "sizes"} - card.keys():
        raise UserError(
            f"the card of the network '{config.network}' says nothing of its {min(missing)}: "
            "another version of timewalk made it; run its fine-tuning again."
        )
    own = config.model_dump(mode="json")
    sizes = {key: side if own[key] is None else own[key] for key, side in card["sizes"].items()}
    return check(type(config), {**own, **sizes}, f"an evaluation of {card['name']}")
