"""What evaluations of a fine-tuned network share."""

from collections.abc import Mapping
from typing import Any, TypeVar

from timewalk.check import check
from timewalk.config import EvaluationConfig

Settings = TypeVar("Settings", bound=EvaluationConfig)


def with_sizes(config: Settings, card: Mapping[str, Any]) -> Settings:
    """Return an evaluation's settings with the sizes of the fine-tuning where they name none.

    Args:
        config: with a key for each size, null for the fine-tuning's.
        card: of the network; ``sizes`` are in pixels.

    Raises:
        UserError: together they are not possible.
    """
    own = config.model_dump(mode="json")
    sizes = {key: side if own[key] is None else own[key] for key, side in card["sizes"].items()}
    return check(type(config), {**own, **sizes}, f"an evaluation of {card['name']}")
