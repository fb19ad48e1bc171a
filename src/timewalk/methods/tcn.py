"""TCN: embeddings of frames that are alike within moments, and differ from the rest of the video.

"Time-contrastive networks" (ICRA 2018), the single-view form, as the authors of TCC compare with
it. Every sampled frame comes with a positive from shortly before it. Source: TCN, and TCC's
released code; network and data: methods/phases.py; the loss: ops/time_contrast.py.
"""

from typing import Any

from timewalk.methods import phases_config
from timewalk.methods.phases import Phases
from timewalk.methods.phases_config import PhasesConfig, TCNKeys


class TCNConfig(PhasesConfig):
    """Keys of a run of `tcn`; the defaults are those of the published code."""

    tcn: TCNKeys = TCNKeys()
    """positives and loss"""

    def objective(self) -> dict[str, Any]:
        """Return the spec of the n-pairs loss."""
        return {"name": "tcn", **self.tcn_spec(self.tcn)}

    def positive_window(self) -> int | None:
        """Return within how many frames before a frame its positive lies."""
        return self.tcn.positive_window

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        return phases_config.miniature("tcn")


class TCN(Phases):
    """Base network and embedder, trained to tell moments apart."""

    Config = TCNConfig
    config: TCNConfig
