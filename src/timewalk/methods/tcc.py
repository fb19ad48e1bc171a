"""TCC: embeddings of frames by which videos of the same action are aligned.

"Temporal cycle-consistency learning" (CVPR 2019). From a frame to its soft nearest neighbour in
another video, and back: that should end at the frame it began with. Source: TCC, sections 3.1 to
3.3, and its released code; network and data: methods/phases.py; the loss: ops/alignment.py.
"""

from typing import Any, Self

from pydantic import model_validator

from timewalk.methods import phases_config
from timewalk.methods.phases import Phases
from timewalk.methods.phases_config import PhasesConfig, TCCKeys


class TCCConfig(PhasesConfig):
    """Keys of a run of `tcc`; the defaults are those of the published code."""

    tcc: TCCKeys = TCCKeys()
    """the loss"""

    @model_validator(mode="after")
    def _has_cycles(self) -> Self:
        self.check_tcc(self.tcc)
        return self

    def objective(self) -> dict[str, Any]:
        """Return the spec of the alignment loss."""
        return {"name": "tcc", **self.tcc_spec(self.tcc)}

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        # With embeddings of 8 numbers the published temperature makes steps tiny or too long.
        return {**phases_config.miniature("tcc"), "tcc": {"temperature": 1.0}}


class TCC(Phases):
    """Base network and embedder, trained to align."""

    Config = TCCConfig
    config: TCCConfig
