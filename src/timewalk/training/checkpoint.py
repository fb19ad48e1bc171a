"""Checkpoints: everything that a training needs to go on as if it had never stopped.

Written to a temporary name and renamed; the newest few are kept, and an older one goes only when
the newer is complete. They lie outside the declared outputs of the workflow, so they survive a
failed job. Read with ``weights_only=True``: no code in a checkpoint ever runs.
"""

import fcntl
import logging
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timewalk.artefacts import FORMAT, atomic_path
from timewalk.errors import UserError, reason

log = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that trains into a folder.

    A killed workflow may leave its training running: the next one waits for it here, then goes
    on from its last checkpoint. The kernel frees the lock of a dead process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process trains into %s: waiting for it to end", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``step-<step>.pt`` with ``state`` and the random states; drop all but ``keep``."""
    path = folder / f"step-{step:09d}.pt"
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "step": step, "random": random_state(), **state}, temporary)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def drop_halves(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for half in folder.glob(".step-*.part.pt"):
        half.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(folder: Path, run_hash: str) -> dict[str, Any] | None:
    """Return the newest checkpoint on the CPU, or None where there is none.

    Raises:
        UserError: the file is damaged, or was made with another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return None
    path = found[-1]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); delete it to resume before it."
        ) from None
    if state["run_hash"] != run_hash:
        raise UserError(
            f"{folder} holds checkpoints of another configuration of this run; "
            "delete the folder to start anew, or give the changed run a name of its own."
        )
    return state


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, as plain data."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Take back what :func:`random_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
