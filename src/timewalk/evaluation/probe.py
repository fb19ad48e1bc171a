"""A head that is trained on frozen features: its checkpoint, its curve, its file.

What the linear probe and the segmentation heads share.
"""

import logging
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from timewalk.artefacts import atomic_path
from timewalk.errors import UserError, reason
from timewalk.evaluation.base import write_csv

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"

Head = TypeVar("Head", bound=nn.Module)
Row = dict[str, float | None]


@dataclass
class Probe(Generic[Head]):
    """The head, its optimiser and the curve so far: what a checkpoint holds."""

    head: Head
    optimizer: torch.optim.SGD
    rows: list[Row] = field(default_factory=list)

    def save(self, work: Path, key: str) -> None:
        """Write a checkpoint that goes with a key."""
        state = {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rows": self.rows,
            "key": key,
        }
        with atomic_path(work / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def resume(self, work: Path, key: str) -> None:
        """Go on from the checkpoint of this key, if there is one.

        Raises:
            UserError: the file is damaged.
        """
        path = work / CHECKPOINT
        if not path.is_file():
            return
        state = _read(path)
        if state["key"] != key:
            log.warning("%s belongs to other settings, another encoder or other images: anew", path)
            return
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows = state["rows"]
        log.info("going on after epoch %d", len(self.rows))

    def write(self, folder: Path, columns: Sequence[str]) -> list[Path]:
        """Write ``curve.csv`` of some columns and ``classifier.safetensors``."""
        values = [[row[name] for name in columns] for row in self.rows]
        curve = write_csv(folder / "curve.csv", [columns, *values])
        classifier = folder / "classifier.safetensors"
        tensors = {key: value.cpu().contiguous() for key, value in self.head.state_dict().items()}
        with atomic_path(classifier) as temporary:
            save_file(tensors, temporary)
        return [curve, classifier]


def _read(path: Path) -> dict[str, Any]:
    try:
        if not zipfile.is_zipfile(path):
            raise EOFError("it is cut off")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); delete it to start anew."
        ) from None
    return state
