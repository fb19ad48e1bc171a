"""A small task: the mean colour of an image from an encoder's summary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timewalk.encoders import Encoder, from_spec, seeded
from timewalk.finetuning.base import Finetuning, FinetuningConfig
from timewalk.methods.base import Losses, Step


def tiny_vit(depth: int = 3) -> Encoder:
    """Return a ViT with fresh weights of its own seed."""
    spec = {"family": "vit", "width": 16, "depth": depth, "heads": 2, "patch_size": 8}
    with seeded(0):
        return from_spec({**spec, "image_size": 16})


class Network(nn.Module):
    """Encoder and linear layer."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.colour = nn.Linear(encoder.width, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 3)."""
        return self.colour(self.encoder.summary(images))


class Normalised(Network):
    """The same with a normalisation of the answers over the batch."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 3)."""
        return self.norm(super().forward(images))


class Colours:
    """Eight images of one colour each."""

    def __len__(self) -> int:
        return 8

    def clip(self, index: int, rng: torch.Generator | None = None) -> Tensor:
        """Return (3, 16, 16)."""
        return torch.full((3, 16, 16), index / 8)


class Colour(Finetuning):
    """The task."""

    Config = FinetuningConfig
    labels = "masks"

    def build(self, encoder: Encoder, about: Mapping[str, Any]) -> nn.Module:
        """Return the network."""
        return Network(encoder)

    def open(self, manifest: Path) -> Colours:
        """Return the images."""
        return Colours()

    def title(self) -> str:
        """Return what differs from the defaults."""
        return "colour"

    def sample(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the image with a little noise."""
        return {"image": clip + 0.01 * torch.randn(clip.shape, generator=rng)}

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the squared error."""
        images = batch["image"]
        return Losses((self.network(images) - images.mean(dim=(2, 3))).square().mean())
