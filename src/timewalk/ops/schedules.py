"""Schedules as functions of the step, so that a resumed training needs no stored arrays.

Source: the released code of DINO, which DoRA's shares: linear warm-up whose end point is included,
then a cosine whose end value is never quite reached.
"""

import math
from collections.abc import Sequence


def warmup_cosine(
    index: int, total: int, base: float, end: float, *, warmup_steps: int = 0
) -> float:
    """Return the value of step ``index`` out of ``total``.

    Steps 0 to w - 1 rise linearly from 0 to ``base`` (both included; a single warm-up step is 0).
    The n = total - w others follow end + (base - end) / 2 * (1 + cos(pi i / n)).

    Args:
        index: step, from 0.
        total: number of steps of the whole schedule.
        base: value at the start of the cosine.
        end: value that the cosine would reach one step after the last.
        warmup_steps: w, the number of warm-up steps.
    """
    if not 0 <= index < total:
        raise ValueError(f"step {index} lies outside the schedule of {total} steps")
    if index < warmup_steps:
        return _ramp(index, base, warmup_steps)
    phase = (index - warmup_steps) / (total - warmup_steps)
    return end + 0.5 * (base - end) * (1 + math.cos(math.pi * phase))


def warmup_multistep(
    index: int, base: float, milestones: Sequence[int], gamma: float, *, warmup_steps: int = 0
) -> float:
    """Return ``base`` times ``gamma`` for each milestone that is reached, after the same warm-up.

    Args:
        index: step, from 0.
        base: value after the warm-up.
        milestones: first steps of the lower values.
        gamma: factor from one value to the next.
        warmup_steps: number of warm-up steps.
    """
    if index < warmup_steps:
        return _ramp(index, base, warmup_steps)
    return base * gamma ** sum(index >= milestone for milestone in milestones)


def warmup_exponential(
    index: int, base: float, every: int, factor: float, *, warmup_steps: int = 0
) -> float:
    """Return ``base`` times ``factor`` for each ``every`` steps that are done, in stairs, after the
    same warm-up. Steps are counted from the training's start (`exp_decay` of TCC's released
    code)."""
    if index < warmup_steps:
        return _ramp(index, base, warmup_steps)
    return base * factor ** (index // every)


def warmup_linear(index: int, total: int, base: float, *, warmup_steps: int = 0) -> float:
    """Return ``base`` falling linearly to 0, which step ``total`` would reach, after the same
    warm-up. Steps are counted from the training's start (`poly` of TCC's released code)."""
    if index < warmup_steps:
        return _ramp(index, base, warmup_steps)
    return base * (1 - index / total)


def polynomial(
    index: int, total: int, base: float, *, warmup_steps: int = 0, warmup_ratio: float = 0.0
) -> float:
    """Return ``base`` falling linearly to 0, which step ``total`` would reach; during the warm-up
    that value times a factor that rises from ``warmup_ratio`` to 1, which step ``warmup_steps``
    has (iBOT's fine-tuning on ADE20K: power 1)."""
    return base * (1 - index / total) * _factor(index, warmup_steps, warmup_ratio)


def multistep(
    index: int,
    base: float,
    milestones: Sequence[int],
    gamma: float,
    *,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
) -> float:
    """Return ``base`` times ``gamma`` for each milestone that is reached, under the warm-up of
    :func:`polynomial` (iBOT's fine-tuning on COCO)."""
    value = base * gamma ** sum(index >= milestone for milestone in milestones)
    return value * _factor(index, warmup_steps, warmup_ratio)


def _factor(index: int, steps: int, ratio: float) -> float:
    return ratio + (1 - ratio) * index / steps if index < steps else 1.0


def _ramp(index: int, base: float, steps: int) -> float:
    return base * index / (steps - 1) if steps > 1 else 0.0


def linear_then_constant(index: int, start: float, end: float, warmup: int) -> float:
    """Return ``start`` to ``end`` linearly over ``warmup`` indices (both included), then ``end``.

    The teacher's temperature by epoch; a single warm-up index is ``start``.
    """
    if index >= warmup:
        return end
    if warmup == 1:
        return start
    return start + (end - start) * index / (warmup - 1)
