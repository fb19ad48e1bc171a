"""The training log: one JSON object a line for programs, a bar or a line now and then for people.

The log is kept beside the checkpoints while training runs, so that a resumed training goes on in
it: lines after the checkpoint's step are cut off and written again.
"""

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes ``metrics.jsonl``: each step of a short training, 10 000 lines of a long one."""

    def __init__(self, path: Path, first_step: int, total: int, max_lines: int = 10_000) -> None:
        self.every = max(1, math.ceil(total / max_lines))
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_before(path, first_step)
        path.write_text("".join(kept), encoding="utf-8")
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def due(self, step: int) -> bool:
        """Return whether this step gets a line."""
        return step % self.every == 0

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, flushed, so that a killed training keeps its curve."""
        self._file.write(json.dumps(record) + "\n")
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


class Progress:
    """A bar on a terminal, a log line every half minute elsewhere."""

    def __init__(self, total: int, first: int, every_s: float = 30.0) -> None:
        self._bar = tqdm(total=total, initial=first, unit="step", disable=not sys.stderr.isatty())
        self._total = total
        self._every_s = every_s
        self._last = -math.inf

    def update(self, step: int, text: str) -> None:
        """Show that ``step`` is done."""
        self._bar.update(1)
        self._bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self._bar.disable and (now - self._last > self._every_s or step + 1 == self._total):
            log.info("step %d of %d: %s", step + 1, self._total, text)
            self._last = now

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
