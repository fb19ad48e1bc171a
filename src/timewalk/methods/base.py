"""The contract between a method and the training loop.

A method is written as if there were one process and one batch. The loop knows nothing of any
method: what it needs to know, the method says here. A step's batch may be computed in parts, on
several processes and one after the other; what the method wants to know of the whole batch it
names in :class:`Losses`, and gets it back in ``after_step``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from timewalk.config import Name, Positive, RunConfig, TrainingConfig, Validation
from timewalk.data.clips import Clip, ClipShape
from timewalk.encoders import Encoder


@dataclass(frozen=True)
class Step:
    """Where in the training a loss is computed.

    Attributes:
        index: optimiser step, from 0.
        epoch: pass over the data, from 0.
        total: number of steps of the whole training.
        steps_per_epoch: number of steps of one pass.
        epochs: number of passes, the last one perhaps cut short by `max_steps`.
        seed: the run's seed.
    """

    index: int
    epoch: int
    total: int
    steps_per_epoch: int
    epochs: int
    seed: int = 0

    def rng(self) -> np.random.Generator:
        """Return the generator of this step: the same on every process and after a resume."""
        return np.random.default_rng([self.seed, 0x5354, self.index])


@dataclass
class Losses:
    """What a method's loss returns.

    Attributes:
        total: the scalar to differentiate: a mean over the clips it was given.
        terms: named scalars for the log, detached tensors or numbers.
        means: detached tensors that are means over these clips (of the teacher's output, for a
            centre); ``after_step`` gets their mean over the whole batch.
        rows: detached tensors with a row for each clip or each of its items (for a queue);
            ``after_step`` gets all rows of the whole batch, in the batch's order.
    """

    total: Tensor
    terms: dict[str, Tensor | float] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ParameterGroup:
    """Parameters that share their treatment by the optimiser.

    Attributes:
        parameters: the tensors.
        weight_decay: whether the weight-decay schedule applies (else 0).
        lr_scale: factor on the learning-rate schedule.
    """

    parameters: list[nn.Parameter]
    weight_decay: bool = True
    lr_scale: float = 1.0


class TrainedRunConfig(RunConfig):
    """Keys of a run that trains."""

    dataset: Name
    """name of the training set, of `datasets:`"""
    training: TrainingConfig = TrainingConfig()
    """the training loop"""
    validation: Validation | None = None
    """an evaluation between epochs; null: none"""
    nodes: Positive = 1
    """machines that train together, each with the GPUs that the rule asks for (Slurm); changes
    speed, not results"""


class Method(nn.Module):
    """Base class of all methods. Subclasses set ``Config`` and override what they need.

    Attributes:
        Config: pydantic model of the run's keys.
        trains: False for methods that only bring an encoder.
        needs_labels: whether it learns from labels of frames.
        splits: whether the loss of a batch is the mean of its parts' losses, so that a process may
            compute its share in parts; False where clips of a batch see each other in the loss
            (a joint assignment), which then gathers them itself by ``ops.collectives``.
        batch_statistics: whether results depend on how many clips are computed together although
            the batch splits: a resumed training then keeps to that number.
        unused_parameters: whether some step leaves a learning parameter without a gradient.
        by_group: whether all clips of a batch are of one group of their source (of one action).
        encoder: the network that is exported.
    """

    Config: ClassVar[type[RunConfig]]
    trains: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    splits: bool = True
    batch_statistics: bool = False
    unused_parameters: bool = False
    by_group: bool = False
    encoder: Encoder

    def clip_shape(self) -> ClipShape:
        """Return which frames make a clip, and which clips an epoch; single frames by default."""
        return ClipShape(1, 0)

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the augmented views of one clip.

        Called in the loader's worker. The result is collated by stacking each entry.

        Args:
            clip: uint8 (T, 3, H, W).
            rng: generator of this sample; every draw comes from it.
        """
        raise TypeError(f"{type(self).__name__} does not train and has no views")

    def sample(self, clip: Clip, rng: torch.Generator) -> dict[str, Tensor]:
        """Return what the loader makes of one clip: its views, and what else of it the loss reads
        (which frames they are, their labels). Collated as the views are."""
        return self.views(clip.frames, rng)

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return a batch of what :meth:`sample` returned; called in the loader's worker."""
        batch: dict[str, Tensor] = default_collate(samples)
        return batch

    def device_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the views as :meth:`loss` takes them: the part of the augmentation that is left
        to the device. Called without gradients on a batch of what :meth:`views` returned."""
        return batch

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of a batch of views (each (B, ...), on the method's device).

        Changes nothing of the method: what follows from a batch waits for :meth:`after_step`.
        """
        raise TypeError(f"{type(self).__name__} does not train and has no loss")

    def heads(self) -> dict[str, Tensor]:
        """Return tensors beyond the encoder that evaluations may use: saved beside it."""
        return {}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trainable parameters: those with two or more dimensions that are no biases
        with weight decay, the others without."""
        decay: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_weight = parameter.ndim > 1 and not name.endswith(".bias")
                (decay if is_weight else plain).append(parameter)
        groups = [ParameterGroup(decay), ParameterGroup(plain, weight_decay=False)]
        return [group for group in groups if group.parameters]

    def after_backward(self, step: Step) -> None:
        """Change gradients after clipping and before the optimiser (frozen layers)."""

    def after_step(self, step: Step, joint: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """Update what is no parameter (EMA teacher, centre, queues); return scalars for the log.

        Args:
            step: the step that is done.
            joint: ``means`` and ``rows`` of the whole batch.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return what must survive a resume beyond parameters and buffers."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` returned."""

    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return named pictures, uint8 (H, W, 3), of what the method sees in a clip."""
        return {}

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and tensor of each parameter that learns."""
        return ((n, p) for n, p in self.named_parameters() if p.requires_grad)
