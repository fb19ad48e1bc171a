"""Optimisers over a method's groups, and the rates that the schedules set before each step."""

import math

import torch
from torch import nn

from timewalk.config import TrainingConfig
from timewalk.methods.base import ParameterGroup, Step
from timewalk.ops.schedules import (
    multistep,
    polynomial,
    warmup_cosine,
    warmup_exponential,
    warmup_linear,
    warmup_multistep,
)
from timewalk.training.lars import LARS


def make_optimizer(groups: list[ParameterGroup], settings: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser over some groups; rates are set before each step."""
    parameters = [{"params": group.parameters} for group in groups]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    if settings.optimizer == "lars":
        return LARS(parameters)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=0.0, betas=(0.9, 0.999), eps=settings.epsilon, fused=True)


def set_rates(
    optimizer: torch.optim.Optimizer,
    groups: list[ParameterGroup],
    settings: TrainingConfig,
    step: Step,
) -> dict[str, float]:
    """Set learning rate and weight decay of a step, and return them for the log."""
    rate = _learning_rate(settings, step)
    decay = warmup_cosine(step.index, step.total, settings.weight_decay, settings.weight_decay_end)
    for group, target in zip(groups, optimizer.param_groups, strict=True):
        target["lr"] = rate * group.lr_scale
        target["weight_decay"] = decay if group.weight_decay else 0.0
        if settings.epsilon_first and "betas" in target:
            # Torch divides the root of the second moment by this, and adds epsilon then.
            target["eps"] = settings.epsilon / math.sqrt(1 - target["betas"][1] ** (step.index + 1))
    return {"learning_rate": rate, "weight_decay": decay}


def _learning_rate(settings: TrainingConfig, step: Step) -> float:
    peak = settings.learning_rate
    if settings.scale_learning_rate:
        peak *= settings.batch_size / 256
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(settings.warmup_epochs * step.steps_per_epoch)
    warmup = min(warmup, step.total)
    if settings.warmup_ratio is not None:
        return _under_factor(settings, step, peak, warmup)
    if settings.schedule == "constant":
        return warmup_multistep(step.index, peak, [], 1.0, warmup_steps=warmup)
    if settings.schedule == "step":
        steps = _milestones(settings, step)
        return warmup_multistep(step.index, peak, steps, settings.gamma, warmup_steps=warmup)
    if settings.schedule == "exponential":
        every, factor = settings.decay_steps, settings.gamma
        return warmup_exponential(step.index, peak, every, factor, warmup_steps=warmup)
    if settings.schedule == "linear":
        return warmup_linear(step.index, step.total, peak, warmup_steps=warmup)
    end = settings.min_learning_rate
    return warmup_cosine(step.index, step.total, peak, end, warmup_steps=warmup)


def _under_factor(settings: TrainingConfig, step: Step, peak: float, warmup: int) -> float:
    """Return the rate of the schedules whose warm-up is a factor on the falling value."""
    ratio = settings.warmup_ratio or 0.0
    if settings.schedule == "step":
        return multistep(
            *(step.index, peak, _milestones(settings, step), settings.gamma),
            warmup_steps=warmup,
            warmup_ratio=ratio,
        )
    return polynomial(step.index, step.total, peak, warmup_steps=warmup, warmup_ratio=ratio)


def _milestones(settings: TrainingConfig, step: Step) -> list[int]:
    epochs = [epoch * step.steps_per_epoch for epoch in settings.milestones]
    return [*epochs, *settings.milestone_steps]


def learning_parameters(groups: list[ParameterGroup]) -> list[nn.Parameter]:
    """Return the parameters of some groups that have a gradient."""
    return [p for group in groups for p in group.parameters if p.grad is not None]
