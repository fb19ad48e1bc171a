"""The one place where a method is fitted to the machine: memory format, recompute, compile, DDP.

Always in this order, after weights are loaded and layers frozen. Parameter names stay as they are,
so that checkpoints know nothing of it.
"""

import logging
import shutil
import warnings
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from timewalk.config import TrainingConfig
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.methods.base import Losses, Method, Step
from timewalk.ops.collectives import num_processes
from timewalk.training.distributed import share_batch_norm

log = logging.getLogger(__name__)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Loss(nn.Module):
    """A method's loss as a forward pass, under the precision of the run: what DDP wraps."""

    def __init__(self, method: Method, precision: str, device: torch.device) -> None:
        super().__init__()
        self.method, self.device_type = method, device.type
        self.low = HALF.get(precision)

    def forward(self, batch: dict[str, Tensor], step: Step) -> tuple[Tensor, Losses]:
        """Return the total apart, where DDP finds its graph, and all losses."""
        with torch.no_grad():
            batch = self.method.device_views(batch)
        enabled = self.low is not None
        with torch.autocast(self.device_type, self.low or torch.bfloat16, enabled=enabled):
            losses = self.method.loss(batch, step)
        return losses.total, losses


def lay_out(method: Method) -> list[Encoder]:
    """Lay a method's encoders out in memory as they are fastest, and return them."""
    encoders = [m for m in method.modules() if isinstance(m, Encoder)]
    for encoder in encoders:
        if encoder.channels_last:
            encoder.to(memory_format=torch.channels_last)
    return encoders


def wrap(method: Method, settings: TrainingConfig, device: torch.device) -> nn.Module:
    """Fit a method to the machine in place and return its loss as a module.

    Raises:
        UserError: `compile` without a C++ compiler.
    """
    encoders = lay_out(method)
    if num_processes() > 1:
        share_batch_norm(method, device)
    regions = [region for encoder in encoders for region in encoder.regions()]
    if settings.activation_checkpointing != "off":
        _recompute_all(regions, settings.activation_checkpointing)
    if settings.compile == "default":
        _need_compiler(device)
        # All blocks share one forward: each has its own drop path, and there are a few shapes, with
        # and without gradients. Beyond the limit torch runs the rest uncompiled.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 8 * len(regions))
        for region in regions:
            # Global and local views, student and teacher: few shapes, each worth its own kernels.
            region.compile(dynamic=False)
    loss = Loss(method, settings.precision, device)
    if num_processes() == 1:
        return loss
    with warnings.catch_warnings():
        # torch 2.14 renames the option; 2.11 does not know the new name.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            loss,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=method.unused_parameters,
        )


def _recompute_all(regions: list[nn.Module], what: str) -> None:
    # A second forward pass would move the running means of batch normalisations twice.
    fitting = [
        region
        for region in regions
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in region.modules())
    ]
    if len(fitting) < len(regions):
        log.warning(
            "activation_checkpointing leaves %d of %d parts of the networks as they are: they hold "
            "batch normalisations",
            len(regions) - len(fitting),
            len(regions),
        )
    for region in fitting:
        recompute(region, what)


def recompute(region: nn.Module, what: str) -> None:
    """Let a region's backward pass compute its forward pass again, where there is one.

    Args:
        region: changed in place.
        what: `full`, or `cheap`: only what is cheap, products and attention are kept.
    """
    plain: Any = region.forward
    policy: dict[str, Any] = {}
    if what == "cheap":
        policy = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}

    def forward(*arguments: Any, **keys: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*arguments, **keys)
        return checkpoint(partial(plain, **keys), *arguments, use_reentrant=False, **policy)

    region.forward = forward


def _keep_products(context: Any, operation: Any, *arguments: Any, **keys: Any) -> CheckpointPolicy:
    """Say of an operation of a block whether its result is kept for the backward pass."""
    name = operation.name()
    if "scaled_dot_product" in name or "convolution" in name:
        return CheckpointPolicy.MUST_SAVE
    if name in ("aten::mm", "aten::addmm"):
        *_, inputs, weight = arguments
        # What narrows the MLP again ends the block: nothing in the backward pass asks for it.
        narrows = inputs.shape[1] > weight.shape[1]
        return CheckpointPolicy.PREFER_RECOMPUTE if narrows else CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _need_compiler(device: torch.device) -> None:
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise UserError(
            "training.compile is default, but no C++ compiler (g++ or clang++) is on this machine; "
            "install one, or set training.compile to off."
        )
