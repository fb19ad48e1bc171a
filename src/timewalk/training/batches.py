"""Clips to batches, in an order that depends on the seed alone.

Each sample's augmentation draws from a generator made of (seed, epoch, clip), so neither the
number of workers nor an interruption changes what a step sees.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timewalk.data.clips import ClipSource
from timewalk.methods.base import Method

Sample = tuple[int, int]


def generator(*key: int) -> torch.Generator:
    """Return a generator for a key of non-negative numbers: the same everywhere, always."""
    # The length belongs to the key: a seed sequence takes (1, 2) and (1, 2, 0) for the same.
    word = np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) & (2**63 - 1))


class Views(Protocol):
    """What a sample goes through: ``Method.views``."""

    def __call__(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the views of a clip."""


class ViewsDataset(Dataset[dict[str, Tensor]]):
    """Maps (epoch, clip number) to the views of that clip."""

    def __init__(self, source: ClipSource, views: Views, seed: int) -> None:
        self.source, self.views, self.seed = source, views, seed

    def __getitem__(self, sample: Sample) -> dict[str, Tensor]:
        epoch, index = sample
        rng = generator(self.seed, epoch, index)
        return self.views(self.source.clip(index).frames, rng)


class BatchSampler:
    """Yields the batches of steps ``first`` to ``total`` - 1, each a list of samples.

    Every epoch is a fresh permutation of all clips; its incomplete last batch is dropped.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, first: int, total: int) -> None:
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.first, self.total = first, total

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[Sample]]:
        steps_per_epoch = self.clips // self.batch_size
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for step in range(self.first, self.total):
            if step // steps_per_epoch != epoch:
                epoch = step // steps_per_epoch
                order = self.order(epoch)
            start = step % steps_per_epoch * self.batch_size
            yield [(epoch, int(i)) for i in order[start : start + self.batch_size]]

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of all clips in an epoch."""
        return torch.randperm(self.clips, generator=generator(self.seed, epoch))


class SignalsAreTheTrainers:
    """Keeps SIGTERM and SIGUSR1 to the whole job from killing the workers of a step that is to
    be finished; once :meth:`close` is called, workers end as usual."""

    def __init__(self) -> None:
        self._closing = multiprocessing.get_context("fork").RawValue("b", 0)

    def close(self) -> None:
        """Let workers be terminated from now on."""
        self._closing.value = 1

    def __call__(self, worker: int) -> None:
        """Set up a worker, in the worker."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _on_term(self, number: int, frame: object) -> None:
        if self._closing.value:
            os._exit(0)


def batches(
    source: ClipSource,
    method: Method,
    sampler: BatchSampler,
    workers: int,
    pin: bool,
    signals: SignalsAreTheTrainers,
) -> DataLoader[dict[str, Tensor]]:
    """Return the loader over a sampler's batches.

    Workers are forked: they share the method and the index of the clips instead of copying them.
    """
    return DataLoader(
        ViewsDataset(source, method.views, sampler.seed),
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        # Else the loader draws from torch's own generator, and a resume draws once more.
        generator=generator(sampler.seed),
        worker_init_fn=signals,
    )
