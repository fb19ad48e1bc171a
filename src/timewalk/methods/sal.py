"""SaL: embeddings of frames by telling whether three of them are in order.

"Shuffle and learn" (ECCV 2016), as the authors of TCC compare with it. Source: SaL, and TCC's
released code; network and data: methods/phases.py; triplets and head: ops/temporal_order.py.
"""

from typing import Any, Self

from pydantic import model_validator

from timewalk.methods import phases_config
from timewalk.methods.phases import Phases
from timewalk.methods.phases_config import PhasesConfig, SaLKeys


class SaLConfig(PhasesConfig):
    """Keys of a run of `sal`; the defaults are those of the published code."""

    sal: SaLKeys = SaLKeys()
    """triplets and head"""

    @model_validator(mode="after")
    def _has_triplets(self) -> Self:
        self.check_sal()
        return self

    def objective(self) -> dict[str, Any]:
        """Return the spec of the loss on triplets."""
        return {"name": "sal", **self.sal.model_dump()}

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        return phases_config.miniature("sal")


class SaL(Phases):
    """Base network and embedder, trained to tell the order of frames."""

    Config = SaLConfig
    config: SaLConfig
