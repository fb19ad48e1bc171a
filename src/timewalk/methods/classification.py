"""The supervised baseline: embeddings of frames from which a linear layer reads their phase.

Source: TCC and its released code; network and data: methods/phases.py; the loss: ops/objectives.py.
"""

from typing import Annotated, Any

from pydantic import Field

from timewalk.config import Probability
from timewalk.methods import phases_config
from timewalk.methods.phases import Phases
from timewalk.methods.phases_config import PhasesConfig, Rate


class ClassificationConfig(PhasesConfig):
    """Keys of a run of `classification`; the defaults are those of the published code."""

    classes: Annotated[int, Field(ge=2)]
    """number of phases of the data set, labelled 0 to this minus 1"""
    dropout: Rate = 0.0
    """share of an embedding's values that are dropped (`CLASSIFICATION.DROPOUT_RATE`)"""
    label_smoothing: Probability = 0.0
    """share of the target that is spread over all phases (`CLASSIFICATION.LABEL_SMOOTHING`)"""

    def objective(self) -> dict[str, Any]:
        """Return the spec of the cross-entropy."""
        return {
            "name": "classification",
            "classes": self.classes,
            "dropout": self.dropout,
            "label_smoothing": self.label_smoothing,
        }

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        return {**phases_config.miniature("classification"), "classes": 3}


class Classification(Phases):
    """Base network, embedder and linear layer, trained on labelled frames."""

    Config = ClassificationConfig
    needs_labels = True
    config: ClassificationConfig
