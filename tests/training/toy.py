"""A small method and clips in memory: enough to test the loop without any of the real ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from timewalk.config import RunConfig, TrainingConfig
from timewalk.data.clips import ClipShape
from timewalk.methods.base import Losses, Method, TrainedRunConfig


class ToyConfig(TrainedRunConfig):
    poison_step: int = -1


class Toy(Method):
    """Regresses a noisy view's mean; keeps an EMA in a buffer and a count in its state."""

    Config: ClassVar[type[RunConfig]] = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.config = config
        self.encoder = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("ema", torch.zeros(8, 12))
        self.seen = 0

    def clip_shape(self):
        return ClipShape(2, 1)

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        clip = clip.float() / 255
        return {
            "x": (clip + 0.1 * torch.rand(clip.shape, generator=rng)).flatten(),
            "y": clip.mean(),
        }

    def loss(self, batch, step) -> Losses:
        self.seen += len(batch["x"])
        out = self.encoder(batch["x"].reshape(len(batch["x"]), -1)[:, :12]).squeeze(1)
        total = (out - batch["y"]).square().mean()
        if step.index == self.config.poison_step:
            total = total * float("nan")
        return Losses(total, {"draw": float(step.rng().random())})

    def after_step(self, step, joint):
        self.ema.lerp_(self.encoder[0].weight.detach(), 0.1)
        return {"seen": self.seen}

    def state(self):
        return {"seen": self.seen}

    def load_state(self, state):
        self.seen = state["seen"]


@dataclass
class Clip:
    frames: Tensor


class Clips:
    """Twenty clips of two 2x3 frames."""

    def __init__(self, count: int = 20) -> None:
        rng = torch.Generator().manual_seed(5)
        self.data = torch.randint(0, 256, (count, 2, 3, 2, 3), dtype=torch.uint8, generator=rng)

    def __len__(self) -> int:
        return len(self.data)

    def clip(self, index: int, rng: torch.Generator | None = None) -> Clip:
        return Clip(self.data[index])


def toy_config(**training) -> ToyConfig:
    poison = training.pop("poison_step", -1)
    return ToyConfig(
        method="toy",
        dataset="toys",
        poison_step=poison,
        training=TrainingConfig(**({"epochs": 3, "batch_size": 4, "warmup_epochs": 1} | training)),
    )
