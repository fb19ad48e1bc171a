"""DINO's projection head, and the pass of several crops through a backbone and one head.

Source: DINO's released code, which DoRA's shares. Key names are those of the published checkpoints.

Shapes: R rows, D output width.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.ops.distillation import full


class WeightNormLinear(nn.Module):
    """A linear layer without bias, its rows of length ``weight_g``.

    Own parameters instead of torch's parametrisation: the names are then those of the published
    checkpoints.
    """

    def __init__(self, inputs: int, outputs: int, *, train_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=train_norm)
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (R, D)."""
        return F.linear(x, torch._weight_norm(full(self.weight_v), full(self.weight_g), 0))


class DinoHead(nn.Module):
    """Three-layer MLP with GELU, L2 normalisation, weight-normalised linear layer.

    Args:
        width: of the features.
        outputs: D, number of prototypes.
        hidden: width of the MLP.
        bottleneck: width of what is normalised.
        norm_last_layer: keep the gain of the last layer at 1.
        batch_norm: after each hidden layer.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers.append(nn.Linear(inputs, hidden))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(bottleneck, outputs, train_norm=not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (R, D) of features (R, width)."""
        hidden = self.mlp(features)
        # Logits in bfloat16 would be off by 0.1 once divided by the teacher's temperature.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.last_layer(F.normalize(full(hidden), dim=-1))


def multi_crop(
    backbone: Callable[[Tensor], Tensor], head: nn.Module, crops: Sequence[Tensor]
) -> Tensor:
    """Return the head's output of all crops, crop-major: (crops * B, D).

    Consecutive crops of one size go through the backbone together, all features through the head
    at once.

    Args:
        backbone: images (., 3, H, W) to features (., width).
        head: features to logits.
        crops: (B, 3, H, W) each, of any sizes.
    """
    groups = [list(group) for _, group in groupby(crops, key=lambda c: c.shape[-2:])]
    return head(_joined([backbone(_joined(group)) for group in groups]))


def _joined(tensors: list[Tensor]) -> Tensor:
    # A single tensor would be copied.
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
