"""Optimisers over a method's groups, and the rates that the schedules set before each step."""

import torch
from torch import nn

from timewalk.config import TrainingConfig
from timewalk.methods.base import ParameterGroup, Step
from timewalk.ops.schedules import warmup_cosine
from timewalk.training.lars import LARS


def make_optimizer(groups: list[ParameterGroup], settings: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser over some groups; rates are set before each step."""
    parameters = [{"params": group.parameters} for group in groups]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    if settings.optimizer == "lars":
        return LARS(parameters)
    return torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.999), fused=True)


def set_rates(
    optimizer: torch.optim.Optimizer,
    groups: list[ParameterGroup],
    settings: TrainingConfig,
    step: Step,
) -> dict[str, float]:
    """Set learning rate and weight decay of a step, and return them for the log."""
    peak = settings.learning_rate * settings.batch_size / 256
    warmup = min(round(settings.warmup_epochs * step.steps_per_epoch), step.total)
    rate = warmup_cosine(
        step.index, step.total, peak, settings.min_learning_rate, warmup_steps=warmup
    )
    decay = warmup_cosine(step.index, step.total, settings.weight_decay, settings.weight_decay_end)
    for group, target in zip(groups, optimizer.param_groups, strict=True):
        target["lr"] = rate * group.lr_scale
        target["weight_decay"] = decay if group.weight_decay else 0.0
    return {"learning_rate": rate, "weight_decay": decay}


def learning_parameters(groups: list[ParameterGroup]) -> list[nn.Parameter]:
    """Return the parameters of some groups that have a gradient."""
    return [p for group in groups for p in group.parameters if p.grad is not None]
