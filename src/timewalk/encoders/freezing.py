"""What of an encoder learns behind an embedder: `train_base` of TCC's released code."""

from typing import Literal

from torch import nn

from timewalk.encoders.base import Encoder
from timewalk.errors import UserError

TrainBase = Literal["frozen", "only_bn", "train_all"]
"""nothing, gain and offset of the normalisation layers, everything"""

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def choose_what_learns(encoder: Encoder, train_base: TrainBase) -> None:
    """Let nothing of an encoder learn, its normalisation layers alone, or everything.

    Modes are the caller's matter: a frozen encoder belongs into evaluation mode.

    Raises:
        UserError: `only_bn` where there is nothing to learn.
    """
    encoder.requires_grad_(train_base == "train_all")
    if train_base != "only_bn":
        return
    norms = [module for module in encoder.modules() if isinstance(module, NORMS)]
    for module in norms:
        module.requires_grad_(True)
    if not any(p.requires_grad for p in encoder.parameters()):
        raise UserError(
            "train_base is only_bn, but the encoder has no normalisation that learns; set it to "
            "train_all or frozen."
        )
