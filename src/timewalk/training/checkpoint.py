"""Checkpoints: everything that a training needs to go on as if it had never stopped.

Written to a temporary name and renamed; the newest few are kept, and an older one goes only when
the newer is complete. They lie outside the declared outputs of the workflow, so they survive a
failed job. Read with ``weights_only=True``: no code in a checkpoint ever runs.
"""

import logging
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from timewalk.artefacts import atomic_path, sha256_json
from timewalk.config.changes import RESUMABLE, flat
from timewalk.errors import UserError, reason

log = logging.getLogger(__name__)

FORMAT = 2
"""rises when older checkpoints can no longer be read"""

KEPT = "encoder.safetensors"
"""a copy of what a finished training has made: the workflow deletes its own before it runs again"""


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


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint on the CPU, or None where there is none.

    Raises:
        UserError: the file is damaged, or was made by a version whose checkpoints are others.
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
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path} was made by another version of timewalk; finish the run with that version, or "
            f"delete {folder} to start anew."
        )
    return state


def find_own(folder: Path, inputs: list[str]) -> None:
    """Let a training on other data, or from other weights, start anew beside the one before.

    Checkpoints of other inputs are moved to ``<folder>-<digest of those>``; checkpoints of these
    inputs come back from there.

    Args:
        folder: of the checkpoints.
        inputs: digests of the data and the weights now, sorted.
    """
    state = load_checkpoint(folder)
    if state is not None and state["inputs"] != inputs:
        aside = _aside(folder, state["inputs"])
        log.warning("the data or the weights have changed: older checkpoints go to %s", aside)
        _move(folder, aside)
        state = None
    own = _aside(folder, inputs)
    if state is not None:
        # A call before this one was killed between two files; of those in both, these are newer.
        for path in folder.iterdir():
            (own / path.name).unlink(missing_ok=True)
    _move(own, folder)


def _aside(folder: Path, inputs: list[str]) -> Path:
    return folder.with_name(f"{folder.name}-{sha256_json(inputs)[:8]}")


def _move(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    target.mkdir(exist_ok=True)
    # Checkpoints go last: until then the next attempt finds them, and moves the rest.
    for path in sorted(source.iterdir(), key=lambda path: path.match("step-*")):
        if path.name != "lock":
            path.replace(target / path.name)


def check_same_run(folder: Path, state: dict[str, Any], config: Any, inputs: list[str]) -> None:
    """Refuse a checkpoint of other settings or data; keys that are new have their defaults.

    Args:
        folder: of the checkpoint, for the message.
        state: the checkpoint.
        config: the run's or the fine-tuning's settings now, a pydantic model.
        inputs: digests of its data now, sorted.
    """
    what = ""
    try:
        before = type(config).model_validate(state["config"])
    except ValidationError:
        what = "its settings are no longer possible"
    else:
        old, new = (
            dict(flat(settings.model_dump(mode="json", exclude=RESUMABLE)))
            for settings in (before, config)
        )
        changed = [key for key in new if old.get(key) != new[key]]
        if changed:
            what = f"{changed[0]} was {old.get(changed[0])} and is {new[changed[0]]}"
        elif state["inputs"] != inputs:
            what = "its data or the weights that it began with have changed"
    if what:
        kept = folder / KEPT
        raise UserError(
            f"{folder} holds checkpoints of another configuration of this run ({what}); give the "
            "changed run a name of its own, put back what it was"
            + (f" (its encoder is kept as {kept})" if kept.exists() else "")
            + f", or delete {folder.parent}, whose results are of the other configuration too, to "
            "start anew."
        )


def same_together(folder: Path, state: dict[str, Any], together: int, ended: bool) -> int:
    """Return how many images of a step a checkpoint's training computed at once.

    For networks with batch normalisations, which see no more than these.

    Args:
        folder: of the checkpoint, for the message.
        state: the checkpoint.
        together: images that are computed at once now.
        ended: whether the checkpoint is of the last step: nothing is computed any more.

    Raises:
        UserError: there are as many no longer, and steps are left.
    """
    before: int = state["together"]
    if before != together and not ended:
        raise UserError(
            f"{folder} holds checkpoints of a training whose batch normalisations saw {before} "
            f"images at once and would see {together}; go on with the training.micro_batch_size "
            f"and the number of processes that it began with, or delete {folder.parent} to start "
            "anew."
        )
    return before


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
        # There may be fewer devices than before.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
