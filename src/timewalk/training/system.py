"""How busy the machine is while it trains: processors, memory, GPUs.

Sampled by the training itself, between two steps and a few times a minute, into ``system.jsonl``
beside ``metrics.jsonl``. Nothing is drawn at random and nothing of the training is touched. Names
are those that MLflow's dashboard knows. Processors and memory are the whole machine's, as Linux
counts them in ``/proc``; GPUs are those that the process sees, as NVIDIA's driver counts them.
"""

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from timewalk.artefacts import atomic_path
from timewalk.training.logging import MetricsLog

FILE = "system.jsonl"
PROC = Path("/proc")
DRIVER = "libnvidia-ml.so.1"
"""NVIDIA's management library: it comes with the driver"""


class SystemLog:
    """Writes ``system.jsonl``: a line after the first step, one each so many seconds, one at the
    end.

    Args:
        folder: of the training's own files; None writes nothing.
        first_step: of this process; lines of later steps, which are computed again, are cut off.
        total: the training's steps.
        device: that it computes on.
        every_s: seconds between two lines.
    """

    def __init__(
        self,
        folder: Path | None,
        first_step: int,
        total: int,
        device: torch.device,
        every_s: float = 15.0,
    ) -> None:
        path = Path(os.devnull) if folder is None else folder / FILE
        self._log = MetricsLog(path, first_step, total)
        self._quiet, self._last_step, self._every_s = folder is None, total - 1, every_s
        self._due = float("-inf")
        self._processors = processor_times()
        self._gpus = Gpus() if device.type == "cuda" and not self._quiet else None

    def sample(self, step: int) -> None:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if self._quiet or (now < self._due and step != self._last_step):
            return
        self._due = now + self._every_s
        found = {**self._processor(), **memory(), **(self._gpus.sample() if self._gpus else {})}
        self._log.write({"step": step, "time": time.time(), **found})

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _processor(self) -> dict[str, float]:
        """Return how busy the processors were since the last line."""
        before, self._processors = self._processors, processor_times()
        if before is None or self._processors is None:
            return {}
        busy, whole = (
            after - former for after, former in zip(self._processors, before, strict=True)
        )
        # The kernel's count of waiting for disks goes back at times.
        whole = max(whole, busy)
        return {"cpu_utilization_percentage": 100 * busy / whole} if whole > 0 else {}


def export(folder: Path, output: Path) -> None:
    """Copy a training's ``system.jsonl`` beside its results; without one, remove an older one's."""
    if not (folder / FILE).is_file():
        (output / FILE).unlink(missing_ok=True)
        return
    with atomic_path(output / FILE) as temporary:
        shutil.copyfile(folder / FILE, temporary)


def processor_times() -> tuple[int, int] | None:
    """Return (busy, all) ticks of the machine's processors since its start; None without /proc."""
    if not (PROC / "stat").is_file():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of user and nice.
    ticks = [int(x) for x in (PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def memory() -> dict[str, float]:
    """Return the machine's memory in use in MB and percent; nothing without /proc."""
    if not (PROC / "meminfo").is_file():
        return {}
    lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines}
    used = kib["MemTotal:"] - kib["MemAvailable:"]
    return {
        "system_memory_usage_megabytes": used * 1024 / 1e6,
        "system_memory_usage_percentage": 100 * used / kib["MemTotal:"],
    }


def peak_memory_mb(device: torch.device) -> float:
    """Return the highest memory so far in MB: the GPU's, or on the CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Gpus:
    """The GPUs that this process sees, by NVIDIA's management library; none without it.

    What a device does not tell (a part of one often tells nothing) is left out.
    """

    def __init__(self) -> None:
        try:
            self._nvml: Any = ctypes.CDLL(DRIVER)
        except OSError:  # no driver of NVIDIA's: another maker's GPU
            self._handles: dict[int, ctypes.c_void_p] = {}
            return
        started = self._nvml.nvmlInit_v2() == 0
        self._handles = dict(self._found()) if started else {}

    def _found(self) -> Iterator[tuple[int, ctypes.c_void_p]]:
        for number in range(torch.cuda.device_count()):
            # The numbers of CUDA are those of CUDA_VISIBLE_DEVICES, the library's are not.
            uuid = f"GPU-{torch.cuda.get_device_properties(number).uuid}"
            handle = ctypes.c_void_p()
            if self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) == 0:
                yield number, handle

    def sample(self) -> dict[str, float]:
        """Return use in percent, memory in MB and percent, and power in watts of each GPU."""
        found: dict[str, float] = {}
        for number, handle in self._handles.items():
            rates, room, power = _Rates(), _Memory(), ctypes.c_uint()
            name = f"gpu_{number}"
            if self._nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) == 0:
                found[f"{name}_utilization_percentage"] = float(rates.gpu)
            if self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(room)) == 0:
                found[f"{name}_memory_usage_megabytes"] = room.used / 1e6
                found[f"{name}_memory_usage_percentage"] = 100 * room.used / room.total
            if self._nvml.nvmlDeviceGetPowerUsage(handle, ctypes.byref(power)) == 0:
                found[f"{name}_power_usage_watts"] = power.value / 1000
        return found
