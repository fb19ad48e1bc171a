"""Which GPU is mine: a lease by file lock, since a scheduler on one machine only counts GPUs.

Snakemake's ``gpu`` resource limits how many jobs run, not where. Each job that wants GPUs takes
an exclusive lock on ``gpu<N>.lock`` for as long as it lives; the kernel frees it on exit or death,
``kill -9`` included. Under Slurm the job's GPUs are the pool, and several of ours may run in it.
"""

import fcntl
import getpass
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

log = logging.getLogger(__name__)


def visible_devices() -> list[str]:
    """Return the GPUs of this machine that may be used, as CUDA numbers them.

    An outer ``CUDA_VISIBLE_DEVICES`` is the pool. torch is not asked: it would start CUDA.
    """
    preset = os.environ.get("CUDA_VISIBLE_DEVICES")
    if preset is not None:
        return [part for part in preset.split(",") if part.strip()]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return [str(n) for n, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU")]


@contextmanager
def lease(count: int, poll_s: float = 0.2, folder: Path | None = None) -> Iterator[list[str]]:
    """Hold ``count`` GPUs of this machine and set ``CUDA_VISIBLE_DEVICES`` to them.

    Waits while others hold them, and says for whom. With no GPU at all the list is empty and work
    runs on the CPU. Must be entered before torch starts CUDA.

    Args:
        count: GPUs wanted; 0 hides them all from this process.
        poll_s: seconds between two tries.
        folder: where the lock files are; one folder per user and machine by default.
    """
    pool = visible_devices()
    wanted = min(count, len(pool))
    if wanted < count:
        log.info("%d GPU(s) wanted, %d here: using %s", count, len(pool), wanted or "the CPU")
    job = os.environ.get("SLURM_JOB_ID")
    folder = folder or Path(tempfile.gettempdir()) / f"timewalk-gpu-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        # Each Slurm job may count its GPUs from 0, and means others.
        prefix = f"job{job}-" if job else ""
        locks = {device: folder / f"{prefix}gpu{device}.lock" for device in pool}
        held = _take(locks, wanted, poll_s, stack)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        if held:
            place = f"{os.uname().nodename}, chosen by Slurm" if job else "this machine"
            log.info("on GPU %s of %s", ", ".join(held), place)
        yield held


def _take(locks: dict[str, Path], wanted: int, poll_s: float, keep: ExitStack) -> list[str]:
    begun, waits = time.monotonic(), False
    while True:
        with ExitStack() as attempt:
            held: dict[str, BufferedRandom] = {}
            for device, lock in locks.items():
                if len(held) == wanted:
                    break
                handle = attempt.enter_context(open(lock, "ab+"))
                if _locked(handle):
                    held[device] = handle
            if len(held) == wanted:
                for handle in held.values():
                    _sign(handle)
                keep.push(attempt.pop_all())
                if waits:
                    log.info("waited %.0f s for GPU %s", time.monotonic() - begun, ", ".join(held))
                return list(held)
            if not waits:
                busy = [
                    _holder(device, lock) for device, lock in locks.items() if device not in held
                ]
                log.info("waiting for %d GPU(s): %s", wanted, ", ".join(busy))
                waits = True
        time.sleep(poll_s)


def _locked(handle: BufferedRandom) -> bool:
    """Take the lock of a device, if nobody else has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(handle: BufferedRandom) -> None:
    """Leave the own number in the lock, for those who wait."""
    with suppress(OSError):  # a full disk: they will not know for whom
        handle.truncate(0)
        os.write(handle.fileno(), str(os.getpid()).encode())


def _holder(device: str, lock: Path) -> str:
    process = lock.read_text()
    return f"{device} is held by process {process}" if process else f"{device} is held"
