"""Initial weights as Keras makes them, for networks whose originals were written in Keras."""

import math

from torch import Tensor, nn

# A normal distribution cut at two standard deviations has this standard deviation.
CUT = 0.87962566103423978


def he_normal(weight: Tensor) -> None:
    """Fill a kernel (outputs, inputs, ...) with a cut normal of variance 2 / (inputs x size)."""
    wide = math.sqrt(2 / weight[0].numel()) / CUT
    nn.init.trunc_normal_(weight, std=wide, a=-2 * wide, b=2 * wide)


def convolution(layer: nn.Conv2d | nn.Conv3d) -> None:
    """Fill a convolution: He-normal kernel, biases 0."""
    he_normal(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def dense(layer: nn.Linear) -> None:
    """Fill a linear layer: Glorot-uniform kernel, biases 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


def gru(layer: nn.GRU) -> None:
    """Fill a GRU of one layer: Glorot-uniform kernel, orthogonal recurrent kernel, biases 0."""
    kernel, recurrent, *biases = layer.parameters()
    nn.init.xavier_uniform_(kernel)
    nn.init.orthogonal_(recurrent)
    for bias in biases:
        nn.init.zeros_(bias)
