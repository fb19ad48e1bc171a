"""Several processes that train as one: which one am I, how they meet, what they share.

Processes come from torchrun (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``) or from one srun task a GPU
(``SLURM_PROCID`` …). Each computes an equal share of every batch; nothing else changes.
"""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from timewalk.errors import UserError
from timewalk.ops.collectives import num_processes
from timewalk.training.preemption import record

SCONTROL_S = 60.0
"""seconds that Slurm has for an answer"""


@dataclass(frozen=True)
class Processes:
    """Which of the processes this is.

    Attributes:
        rank: from 0; 0 writes the files.
        size: number of processes on all machines.
        local_rank: number on this machine: which of its GPUs.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


ALONE = Processes()


def processes(environment: Mapping[str, str] = os.environ) -> Processes | None:
    """Return which process a launcher made this one, or None where no launcher did."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Processes(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK", 0)),
        )
    # Only inside an srun step of several tasks: a batch script has the allocation's counts too.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Processes(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
    return None


def scontrol(*words: str) -> str:
    """Return what ``scontrol show`` prints, a line a record.

    Raises:
        UserError: Slurm does not answer.
    """
    command = ["scontrol", "--oneliner", "show", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_S)
        if done.returncode == 0:
            return done.stdout
        why = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    raise UserError(
        f"`{' '.join(command)}` has no answer on {os.uname().nodename} ({why}), and a run with "
        "nodes needs one: have compute nodes allowed to call scontrol, or set nodes to 1."
    )


def hosts_of_job(job: str) -> list[str]:
    """Return the names of all machines of a Slurm job; a step of it knows but its own."""
    nodes = record(scontrol("job", job), job).get("NodeList", "")
    return scontrol("hostnames", nodes).split()


def first_host(nodelist: str) -> str:
    """Return the address of the first host of Slurm's short notation (``node[1-3]``)."""
    name = scontrol("hostnames", nodelist).split()[0]
    # A node's name need not be one that the network knows.
    address = re.search(r"\bNodeAddr=(\S+)", scontrol("node", name))
    return address[1] if address else name


def meeting_port(job: str) -> int:
    """Return the port at which a Slurm job's processes meet: the same for all of them.

    Two jobs on one machine should not meet, and from 32768 on the kernel hands out ports itself.
    """
    return 20000 + int(job) % 10000


@contextmanager
def joined(group: Processes, device: torch.device) -> Iterator[None]:
    """Meet the other processes for as long as this lasts."""
    if group.size == 1:
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = first_host(os.environ["SLURM_STEP_NODELIST"])
        os.environ["MASTER_PORT"] = str(meeting_port(os.environ["SLURM_JOB_ID"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=group.rank,
        world_size=group.size,
        device_id=device if device.type == "cuda" else None,
        # The main process may wait long for the folder; whoever started the processes ends the
        # others when one fails.
        timeout=timedelta(days=7),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies, ``kill -9`` included.

    torchrun starts its workers in sessions of their own: a kill of the job's group passes them by.
    """
    pr_set_pdeathsig = 1
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)


def from_main(value: Any) -> Any:
    """Return what the main process passes; the others' values do not matter."""
    if num_processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean_of_all(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean over processes of some float tensors, in one exchange."""
    if num_processes() == 1 or not values:
        return dict(values)
    flat = torch.cat([value.float().flatten() for value in values.values()])
    dist.all_reduce(flat)
    flat /= num_processes()
    parts = flat.split([value.numel() for value in values.values()])
    return {
        key: part.reshape(value.shape).to(value.dtype)
        for (key, value), part in zip(values.items(), parts, strict=True)
    }


class SumOfAll(torch.autograd.Function):
    """The sum over processes of a tensor, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Return the sum, in a tensor of its own."""
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of this process's tensor."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_of_all(value: Tensor) -> Tensor:
    """Return the sum over processes of a float tensor; gradients go through it."""
    total: Tensor = SumOfAll.apply(value)
    return total


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batch of all processes, where torch's own needs GPUs."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any (N, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised (N, C, ...)."""
        if self.training and num_processes() > 1:
            output = self._over_processes(input)
        else:
            output = super().forward(input)
        # timm's normalisations carry their activation with them.
        for name in ("drop", "act"):
            output = getattr(self, name, nn.Identity())(output)
        return output

    def _over_processes(self, input: Tensor) -> Tensor:
        dims = [0, *range(2, input.ndim)]
        # Half precision holds no sum of so many squares.
        exact = input.to(torch.promote_types(input.dtype, torch.float32))
        # Regions of images, and images of many sizes, are not as many on each process.
        count = sum_of_all(exact.new_tensor(exact.numel() / exact.shape[1]))
        mean = sum_of_all(exact.sum(dims)) / count
        shape = (1, -1, *[1] * (exact.ndim - 2))
        centred = exact - mean.view(shape)
        variance = sum_of_all(centred.square().sum(dims)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum or 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def share_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch normalisation see the batch of all processes; parameters keep their names."""
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.__class__ = JointBatchNorm
    return module
