"""Encoders that need no training: one sees colours, the other only where it looks."""

import torch
from torch.nn import functional as F

from timewalk.encoders import Encoder, Features
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD

WIDTH = 96


class Stub(Encoder):
    """Cells of ``stride`` pixels; counts the images it has seen."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, stride=4, multiple=1):
        super().__init__()
        self.stride, self.multiple, self.width, self.patch_width = stride, multiple, WIDTH, WIDTH
        self.spec, self.images, self.sizes = {}, 0, set()
        rng = torch.Generator().manual_seed(0)
        self.waves = torch.randn(WIDTH, 3, generator=rng)
        self.phases = 2 * torch.pi * torch.rand(WIDTH, 1, 1, generator=rng)

    def forward(self, images):
        self.images += len(images)
        self.sizes.add(tuple(images.shape[2:]))
        pooled = F.avg_pool2d(images, self.stride, ceil_mode=True, count_include_pad=False)
        # Random waves: their cosine falls with the distance of what they are made of.
        seen = torch.einsum("wc,bchv->bwhv", self.waves, self.see(pooled))
        cells = torch.cos(seen + self.phases)
        return Features(cells.mean((2, 3)), cells)


class Seeing(Stub):
    """Colours."""

    def see(self, pooled):
        return 2 * pooled


class Blind(Stub):
    """Where a cell is, whatever the picture."""

    def see(self, pooled):
        rows = torch.linspace(-1, 1, pooled.shape[2])[:, None].expand(pooled.shape[2:])
        columns = torch.linspace(-1, 1, pooled.shape[3]).expand(pooled.shape[2:])
        place = torch.stack([rows, columns, torch.zeros_like(rows)])
        return 6 * place.expand(len(pooled), -1, -1, -1)
