"""An evaluation between epochs: how good the encoder is while it learns.

The encoder of the moment is saved, with the method's head, and evaluated as any saved one is. What
was found and drawn is kept by step, so that a resumed training evaluates nothing twice, and the
best encoder so far is kept.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from timewalk.artefacts import atomic_path, read_json, sha256_file, write_json
from timewalk.config import Validation
from timewalk.encoders import Encoder, encoder_digest, save_encoder, save_head
from timewalk.encoders.files import CARD, HEAD, TENSORS
from timewalk.errors import UserError, nearest
from timewalk.methods.base import Step

log = logging.getLogger(__name__)

Metrics = Mapping[str, float | None]
Entry = dict[str, Any]

NOW, BEST, HISTORY, PICTURES = "encoder", "best", "history.json", "pictures"
FILES = (HEAD, TENSORS, CARD)


class Evaluate(Protocol):
    """Evaluates saved encoders."""

    @property
    def key(self) -> str:
        """Digest of settings and data: what was found under another one does not count."""

    def lower_is_better(self, metric: str) -> bool:
        """Return whether less of a metric is better."""

    def __call__(self, run: Path, pictures: Path) -> Metrics:
        """Return the metrics of the encoder in a folder; what is drawn of it goes to another."""


class BetweenEpochs:
    """Evaluates an encoder before the first epoch, each so many epochs, and after the last.

    Args:
        settings: which evaluation, how often, which metric decides.
        folder: of the encoders and of what was found.
        evaluate: returns the metrics of a saved encoder.
        origin: provenance of the training.
    """

    def __init__(
        self, settings: Validation, folder: Path, evaluate: Evaluate, origin: dict[str, Any]
    ) -> None:
        self.settings, self.folder, self.evaluate, self.origin = settings, folder, evaluate, origin

    def due(self, step: Step) -> bool:
        """Return whether to evaluate before a step; the one behind the last is `total`."""
        every = self.settings.every_steps or self.settings.every * step.steps_per_epoch
        return step.index % every == 0 or step.index == step.total

    def pending(self, total: int) -> bool:
        """Return whether the evaluation behind the last step has not been done."""
        return all(entry["step"] != total for entry in self._history())

    def __call__(
        self, encoder: Encoder, step: Step, head: Mapping[str, Tensor] | None = None
    ) -> dict[str, float | None]:
        """Return the metrics of an encoder as `validation_<name>`; None for what is not finite.

        Args:
            encoder: of the moment.
            step: before which it is.
            head: what the method saves beside it.

        Raises:
            UserError: of the evaluation, or a metric that it does not have.
        """
        save_head(head or {}, self.folder / NOW)
        save_encoder(encoder, self.folder / NOW, self.origin)
        digest = encoder_digest(self.folder / NOW)
        history = self._history()
        metrics = next((x["metrics"] for x in history if x["encoder"] == digest), None)
        if metrics is None:
            pictures = self.folder / PICTURES / f"{step.index:08d}"
            found = self.evaluate(self.folder / NOW, pictures)
            metrics = {
                name: x if x is not None and math.isfinite(x) else None for name, x in found.items()
            }
        entry = {
            "step": step.index,
            "epoch": step.index // step.steps_per_epoch,
            "encoder": digest,
            "encoder_sha256": sha256_file(self.folder / NOW / TENSORS),
            "evaluation": self.settings.evaluation,
            "key": self.evaluate.key,
            "metrics": metrics,
        }
        self._keep_best(entry, [x for x in history if x["step"] < step.index])
        others = [x for x in history if x["step"] != step.index]
        write_json(self.folder / HISTORY, sorted([*others, entry], key=lambda x: x["step"]))
        shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if v is not None)
        log.info("%s after %d steps: %s", self.settings.evaluation, step.index, shown)
        return {f"validation_{name}": value for name, value in metrics.items()}

    def export(self, output: Path) -> None:
        """Copy the history and the best encoder beside the run's own."""
        write_json(output / "validation.json", self._history())
        if self.settings.metric is not None and (self.folder / BEST).is_dir():
            shutil.copytree(self.folder / BEST, output / BEST)

    def _history(self) -> list[Entry]:
        """Return what this evaluation found so far."""
        path = self.folder / HISTORY
        found: list[Entry] = read_json(path) if path.is_file() else []
        return [entry for entry in found if entry.get("key") == self.evaluate.key]

    def _keep_best(self, now: Entry, before: list[Entry]) -> None:
        """Keep the encoder of the moment if it is the best of this training so far."""
        name = self.settings.metric
        if name is None:
            return
        if name not in now["metrics"]:
            raise UserError(
                f"validation.metric: '{self.settings.evaluation}' has no metric "
                f"'{name}'{nearest(name, now['metrics'])}"
            )
        scored = [entry for entry in [*before, now] if entry["metrics"][name] is not None]
        choose = min if self.evaluate.lower_is_better(name) else max
        best = choose(scored, key=lambda entry: entry["metrics"][name], default=None)
        kept = self.folder / BEST
        if best is now:
            for path in filter(Path.exists, (self.folder / NOW / file for file in FILES)):
                with atomic_path(kept / path.name) as temporary:
                    shutil.copyfile(path, temporary)
        elif kept.is_dir() and (best is None or encoder_digest(kept) != best["encoder"]):
            log.warning("%s is of a part of the training that was lost: removed", kept)
            shutil.rmtree(kept)


def forget(output: Path) -> None:
    """Remove what an earlier training of a run exported."""
    (output / "validation.json").unlink(missing_ok=True)
    shutil.rmtree(output / BEST, ignore_errors=True)
