"""No training: fresh weights. The row that every trained encoder has to beat."""

from typing import Any

from pydantic import model_validator

from timewalk.config import RunConfig
from timewalk.encoders import build_encoder
from timewalk.methods.base import Method


class RandomConfig(RunConfig):
    """Keys of a run of `random`."""

    @model_validator(mode="after")
    def _has_no_weights(self) -> "RandomConfig":
        if self.encoder.weights is not None:
            raise ValueError(
                "encoder.weights is set, but `random` means fresh weights; use `method: pretrained`"
            )
        return self

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        tiny = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 3, "patch_size": 8}
        return {"method": "random", "encoder": {**tiny, "image_size": 32}}


class Random(Method):
    """An encoder as it was initialised, by the run's seed."""

    Config = RandomConfig
    trains = False

    def __init__(self, config: RandomConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(config.encoder, config.seed)
