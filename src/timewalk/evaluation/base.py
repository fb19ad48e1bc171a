"""The contract between an evaluation and the rest: features or an encoder in, numbers out."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Result:
    """What an evaluation returns.

    Attributes:
        protocol: named variant of the evaluation; different protocols are never compared.
        metrics: name and value; percentages are 0 to 100; None where a metric has no meaning.
        samples: number of images, objects or videos that were scored.
        artefacts: files written beside the result.
    """

    protocol: str
    metrics: dict[str, float | None]
    samples: int
    artefacts: list[Path] = field(default_factory=list)
