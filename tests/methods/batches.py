"""Clips and batches of views, for tests of methods that learn from clips."""

import torch
from torch.nn import functional as F

from timewalk.methods.base import Step


def clip(frames=3, height=48, width=64, seed=0):
    """Return a smooth random clip: something to learn from, unlike noise."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(frames, 3, 6, 8, generator=rng)
    large = F.interpolate(small, size=(height, width), mode="bilinear")
    return (large * 255).to(torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(method, count=2, frames=3):
    views = [method.views(clip(frames, seed=n), generator(n)) for n in range(count)]
    return {key: torch.stack([view[key] for view in views]) for key in views[0]}


def step(index=0, total=10):
    return Step(index, 0, total, total, 1)
