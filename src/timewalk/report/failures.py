"""Why a result is missing: the sentence with which the newest attempt ends a job's log."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

TAIL = 256 * 1024
"""bytes at the end of a log that are read: weights that do not fit are told one a line"""
SENTENCE = re.compile(r"^timewalk [a-z]+: ", re.MULTILINE)
RECORD = re.compile(r"^\d{4}-\d\d-\d\d ", re.MULTILINE)
"""how a line of a log begins"""
BEGINS = "an attempt begins"
"""words of the record that each attempt of a job writes first into its log"""
TRACEBACK = re.compile(r"^.*Traceback \(most recent call last\):$", re.MULTILINE)
RAISED = re.compile(r"^(?:\[\w+\]: ?)?([A-Za-z_][\w.]*(?:: .*)?)$", re.MULTILINE)
"""the exception below a traceback, whose own lines are indented; of several processes each line may
begin with which one it is"""
WARNED = re.compile(r"^\S+:\d+: \w*Warning: ", re.MULTILINE)
"""how a warning of Python's begins, which may come as a process ends"""


def logs_of(results: Path) -> Path | None:
    """Return the folder of the logs of a folder of results; None where there is none.

    The workflow writes them into ``logs/`` of its working directory, under the results' own path.
    """
    for logs in _here(results):
        if any(logs.glob("*.log")):
            return logs
    absolute = _absolute(results)
    for parent in absolute.parents:
        logs = parent / "logs" / absolute.relative_to(parent)
        if logs.is_dir():
            return logs
    return None


def _here(results: Path) -> Iterator[Path]:
    """Yield where the logs are if this is the working directory: the workflow joins the two paths
    as texts, whether the folder of the results is absolute or beside it."""
    for text in (results.as_posix(), _absolute(results).as_posix(), os.path.relpath(results)):
        yield Path(f"logs/{text}").absolute()


def _absolute(path: Path) -> Path:
    """Return a path without `..`; links in it stay, for logs are beside them."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def failure(logs: Path, run: str, evaluation: str, before: Sequence[str] = ()) -> str | None:
    """Return the sentence with which a run's evaluation failed, or a job before it.

    None where none has: it was not started, goes on, or was killed.

    Args:
        logs: folder of the logs.
        run: its run.
        evaluation: its name.
        before: names of the jobs between training and evaluation: features and fine-tunings.
    """
    for name in (f"evaluate-{run}-{evaluation}", f"train-{run}", *before):
        if (log := logs / f"{name}.log").is_file() and (sentence := ended_by(log)):
            return sentence
    return None


def failures_before(logs: Path, run: str, others: Sequence[str] = ()) -> list[str]:
    """Return the sentences with which a run's features and fine-tunings have failed.

    Args:
        logs: folder of the logs.
        run: its name.
        others: names of the other runs, which may begin with this one's.
    """
    stages = ("embed", "finetune")
    found = [path for stage in stages for path in sorted(logs.glob(f"{stage}-{run}-*.log"))]
    of_others = tuple(f"{stage}-{o}-" for stage in stages for o in others if o.startswith(run))
    own = [path for path in found if not path.name.startswith(of_others)]
    return list(dict.fromkeys(sentence for path in own if (sentence := ended_by(path))))


def last_attempt(log: Path) -> str:
    """Return what the newest attempt of a job has written into its log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    # The record's own beginning, its date, does not matter to who looks for what was done.
    return text.rpartition(f": {BEGINS}: ")[2]


def ended_by(log: Path) -> str | None:
    """Return the sentence or the exception that a log ends with; None if it ends with neither."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode("utf-8", errors="replace").rstrip()
    records = list(RECORD.finditer(text))
    text = text[records[-1].start() :] if records else text
    if said := list(SENTENCE.finditer(text)):
        rest = text[said[-1].end() :]
        ends = [found.start() for end in (TRACEBACK, WARNED) if (found := end.search(rest))]
        return " ".join(rest[: min(ends, default=len(rest))].split())
    traced = list(TRACEBACK.finditer(text))
    raised = RAISED.search(text, traced[-1].end()) if traced else None
    return raised[1] if raised else None
