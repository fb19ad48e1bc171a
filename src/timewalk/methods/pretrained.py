"""No training: a given checkpoint. The other row to compare with."""

from typing import Any

from pydantic import model_validator
from torch import Tensor

from timewalk.config import RunConfig
from timewalk.encoders import build_encoder, head_of_weights
from timewalk.methods.base import Method


class PretrainedConfig(RunConfig):
    """Keys of a run of `pretrained`."""

    @model_validator(mode="after")
    def _has_weights(self) -> "PretrainedConfig":
        if self.encoder.weights is None:
            raise ValueError("encoder.weights is missing; name the checkpoint that is to be scored")
        return self

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a small run for tests, which add `encoder.weights`."""
        tiny = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 3, "patch_size": 8}
        return {"method": "pretrained", "encoder": {**tiny, "image_size": 32}}


class Pretrained(Method):
    """An encoder from a file."""

    Config = PretrainedConfig
    config: PretrainedConfig
    trains = False

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, config.seed)

    def heads(self) -> dict[str, Tensor]:
        """Return what evaluations use beside the encoder: slots of SMTC's checkpoint or run, the
        embedder of a run of TCC's family; nothing of other files."""
        return head_of_weights(self.config.encoder)
