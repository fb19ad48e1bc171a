"""Why a result is missing: the sentence at the end of a job's log."""

import re
from pathlib import Path

TAIL = 16 * 1024
"""bytes at the end of a log that are read"""
SENTENCE = re.compile(r"^timewalk [a-z]+: ", re.MULTILINE)
RECORD = re.compile(r"^\d{4}-\d\d-\d\d ", re.MULTILINE)
"""how a line of a log begins"""
RAISED = re.compile(r"^Traceback \(most recent call last\):\n(?:.*\n)*?(\w[\w.]*(?:: .*)?)$", re.M)


def logs_of(results: Path) -> Path | None:
    """Return the folder of the logs of a folder of results; None where there is none.

    The workflow writes them into ``logs/`` of its working directory, under the results' own path.
    """
    absolute = results.absolute()
    for parent in absolute.parents:
        logs = parent / "logs" / absolute.relative_to(parent)
        if logs.is_dir():
            return logs
    return None


def failure(logs: Path, run: str, evaluation: str) -> str | None:
    """Return the sentence with which a run's evaluation failed, or the training before it.

    None where neither has: it was not started, goes on, or was killed.
    """
    names = (f"evaluate-{run}-{evaluation}", f"train-{run}", *_before(logs, run))
    for name in names:
        if (log := logs / f"{name}.log").is_file() and (sentence := ended_by(log)):
            return sentence
    return None


def _before(logs: Path, run: str) -> list[str]:
    """Return the jobs between training and evaluation: features and fine-tunings."""
    found = [*logs.glob(f"embed-{run}-*.log"), *logs.glob(f"finetune-{run}-*.log")]
    return sorted(path.stem for path in found)


def ended_by(log: Path) -> str | None:
    """Return the sentence or the exception that a log ends with; None if it ends with neither."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode("utf-8", errors="replace").rstrip()
    said = SENTENCE.split(text)
    if len(said) > 1 and not RECORD.search(said[-1]):
        return " ".join(said[-1].split())
    raised = list(RAISED.finditer(text))
    return raised[-1][1] if raised and text.endswith(raised[-1][1]) else None
