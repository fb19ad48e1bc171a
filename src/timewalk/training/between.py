"""An evaluation between epochs: how good the encoder is while it learns.

The encoder of the moment is saved and evaluated as any saved encoder is. What was found is kept by
step, so that a resumed training evaluates nothing twice, and the best encoder so far is kept.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timewalk.artefacts import atomic_path, read_json, sha256_file, write_json
from timewalk.config import Validation
from timewalk.encoders import Encoder, save_encoder
from timewalk.errors import UserError, nearest
from timewalk.methods.base import Step

log = logging.getLogger(__name__)

Metrics = Mapping[str, float | None]
Evaluate = Callable[[Path], Metrics]
"""takes the folder of a saved encoder"""

NOW, BEST, HISTORY = "encoder", "best", "history.json"


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
        every = self.settings.every * step.steps_per_epoch
        return step.index % every == 0 or step.index == step.total

    def pending(self, total: int) -> bool:
        """Return whether the evaluation behind the last step has not been done."""
        return all(entry["step"] != total for entry in self._history())

    def __call__(self, encoder: Encoder, step: Step) -> dict[str, float | None]:
        """Return the metrics of an encoder as `validation_<name>`.

        Raises:
            UserError: of the evaluation, or a metric that it does not have.
        """
        save_encoder(encoder, self.folder / NOW, self.origin)
        digest = sha256_file(self.folder / NOW / "encoder.safetensors")
        history = self._history()
        metrics = next((x["metrics"] for x in history if x["encoder_sha256"] == digest), None)
        if metrics is None:
            metrics = dict(self.evaluate(self.folder / NOW))
        history = [entry for entry in history if entry["step"] != step.index]
        self._keep_best(metrics, [entry["metrics"] for entry in history])
        entry = {
            "step": step.index,
            "epoch": step.index // step.steps_per_epoch,
            "encoder_sha256": digest,
            "metrics": metrics,
        }
        write_json(
            self.folder / HISTORY, sorted([*history, entry], key=lambda found: found["step"])
        )
        shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if v is not None)
        log.info("%s after %d steps: %s", self.settings.evaluation, step.index, shown)
        return {f"validation_{name}": value for name, value in metrics.items()}

    def export(self, output: Path) -> None:
        """Copy the history and the best encoder beside the run's own."""
        write_json(output / "validation.json", self._history())
        shutil.rmtree(output / BEST, ignore_errors=True)
        if (self.folder / BEST).is_dir():
            shutil.copytree(self.folder / BEST, output / BEST)

    def _history(self) -> list[dict[str, Any]]:
        path = self.folder / HISTORY
        found: list[dict[str, Any]] = read_json(path) if path.is_file() else []
        return found

    def _keep_best(self, metrics: Metrics, before: list[Metrics]) -> None:
        name = self.settings.metric
        if name is None:
            return
        if name not in metrics:
            raise UserError(
                f"validation.metric: '{self.settings.evaluation}' has no metric "
                f"'{name}'{nearest(name, metrics)}"
            )
        found = [x for entry in before if (x := entry.get(name)) is not None]
        value = metrics[name]
        if value is None or any(other >= value for other in found):
            return
        for file in ("encoder.safetensors", "encoder.json"):
            with atomic_path(self.folder / BEST / file) as temporary:
                shutil.copyfile(self.folder / NOW / file, temporary)
