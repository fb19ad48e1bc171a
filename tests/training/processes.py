"""Trainings of miniatures in one or several processes, on the CPU by gloo."""

import multiprocessing
import os
from contextlib import contextmanager

import torch

from tests.ports import free_port
from timewalk.data.clips import Clip
from timewalk.data.seeds import generator
from timewalk.methods import get_method
from timewalk.training.checkpoint import checkpoints
from timewalk.training.distributed import ALONE, Processes, joined
from timewalk.training.loop import Machine, Trainer

CPU = torch.device("cpu")


LENGTH = 40
"""frames of the videos that clips are said to be of"""


def as_clip(frames, sampler=None, number=0):
    """Return frames as a clip of a video in three phases, its steps drawn by a method's sampler."""
    steps = range(len(frames))
    if sampler is not None:
        steps = sampler.draw(LENGTH, generator(number)).steps
    return Clip(
        frames,
        times=torch.arange(len(frames), dtype=torch.float64),
        video="smooth",
        start=0,
        steps=torch.tensor(steps),
        length=LENGTH,
        labels=3 * torch.arange(len(frames)) // len(frames),
    )


class SmoothClips:
    """Smooth random clips in memory: something to learn from, unlike noise."""

    def __init__(self, count, frames, sampler=None, size=(48, 64)):
        self.sampler = sampler
        rng = torch.Generator().manual_seed(3)
        small = torch.rand(count * frames, 3, 6, 8, generator=rng)
        large = torch.nn.functional.interpolate(small, size=size, mode="bilinear")
        self.data = (large * 255).to(torch.uint8).unflatten(0, (count, frames))

    def __len__(self):
        return len(self.data)

    def counts(self):
        return [len(self.data)]

    def clip(self, index, rng=None):
        return as_clip(self.data[index], self.sampler, index)

    def groups(self):
        return [0] * len(self.data)


def miniature(name, **training):
    """Return a method's miniature that trains four steps on batches of four by plain SGD.

    Without drop path, whose draws are each process's own; by SGD, since Adam turns the noise of
    gradients that are zero into steps as large as any.
    """
    config = get_method(name).Config
    keys = config.miniature()
    steps = {"batch_size": 4, "epochs": 2, "warmup_epochs": 0, "precision": "fp32"}
    rates = {"optimizer": "sgd", "schedule": "cosine", "scale_learning_rate": True}
    rates |= {"learning_rate": 3.2, "clip_grad": 0.3}
    keys["training"] = {**keys["training"], **steps, **rates, **training}
    keys["encoder"] = {**keys["encoder"], "drop_path": 0.0}
    return config.model_validate(keys)


@contextmanager
def float64():
    """Have new tensors be float64, in processes that are started here too.

    At the kinks of ReLU float32's rounding, which is each processor's own, decides on whole
    gradients.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def train(config, folder, group=ALONE, clips=9):
    """Train in this process and return the trainer."""
    torch.set_num_threads(1)
    method = get_method(config.method)(config)
    shape = method.clip_shape()
    source = SmoothClips(clips, shape.frames, shape.sampler)
    trainer = Trainer(method, config, source, folder, Machine(CPU, 0, group), {"inputs": {}})
    trainer.run()
    return trainer


def train_in_processes(config, folder, size):
    """Train in ``size`` processes; return the weights that each of them ends with."""
    port = str(free_port())
    # One server imports torch once; a plain fork would take the parent's autograd threads along.
    multiprocessing.set_forkserver_preload(["torch", "timm", "tests.training.processes"])
    context = multiprocessing.get_context("forkserver")
    kind = torch.get_default_dtype()
    workers = [
        context.Process(target=_worker, args=(config, folder, Processes(n, size, n), port, kind))
        for n in range(size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0] * size
    return [torch.load(folder / f"rank-{n}.pt", weights_only=True) for n in range(size)]


def _worker(config, folder, group, port, kind):
    torch.set_default_dtype(kind)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with joined(group, CPU):
        trainer = train(config, folder, group)
        torch.save(trainer.method.state_dict(), folder / f"rank-{group.rank}.pt")


def moments(folder):
    """Return the optimiser's state in the newest checkpoint, flat."""
    state = torch.load(checkpoints(folder)[-1], weights_only=True)["optimizer"]["state"]
    return {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items()}
