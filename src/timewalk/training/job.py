"""What the training loop needs to know of what it trains."""

from typing import Any, Protocol

from timewalk.config import TrainingConfig, Validation


class Job(Protocol):
    """What the loop reads of a training's configuration, a run's or a fine-tuning's: a pydantic
    model with these keys."""

    @property
    def dataset(self) -> str:
        """Name of the training set."""

    @property
    def seed(self) -> int:
        """Of everything drawn."""

    @property
    def training(self) -> TrainingConfig:
        """Settings of the loop."""

    @property
    def validation(self) -> Validation | None:
        """An evaluation between epochs."""

    def model_dump(self, *, mode: str = "python", exclude: Any = None) -> dict[str, Any]:
        """Return the keys as plain data."""
