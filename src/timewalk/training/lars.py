"""LARS: layer-wise adaptive rate scaling (arXiv 1708.03888), as DINO's command line offers it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled to each weight's norm.

    Weights (two or more dimensions) take decay and the trust ratio eta |p| / |g|; biases and norms
    take neither.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: of the velocity.
        eta: trust coefficient.
        weight_decay: of weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            size, steep = parameter.norm(), gradient.norm()
            ratio = group["eta"] * size / steep
            gradient = gradient * torch.where((size > 0) & (steep > 0), ratio, 1.0)
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        velocity = state["momentum"].mul_(group["momentum"]).add_(gradient)
        parameter.add_(velocity, alpha=-group["lr"])
