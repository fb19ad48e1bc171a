"""What TCC, SaL, TCN, their combination and the supervised baseline share: network, data, L2 term.

A base network makes a map of every frame, an embedder one vector of the maps of a frame and its
context; an objective (ops/objectives.py) says what the vectors of a batch of videos are trained
for. Source: TCC and its released code.

Shapes: N videos, S sampled frames a video, C context frames (the sampled one last), D embedding
size, L side of a frame in pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from timewalk.data.clips import Clip, ClipShape
from timewalk.data.phase_sampling import PhaseSampler
from timewalk.data.phase_views import (
    PhaseAugmentation,
    coloured,
    draw_colours,
    phase_view,
    still_view,
)
from timewalk.data.views import normalise
from timewalk.encoders import build_encoder, seeded
from timewalk.encoders.embedders import build_embedder, embedder_tensors
from timewalk.encoders.freezing import choose_what_learns
from timewalk.errors import UserError, reason
from timewalk.methods.base import Losses, Method, Step
from timewalk.methods.phases_config import PhasesConfig
from timewalk.methods.pictures import self_similarity_picture
from timewalk.ops.collectives import gathered, rows_of_processes
from timewalk.ops.distillation import full
from timewalk.ops.objectives import Sequences, build_objective


class Phases(Method):
    """Base network, embedder and objective. Subclasses set ``Config``.

    Attributes:
        embedder: maps of frames with their context to embeddings; part of the head.
        objective: with what it learns; likewise.
        sampler: draws the frames of a clip.
    """

    config: PhasesConfig
    # The videos of a batch are compared with each other, and meet in batch norms' statistics.
    splits = False

    def __init__(self, config: PhasesConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, config.seed)
        self.embedder = build_embedder(self._embedder_spec(), config.seed + 1)
        with seeded(config.seed + 2):
            self.objective = build_objective(config.objective(), config.embedder.size)
        self._set_momentum(config.batch_norm_momentum)
        self.sampler = PhaseSampler(
            frames=config.frames_per_clip,
            strategy=config.sampling,
            offset=config.offset,
            stride=config.stride,
            context=config.context,
            context_step=config.context_step,
            positive_window=config.positive_window(),
        )
        keys = config.augmentation
        self.augmentation = PhaseAugmentation(**keys.model_dump())
        self.by_group = config.one_action_a_batch
        # These networks have layers behind the map.
        behind = self.encoder.spec["family"] in ("resnet", "timm")
        self.unused_parameters = behind and config.train_base != "frozen"
        choose_what_learns(self.encoder, config.train_base)
        self.train()

    def _set_momentum(self, momentum: float | None) -> None:
        if momentum is None:
            return
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum

    def _embedder_spec(self) -> dict[str, Any]:
        keys = self.config.embedder
        shared = {
            "kind": keys.kind,
            "inputs": self.encoder.patch_width,
            "size": keys.size,
            "layers": [list(layer) for layer in keys.layers],
            "batch_norm": keys.batch_norm,
            "normalise": keys.normalise,
        }
        if keys.kind == "convgru":
            return {**shared, "gru": list(keys.gru), "dropout": keys.base_dropout}
        grid = self._grid()
        return {
            **shared,
            "context": self.config.context,
            "flatten": keys.flatten,
            "map_size": grid if keys.flatten == "flatten" else None,
            "fc": [list(layer) for layer in keys.fc_layers],
            "base_dropout": keys.base_dropout,
            "base_dropout_spatial": keys.base_dropout_spatial,
            "fc_dropout": keys.fc_dropout,
        }

    @torch.no_grad()
    def _grid(self) -> list[int]:
        """Return rows and columns of the encoder's map."""
        size = self.config.image_size
        self.encoder.eval()
        try:
            maps = self.encoder.dense(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"image_size is {size}, which encoder.name {self.config.encoder.name} does not "
                f"take ({reason(error)}); set it to the network's own."
            ) from None
        return list(maps.shape[-2:])

    def train(self, mode: bool = True) -> "Phases":
        """Set the mode of all but a frozen base network, whose statistics are held."""
        super().train(mode)
        if self.config.train_base == "frozen":
            self.encoder.eval()
        return self

    def clip_shape(self) -> ClipShape:
        """Return the frames of a clip: those that are sampled, and their context."""
        sampler = self.sampler
        pairs = 1 if sampler.positive_window is None else 2
        return ClipShape(
            frames=pairs * sampler.frames * sampler.context,
            step=0,
            sampler=sampler,
            fraction=self.config.dataset_fraction,
        )

    def sample(self, clip: Clip, rng: torch.Generator) -> dict[str, Tensor]:
        """Return `images`, uint8 (S C, 3, L, L), `colours` (4,), which the device applies, `steps`
        (S,), `length`, `seed` of the dropout, and where the objective needs them `labels` (S,)."""
        seed = torch.randint(2**63 - 1, (), generator=rng)
        sample = {
            "images": phase_view(clip.frames, self.config.image_size, self.augmentation, rng),
            "colours": draw_colours(self.augmentation, rng),
            "steps": clip.steps,
            "length": torch.tensor(clip.length),
            "seed": seed,
        }
        if self.objective.needs_labels:
            sample["labels"] = self._labels(clip)
        return sample

    def _labels(self, clip: Clip) -> Tensor:
        """Return the label of each sampled frame: that of the last one of its context."""
        where = f"the data set '{self.config.dataset}': video '{clip.video}'"
        if clip.labels is None or bool((clip.labels < 0).all()):
            raise UserError(
                f"{where} has no labels of its frames, from which `method: {self.config.method}` "
                "learns; choose a data set with labelled phases, or a method that needs none (tcc)."
            )
        classes = self.objective.spec["classes"]
        if int(clip.labels.max()) >= classes:
            raise UserError(
                f"{where} has a frame labelled {int(clip.labels.max())}, but the run's `classes` "
                f"is {classes}; set it to the data set's number of phases."
            )
        return clip.labels[self.config.context - 1 :: self.config.context]

    def device_views(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch with its images in other colours and normalised."""
        images = coloured(batch["images"], batch["colours"], self.augmentation)
        return {**batch, "images": self._normalised(images)}

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise images on 0..1."""
        mean, std = (
            torch.tensor(values, device=images.device).view(3, 1, 1)
            for values in (self.encoder.mean, self.encoder.std)
        )
        return (images - mean) / std

    def embed(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return the embeddings (N, S, D) of normalised images (N, S C, 3, L, L).

        Args:
            images: of each sampled frame its context, oldest first.
            seeds: of the N clips, for the dropout; None: no dropout.
        """
        frozen = self.config.train_base == "frozen"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            maps = self.encoder.dense(images.flatten(0, 1))
        grid = (len(images), images.shape[1] // self.config.context, self.config.context)
        embeddings: Tensor = self.embedder(maps.unflatten(0, grid), seeds)
        return embeddings

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of the whole batch from this process's share of it.

        uint8 images are normalised here; floats are taken as they are.
        """
        images = batch["images"]
        if images.dtype == torch.uint8:
            images = normalise(images, self.encoder.mean, self.encoder.std)
        seeds = batch["seed"].tolist() if self.training else None
        embeddings = full(self.embed(images, seeds))
        with torch.autocast(images.device.type, enabled=False):
            sequences = Sequences(
                gathered(embeddings),
                rows_of_processes(batch["steps"]),
                rows_of_processes(batch["length"]),
                rows_of_processes(batch["labels"]) if "labels" in batch else None,
            )
            found = self.objective(sequences, step.rng(), self.training)
            l2 = self.l2_term()
        total = found.pop("total")
        terms: dict[str, Tensor | float] = {"objective": total.detach(), "l2": l2.detach()}
        return Losses(total + l2, {**terms, **{key: x.detach() for key, x in found.items()}})

    def l2_term(self) -> Tensor:
        """Return the mean over kernels and biases of their weighted sums of squares."""
        counted = [
            *self.encoder.regularised(),
            *self.embedder.regularised(),
            *self.objective.regularised(),
        ]
        sums = torch.stack([parameter.square().sum() for parameter in counted])
        return self.config.l2_weight * sums.mean()

    def heads(self) -> dict[str, Tensor]:
        """Return embedder and objective, with what it takes to embed a video."""
        about = {
            "embedder": self.embedder.spec,
            "objective": self.objective.spec,
            "image_size": self.config.image_size,
            "context": self.config.context,
            "context_step": self.config.context_step,
            "sampling": asdict(self.sampler),
            "crop": self.config.augmentation.crop,
        }
        return embedder_tensors(self.embedder, self.objective.state_dict(), about)

    @torch.no_grad()
    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return `self_similarity`: the sampled frames of a clip, and below them how much alike the
        embeddings of any two are."""
        config, training = self.config, self.training
        frames = still_view(clip, config.image_size, config.augmentation.crop)
        images = normalise(frames, self.encoder.mean, self.encoder.std)
        self.eval()
        embeddings_SD = self.embed(images.unsqueeze(0))[0]
        self.train(training)
        sampled = frames[config.context - 1 :: config.context]
        pixels_SLLC = sampled.permute(0, 2, 3, 1).cpu().numpy()
        return {"self_similarity": self_similarity_picture(pixels_SLLC, full(embeddings_SD).cpu())}
