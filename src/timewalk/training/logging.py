"""The training log: one JSON object a line for programs, a bar or a line now and then for people.

The log is kept beside the checkpoints while training runs, so that a resumed training goes on in
it: lines after the checkpoint's step are cut off and written again.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from timewalk.artefacts import write_text

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes ``metrics.jsonl``: each step of a short training, 10 000 lines of a long one."""

    def __init__(self, path: Path, first_step: int, total: int, max_lines: int = 10_000) -> None:
        self.every = max(1, math.ceil(total / max_lines))
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_before(path, first_step)
        if kept:
            write_text(path, "".join(kept))
        else:
            path.write_text("", encoding="utf-8")
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def due(self, step: int) -> bool:
        """Return whether this step gets a line."""
        return step % self.every == 0

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, flushed, so that a killed training keeps its curve.

        What is not finite becomes null: JSON has no word for it.
        """
        plain = {k: x if x is None or math.isfinite(x) else None for k, x in record.items()}
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_before(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A killed process may leave half a line at the end: it has no newline.
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]


class EpochMeans:
    """Means of all logged numbers over an epoch, as `epoch_<name>`; survives a resume."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, record: Mapping[str, float | Tensor]) -> None:
        """Add a step's numbers, without waiting for a GPU; those that are not finite are left out
        (a gradient's norm in a step that fp16 skips)."""
        for key, value in record.items():
            number = torch.as_tensor(value).detach().double()
            finite = number.isfinite()
            number = torch.where(finite, number, 0.0)
            if key in self._sums:
                number, finite = number + self._sums[key], finite + self._counts[key]
            self._sums[key], self._counts[key] = number, finite.double()

    def take(self) -> dict[str, float | None]:
        """Return the means of the epoch that ends, and begin a new one."""
        state = self.state()
        self._sums, self._counts = {}, {}
        return {
            f"epoch_{key}": total / count if count else None
            for key, (total, count) in state.items()
        }

    def state(self) -> dict[str, list[float]]:
        """Return what a checkpoint keeps: sum and count of each number."""
        return {key: [float(x), float(self._counts[key])] for key, x in self._sums.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Take back what :meth:`state` returned."""
        kept = {
            key: torch.tensor(pair, dtype=torch.float64).unbind() for key, pair in state.items()
        }
        self._sums = {key: total for key, (total, _) in kept.items()}
        self._counts = {key: count for key, (_, count) in kept.items()}


class SlowData:
    """Warns when waiting for data takes more than a tenth of the time."""

    def __init__(self, every_s: float = 60.0, share: float = 0.1) -> None:
        self._every_s, self._share = every_s, share
        self._data_s = self._step_s = 0.0

    def add(self, data_s: float, step_s: float) -> None:
        """Count a step."""
        self._data_s, self._step_s = self._data_s + data_s, self._step_s + step_s
        total = self._data_s + self._step_s
        if total < self._every_s:
            return
        if self._data_s > self._share * total:
            log.warning(
                "%.0f %% of the last %.0f s went into waiting for data: give the job more threads, "
                "lower the data set's frames.short_side, or leave colours to the GPU where the "
                "method can (training.augment)",
                100 * self._data_s / total,
                total,
            )
        self._data_s = self._step_s = 0.0


class Progress:
    """A bar on a terminal, a log line every half minute elsewhere."""

    def __init__(
        self, total: int, first: int, every_s: float = 30.0, *, quiet: bool = False
    ) -> None:
        hidden = quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=first, unit="step", disable=hidden)
        self._quiet = quiet
        self._total = total
        self._every_s = every_s
        self._last = -math.inf

    def update(self, step: int, text: str) -> None:
        """Show that ``step`` is done."""
        self._bar.update(1)
        self._bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self._quiet:
            return
        if self._bar.disable and (now - self._last > self._every_s or step + 1 == self._total):
            log.info("step %d of %d: %s", step + 1, self._total, text)
            self._last = now

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
