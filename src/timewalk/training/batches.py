"""Clips to batches, in an order that depends on the seed alone.

Each sample's augmentation draws from a generator made of (seed, epoch, clip), so neither the
number of workers or processes nor an interruption changes what a step sees.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timewalk.data.clips import ClipSource
from timewalk.data.seeds import generator
from timewalk.data.workers import plain_errors
from timewalk.errors import UserError
from timewalk.methods.base import Method
from timewalk.training.distributed import Processes

Sample = tuple[int, int]
Batch = dict[str, Tensor]


class Source(Protocol):
    """Clips, or labelled images, by number. Safe in forked loader workers."""

    def __len__(self) -> int:
        """Return how many there are."""

    def clip(self, index: int, rng: torch.Generator | None = None) -> Any:
        """Return one of them, as the method's ``sample`` takes it."""


class ToSample(Protocol):
    """What a clip goes through: ``Method.sample``."""

    def __call__(self, clip: Any, rng: torch.Generator) -> Batch:
        """Return the views of a clip, and what else the loss reads."""


class ViewsDataset(Dataset[Batch]):
    """Maps (epoch, clip number) to the sample made of that clip."""

    def __init__(self, source: Source, sample: ToSample, seed: int) -> None:
        self.source, self.sample, self.seed = source, sample, seed

    def __getitem__(self, sample: Sample) -> Batch:
        epoch, index = sample
        rng = generator(self.seed, epoch, index)
        return self.sample(self.source.clip(index, rng), rng)


@dataclass(frozen=True)
class Share:
    """What one process computes of a batch.

    Attributes:
        first: its first clip within the batch.
        clips: its number of clips.
        parts: micro-batches, one after the other, all of the same size.
    """

    first: int
    clips: int
    parts: int


def share_of(batch_size: int, group: Processes, micro_batch_size: int | None) -> Share:
    """Divide a batch among processes, and a process's share into micro-batches of equal size.

    Raises:
        UserError: the batch does not divide.
    """
    clips, rest = divmod(batch_size, group.size)
    if rest or not clips:
        fitting = max(n for n in range(1, group.size + 1) if batch_size % n == 0)
        raise UserError(
            f"training.batch_size {batch_size} does not divide among {group.size} processes; make "
            f"it a multiple of {group.size}, or use {fitting} GPU(s)."
        )
    most = micro_batch_size or clips
    parts = next(n for n in range(1, clips + 1) if clips % n == 0 and clips // n <= most)
    return Share(group.rank * clips, clips, parts)


@dataclass(frozen=True)
class SomeOfEach:
    """At most ``most`` clips of each video in an epoch, drawn anew in each.

    Attributes:
        counts: clips of each video; their numbers follow one another.
        most: clips of one video in an epoch.
    """

    counts: Sequence[int]
    most: int

    def __len__(self) -> int:
        return sum(min(count, self.most) for count in self.counts)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Return the numbers of an epoch's clips, in random order."""
        firsts = [0, *accumulate(self.counts)]
        drawn = [
            first + torch.randperm(count, generator=rng)[: self.most]
            for first, count in zip(firsts, self.counts, strict=False)
        ]
        clips = torch.cat(drawn)
        return clips[torch.randperm(len(clips), generator=rng)]


@dataclass(frozen=True)
class OneGroupABatch:
    """Batches whose clips are all of one group, each group with the same chance, as TCC has it.

    An epoch has as many batches as the clips make. A group's clips are dealt out in random order,
    again from the start where they are used up; what is left of a pass is dropped.

    Attributes:
        groups: group of each clip.
        batch_size: clips of a batch.
    """

    groups: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Return the numbers of an epoch's clips, batch after batch."""
        groups = torch.tensor(self.groups)
        clips = [torch.nonzero(groups == group).flatten() for group in groups.unique()]
        decks: list[list[Tensor]] = [[] for _ in clips]
        batches = []
        for _ in range(len(self) // self.batch_size):
            chosen = int(torch.randint(len(clips), (), generator=rng))
            if not decks[chosen]:
                order = clips[chosen][torch.randperm(len(clips[chosen]), generator=rng)]
                whole = len(order) // self.batch_size * self.batch_size
                decks[chosen] = list(order[:whole].split(self.batch_size))
            batches.append(decks[chosen].pop())
        return torch.cat(batches)


ClipsOfEpoch = int | SomeOfEach | OneGroupABatch


def clips_of_epoch(
    source: Source, per_video: int | None, batch_size: int = 1, by_group: bool = False
) -> ClipsOfEpoch:
    """Return what a :class:`BatchSampler` takes its clips from: all, some of each video, or with
    ``by_group`` batches of one group each; only clips of videos have videos and groups.

    Raises:
        UserError: a group has less clips than a batch.
    """
    if by_group and len(set(groups := cast(ClipSource, source).groups())) > 1:
        smallest = min(set(groups), key=groups.count)
        if groups.count(smallest) < batch_size:
            raise UserError(
                f"action {smallest} has {groups.count(smallest)} videos, less than "
                f"training.batch_size {batch_size}, and a batch holds one action; make the batch "
                "smaller, leave the action out, or set one_action_a_batch to false."
            )
        return OneGroupABatch(groups, batch_size)
    if per_video is None:
        return len(source)
    return SomeOfEach(cast(ClipSource, source).counts(), per_video)


def epoch_size(clips: ClipsOfEpoch) -> int:
    """Return the number of clips in an epoch."""
    return clips if isinstance(clips, int) else len(clips)


class BatchSampler:
    """Yields the micro-batches of one process for steps ``first`` to ``total`` - 1.

    Every epoch is a fresh permutation of all clips, or of those drawn for it; its incomplete last
    batch is dropped. The batches of all processes together, in the order of ranks, are those of a
    single process.
    """

    def __init__(
        self,
        clips: ClipsOfEpoch,
        batch_size: int,
        seed: int,
        first: int,
        total: int,
        share: Share | None = None,
    ) -> None:
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.first, self.total = first, total
        self.share = share or Share(0, batch_size, 1)

    def __len__(self) -> int:
        return (self.total - self.first) * self.share.parts

    def __iter__(self) -> Iterator[list[Sample]]:
        steps_per_epoch = epoch_size(self.clips) // self.batch_size
        size = self.share.clips // self.share.parts
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for step in range(self.first, self.total):
            if step // steps_per_epoch != epoch:
                epoch = step // steps_per_epoch
                order = self.order(epoch)
            start = step % steps_per_epoch * self.batch_size + self.share.first
            for part in order[start : start + self.share.clips].split(size):
                yield [(epoch, int(i)) for i in part]

    def order(self, epoch: int) -> Tensor:
        """Return the order of an epoch's clips."""
        rng = generator(self.seed, epoch)
        if isinstance(self.clips, int):
            return torch.randperm(self.clips, generator=rng)
        return self.clips.draw(rng)


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
    source: Source,
    method: Method,
    sampler: BatchSampler,
    workers: int,
    pin: bool,
    signals: SignalsAreTheTrainers,
) -> DataLoader[Batch]:
    """Return the loader over a sampler's batches.

    Workers are forked: they share the method and the index of the clips instead of copying them.
    """
    return DataLoader(
        ViewsDataset(source, method.sample, sampler.seed),
        batch_sampler=sampler,
        collate_fn=method.collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        # Else the loader draws from torch's own generator, and a resume draws once more.
        generator=generator(sampler.seed),
        worker_init_fn=signals,
    )


class OnDevice:
    """Batches on the device, each copied while the one before it is computed.

    Attributes:
        waited_s: seconds spent waiting for data since :meth:`take_waited` was last called.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device) -> None:
        self._loader = iter(loader)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: Batch | None = None
        self.waited_s = 0.0

    def __next__(self) -> Batch:
        if self._stream is None:
            return self._loaded()
        batch, self._ahead = self._ahead or self._copied(), None
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for value in batch.values():
            value.record_stream(current)
        return batch

    def ahead(self) -> None:
        """Start the copy of the next batch, if there is one; called once the work on the one
        before it is under way."""
        if self._stream is None or self._ahead is not None:
            return
        try:
            self._ahead = self._copied()
        except StopIteration:
            return

    def take_waited(self) -> float:
        """Return the seconds of waiting since the last call."""
        waited, self.waited_s = self.waited_s, 0.0
        return waited

    def _copied(self) -> Batch:
        batch = self._loaded()
        with torch.cuda.stream(self._stream):
            return {key: x.to(self._device, non_blocking=True) for key, x in batch.items()}

    def _loaded(self) -> Batch:
        started = time.monotonic()
        try:
            with plain_errors():
                return next(self._loader)
        finally:
            self.waited_s += time.monotonic() - started
