"""The loss that a run was trained by, on random clips of both splits.

Source: TCC's released code, `algo_loss`. Batches are drawn as in training, without augmentation;
statistics are held, nothing is dropped, and the L2 term is left out. A run without an embedder
gives its encoder's summaries, under TCC's loss. Fine-tuning, where asked for, takes some optimiser
steps on the training split before.

Shapes: N videos of a batch, S sampled frames a video, C context frames of each, D embedding size,
L side of a frame in pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from timewalk.config import EvaluationConfig, Positive
from timewalk.config.base import Strict
from timewalk.data.phase_sampling import PhaseSampler
from timewalk.data.phase_views import still_view
from timewalk.data.phases import PhaseVideo, PhaseVideos
from timewalk.data.seeds import generator, seed_of
from timewalk.data.views import normalise
from timewalk.encoders import Encoder, load_encoder, seeded
from timewalk.encoders.embedders import Embedder, load_embedder, side_of_frames
from timewalk.encoders.files import HEAD
from timewalk.encoders.freezing import TrainBase, choose_what_learns
from timewalk.errors import UserError, reason
from timewalk.evaluation.base import Inputs, Result
from timewalk.ops.objectives import Objective, Sequences, build_objective

MEASURED, TUNED = 0, 1
"""purposes of draws"""


class Finetune(Strict):
    """Optimiser steps (Adam) on the training split before the loss is measured."""

    steps: Annotated[int, Field(ge=0)] = 0
    """optimiser steps; 0: none"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """learning rate, constant"""
    train_base: TrainBase = "frozen"
    """what of the encoder learns beside embedder and heads: nothing, its normalisation layers,
    everything"""


class Config(EvaluationConfig):
    """The training loss on random clips."""

    kind: Literal["algorithm_loss"] = "algorithm_loss"
    batches: Positive = 20
    """random batches of each split (`EVAL.VAL_ITERS`)"""
    batch_size: Positive = 2
    """videos in a batch, all of one action (`EVAL.BATCH_SIZE`)"""
    frames_per_clip: Annotated[int, Field(ge=2)] = 20
    """frames sampled of a video (`EVAL.NUM_FRAMES`)"""
    finetune: Finetune = Finetune()
    """fine-tuning before"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of everything drawn"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Measure the loss on both splits.

    Args:
        inputs: the run and the labelled set.
        config: settings.
        output_dir: nothing is written.

    Raises:
        UserError: a damaged head; a size, a batch, videos or labels that do not fit the objective.
    """
    splits = {split: PhaseVideos(inputs.dataset, split) for split in ("train", "test")}
    learner = load_learner(inputs.run, splits["train"].settings, config.frames_per_clip)
    learner.to(inputs.device)
    _check(learner.objective, config)
    for videos in splits.values():
        _groups(videos, config)
    finetune(learner, splits["train"], config)
    learner.eval()
    metrics: dict[str, float | None] = {}
    for number, (split, videos) in enumerate(splits.items()):
        for name, value in measure(learner, videos, config, number).items():
            shown = "loss" if name == "total" else name
            metrics[f"{shown}_{split}"] = value if math.isfinite(value) else None
    tuned = config.finetune
    sampled = f"f{config.frames_per_clip}-b{config.batch_size}x{config.batches}"
    protocol = f"{described(learner.objective.spec)}-{sampled}"
    if tuned.steps > 0:
        protocol += f"-tuned{tuned.steps}-{tuned.train_base}-lr{tuned.learning_rate:g}"
    return Result(protocol, metrics, len(splits["test"]))


def described(spec: Mapping[str, Any]) -> str:
    """Return an objective's name and, sorted, those of its settings that are not the defaults:
    losses under others do not compare."""
    name, settings = spec["name"], {key: x for key, x in spec.items() if key != "name"}
    needed = {"classes": settings["classes"]} if "classes" in settings else {}
    plain = _flat(build_objective({"name": name, **needed}, 1).spec)
    changed = {key: x for key, x in _flat(spec).items() if key in needed or plain.get(key) != x}
    return "-".join([name, *(f"{key}={x}" for key, x in sorted(changed.items()))])


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by key, those of a part as `part.key`; lists as text without spaces."""
    found: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": x for inner, x in _flat(value).items()}
        else:
            found[key] = f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
    return found


class Learner(nn.Module):
    """What a run learns with: clips to embeddings, and their objective.

    Attributes:
        encoder: the base network.
        embedder: None: the encoder's summaries are the embeddings.
        objective: with what it learnt.
        sampler: draws the frames of a clip.
        size: L.
        crop: whether frames are their central squares.
    """

    def __init__(
        self,
        encoder: Encoder,
        embedder: Embedder | None,
        objective: Objective,
        sampler: PhaseSampler,
        size: int,
        crop: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.embedder, self.objective = encoder, embedder, objective
        self.sampler, self.size, self.crop = sampler, size, crop

    def embed(self, images: Tensor, seeds: list[int] | None = None) -> Tensor:
        """Return the embeddings (N, S, D) of uint8 images (N, S C, 3, L, L)."""
        pixels = normalise(images.flatten(0, 1), self.encoder.mean, self.encoder.std)
        context = self.sampler.context
        grid = (len(images), images.shape[1] // context, context)
        if self.embedder is None:
            return self.encoder.summary(pixels).unflatten(0, grid[:2]).float()
        embeddings: Tensor = self.embedder(self.encoder.dense(pixels).unflatten(0, grid), seeds)
        return embeddings.float()


def load_learner(run: Path, settings: dict[str, Any], frames: int) -> Learner:
    """Return a run's networks, in evaluation mode.

    Args:
        run: its folder.
        settings: keys of the labelled set, of which `image_size` counts.
        frames: sampled of a video.

    Raises:
        UserError: a head that is damaged, or an image size that does not fit the encoder.
    """
    encoder, head = load_encoder(run).eval(), load_embedder(run)
    about = head.about if head else {}
    size = side_of_frames(head, settings.get("image_size"))
    if size % encoder.multiple:
        raise UserError(
            f"{run}: frames of {size} pixels do not fit its encoder; set the set's image_size to a "
            f"multiple of {encoder.multiple}."
        )
    if head is None:
        sampler = PhaseSampler(frames=frames, context=1)
        objective = build_objective({"name": "tcc"}, encoder.width)
        return Learner(encoder, None, objective, sampler, size, crop=False).eval()
    try:
        sampler = PhaseSampler(**{**about["sampling"], "frames": frames})
        objective = build_objective(about["objective"], head.embedder.size)
        objective.load_state_dict(head.objective)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{HEAD} of {run} holds an objective that cannot be built ({reason(error)}); train the "
            "run again."
        ) from None
    crop = bool(about.get("crop", False))
    return Learner(encoder, head.embedder, objective, sampler, size, crop).eval()


def _check(objective: Objective, config: Config) -> None:
    for key, found, least in (
        ("batch_size", config.batch_size, objective.least_videos),
        ("frames_per_clip", config.frames_per_clip, objective.least_frames),
    ):
        if found < least:
            raise UserError(
                f"{key} is {found}, but the run's objective {objective.name} needs {least}; raise "
                "it."
            )


def _groups(videos: PhaseVideos, config: Config) -> list[list[int]]:
    """Return the numbers of the videos of each action that fills a batch."""
    actions = np.array([video.action for video in videos])
    groups = [np.flatnonzero(actions == action).tolist() for action in np.unique(actions)]
    filling = [group for group in groups if len(group) >= config.batch_size]
    if not filling:
        raise UserError(
            f"the set '{videos.name}' has no action of batch_size {config.batch_size} videos in a "
            f"split (at most {max(map(len, groups), default=0)}); lower batch_size, or add videos."
        )
    return filling


@dataclass
class Batch:
    """Clips of some videos.

    Attributes:
        images: uint8 (N, S C, 3, L, L).
        steps: (N, S), as drawn.
        lengths: (N,), frames of each video.
        labels: (N, S); None where the objective needs none.
    """

    images: Tensor
    steps: Tensor
    lengths: Tensor
    labels: Tensor | None


def draw(
    learner: Learner, videos: PhaseVideos, config: Config, key: tuple[int, ...]
) -> tuple[Batch, np.random.Generator]:
    """Return a random batch and the generator of the objective's draws: by the key alone."""
    rng = np.random.default_rng(seed_of(config.seed, *key))
    groups = _groups(videos, config)
    group = groups[int(rng.integers(len(groups)))]
    chosen = rng.choice(group, config.batch_size, replace=False).tolist()
    clips = []
    for place, number in enumerate(chosen):
        clips.append(_clip(learner, videos, number, generator(config.seed, *key, place)))
    images, steps, labels = zip(*clips, strict=True)
    batch = Batch(
        torch.stack(images),
        torch.stack(steps),
        torch.tensor([len(videos[number]) for number in chosen]),
        torch.stack(labels) if learner.objective.needs_labels else None,
    )
    return batch, rng


def _clip(
    learner: Learner, videos: PhaseVideos, number: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return images, steps and labels of one video."""
    video, sampler = videos[number], learner.sampler
    if len(video) < sampler.shortest:
        raise UserError(
            f"the set '{videos.name}': video '{video.name}' has {len(video)} frames, but the run "
            f"samples from {sampler.shortest} or more; leave it out."
        )
    drawn = sampler.draw(len(video), rng)
    images = still_view(video.frames(drawn.frames), learner.size, learner.crop)
    labels = None
    if learner.objective.needs_labels:
        sampled = drawn.frames[sampler.context - 1 :: sampler.context]
        labels = _labels(learner.objective, videos, video, sampled)
    return images, torch.tensor(drawn.steps), labels


def _labels(
    objective: Objective, videos: PhaseVideos, video: PhaseVideo, frames: list[int]
) -> Tensor:
    where = f"the set '{videos.name}': video '{video.name}'"
    if video.labels is None:
        raise UserError(
            f"{where} has no labels of phases, which the run's objective {objective.name} needs; "
            "give the set a label_file, or evaluate another run."
        )
    classes = objective.spec["classes"]
    if int(video.labels.max()) >= classes:
        raise UserError(
            f"{where} has a frame labelled {int(video.labels.max())}, but the run knows {classes} "
            "phases; evaluate it on the set that it was trained on."
        )
    return torch.from_numpy(video.labels[frames].astype(np.int64))


def losses(
    learner: Learner, videos: PhaseVideos, config: Config, key: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return the objective's losses of the random batch that a key names."""
    batch, rng = draw(learner, videos, config, key)
    device = next(learner.parameters()).device
    seeds = None
    if learner.training:
        seeds = [seed_of(config.seed, *key, place) for place in range(config.batch_size)]
    sequences = Sequences(
        learner.embed(batch.images.to(device), seeds),
        batch.steps.to(device),
        batch.lengths.to(device),
        None if batch.labels is None else batch.labels.to(device),
    )
    found: dict[str, Tensor] = learner.objective(sequences, rng, learner.training)
    return found


def measure(learner: Learner, videos: PhaseVideos, config: Config, split: int) -> dict[str, float]:
    """Return the means over all batches, by name."""
    exact = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.no_grad(), exact:
        found = [
            losses(learner, videos, config, (MEASURED, split, number))
            for number in range(config.batches)
        ]
    return {key: float(torch.stack([terms[key] for terms in found]).mean()) for key in found[0]}


def finetune(learner: Learner, videos: PhaseVideos, config: Config) -> None:
    """Take the optimiser steps that are asked for, in place.

    Raises:
        UserError: nothing is left that could learn.
    """
    tuned = config.finetune
    if tuned.steps == 0:
        return
    choose_what_learns(learner.encoder, tuned.train_base)
    learning = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    if not learning:
        raise UserError(
            "finetune.train_base is frozen, but the run has nothing else that learns; set it to "
            "only_bn or train_all, or finetune.steps to 0."
        )
    optimizer = torch.optim.Adam(learning, lr=tuned.learning_rate, eps=1e-7)
    learner.train()
    learner.encoder.train(tuned.train_base != "frozen")
    # Drop path draws from torch's own generator.
    with seeded(config.seed):
        for number in range(tuned.steps):
            optimizer.zero_grad()
            losses(learner, videos, config, (TUNED, number))["total"].backward()
            optimizer.step()
