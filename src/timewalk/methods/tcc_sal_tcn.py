"""TCC, SaL and TCN together: their losses on the same embeddings, weighted.

Source: TCC and its released code; network and data: methods/phases.py; the losses:
ops/objectives.py.
"""

from typing import Any, Self

from pydantic import model_validator

from timewalk.methods import phases_config
from timewalk.methods.phases import Phases
from timewalk.methods.phases_config import PhasesConfig, SaLKeys, TCCKeys, TCNKeys, Weight
from timewalk.ops.objectives import check_weights


class CombinationConfig(PhasesConfig):
    """Keys of a run of `tcc_sal_tcn`; the defaults are those of the published code."""

    alignment_weight: Weight = 0.33
    """weight of TCC (`ALIGNMENT_LOSS_WEIGHT`)"""
    sal_weight: Weight = 0.33
    """weight of SaL (`SAL_LOSS_WEIGHT`); TCN has what is left of 1, and a loss without weight is
    left out"""
    tcc: TCCKeys = TCCKeys()
    """TCC's loss"""
    sal: SaLKeys = SaLKeys()
    """SaL's triplets and head"""
    tcn: TCNKeys = TCNKeys()
    """TCN's positives and loss"""

    @model_validator(mode="after")
    def _has_all_it_takes(self) -> Self:
        check_weights(self.alignment_weight, self.sal_weight)
        if self.alignment_weight > 0:
            self.check_tcc(self.tcc)
        if self.sal_weight > 0:
            self.check_sal()
        return self

    def objective(self) -> dict[str, Any]:
        """Return the spec of all three."""
        return {
            "name": "tcc_sal_tcn",
            "alignment_weight": self.alignment_weight,
            "sal_weight": self.sal_weight,
            "tcc": self.tcc_spec(self.tcc),
            "sal": self.sal.model_dump(),
            "tcn": {"reg_lambda": self.tcn.reg_lambda},
            "published_order": self.compat == "published",
        }

    def positive_window(self) -> int | None:
        """Return within how many frames before a frame its positive lies."""
        return self.tcn.positive_window

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        return {**phases_config.miniature("tcc_sal_tcn"), "tcc": {"temperature": 1.0}}


class TCCSaLTCN(Phases):
    """Base network and embedder, trained by three losses."""

    Config = CombinationConfig
    config: CombinationConfig
