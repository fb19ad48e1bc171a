"""SIGKILL to all of a workflow at random moments, and what must be the same at the end.

A moment is a share of the work: of the seconds that all jobs of an undisturbed run took. So a slow
machine is hit at the same places.
"""

import contextlib
import csv
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.workflow.conftest import ROOT, Workflow

LAUNCHER = ROOT / "workflow" / "launcher.py"
OWN = {"git_commit", "seconds", "time", "fps"}
"""keys and columns whose values are a run's own: others work on the code while the tests run"""
TIMED = ("data_s", "step_s", "clips_per_s", "peak_memory_mb")
UNDECLARED = {
    *("checkpoints", "work", "mlartifacts", "mlflow.db", "mlflow.json", "card.md", "report.html"),
    "system.jsonl",
}
"""not compared as files: what a job leaves beside its outputs, and what names times or runs"""


@dataclass
class Kill:
    """One kill: the share of the work before it, how many processes, and the jobs among them."""

    moment: float
    processes: int
    jobs: list[str]

    def __str__(self) -> str:
        jobs = ", ".join(self.jobs) or "no job"
        return f"at {self.moment:4.0%}: {self.processes} processes; {jobs}"


def command(*words: str, cores: int = 2) -> list[str]:
    """Return the call of the project's own snakemake."""
    snakefile = ["--snakefile", str(ROOT / "Snakefile")]
    return [sys.executable, str(LAUNCHER), *words, "--cores", str(cores), *snakefile]


def undisturbed(workflow: Workflow, words: Sequence[str]) -> None:
    """Run to the end."""
    done = subprocess.run(
        words, cwd=workflow.folder, env=workflow.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def killed_again_and_again(
    workflow: Workflow,
    words: Sequence[str],
    moments: Sequence[tuple[float, float]],
    seconds: dict[str, float],
) -> Iterator[Kill]:
    """Run the same command again after each kill; yield the kills; end with a whole run.

    Args:
        workflow: its folder, new.
        words: the command.
        moments: shares of the work, rising, and seconds that jobs run at least before each kill.
        seconds: of each job in an undisturbed run.
    """
    for moment in moments:
        mark = uuid.uuid4().hex
        with open(workflow.folder / "snakemake.txt", "a") as text:
            process = subprocess.Popen(
                words,
                cwd=workflow.folder,
                env=workflow.environment() | {"TIMEWALK_TEST_RUN": mark},
                stdout=text,
                stderr=text,
                start_new_session=True,
            )
        _wait_for(moment, process, mark, workflow.folder, seconds)
        kill = _kill(moment[0], mark)
        process.wait()
        yield kill
    undisturbed(workflow, words)


def job_seconds(folder: Path) -> dict[str, float]:
    """Return the seconds of each finished job, from the files of Snakemake's `benchmark`."""
    found = {}
    for path in (folder / "logs" / "times").rglob("*.tsv"):
        rows = list(csv.reader(path.read_text().splitlines(), delimiter="\t"))
        if len(rows) == 2:
            found[path.stem] = float(rows[1][0])
    return found


def _wait_for(
    moment: tuple[float, float],
    process: subprocess.Popen,
    mark: str,
    folder: Path,
    seconds: dict[str, float],
) -> None:
    """Wait until a share of the work is done; of the jobs that run, time says how much is."""
    share, least = moment
    finished, spent, before = -1.0, 0.0, time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        spent += (now - before) * len({_job(pid) for pid in _marked(mark)} - {""})
        before = now
        done = sum(seconds[name] for name in job_seconds(folder))
        if done != finished:
            finished, spent = done, 0.0
        if spent >= max(share * sum(seconds.values()) - done, least):
            return
        time.sleep(0.1)
    raise AssertionError(f"the run ended before {share:.0%} of the work: {_tail(folder)}")


def _tail(folder: Path) -> str:
    return (folder / "snakemake.txt").read_text()[-4000:]


def _kill(moment: float, mark: str) -> Kill:
    """Kill every process that descends from a call, wherever it hangs in the tree by now."""
    killed: dict[int, str] = {}
    while alive := [pid for pid in _marked(mark) if pid not in killed or not _dead(pid)]:
        for pid in alive:
            killed.setdefault(pid, _job(pid))
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, signal.SIGKILL)
    return Kill(moment, len(killed), sorted(set(killed.values()) - {""}))


def _marked(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def _dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _job(pid: int) -> str:
    """Return the name of the job that a process belongs to: of its log."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    timewalk = len(words) > 3 and Path(words[1]).name == "timewalk" and words[2] == "--log"
    return Path(words[3]).stem if timewalk else ""


def stages(kills: Sequence[Kill]) -> set[str]:
    """Return the stages that were hit."""
    return {job.split("-")[0] for kill in kills for job in kill.jobs}


# --- what must be the same -----------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """Return what each artefact of a finished workflow says, but for what is a run's own."""
    found = {}
    for root in ("data", "results"):
        for path in sorted((folder / root).rglob("*")):
            parts = path.relative_to(folder).parts
            hidden = any(part.startswith(".") for part in parts)
            own = UNDECLARED.intersection(parts) or _seconds(path.name)
            if path.is_file() and not hidden and not own:
                found["/".join(parts)] = _content(path)
    found["MLflow"] = _mlflow(next((folder / "results").rglob("mlflow.db")))
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return a sentence for each artefact that is not the same in both."""
    names = sorted(one.keys() | other.keys())
    return [
        f"{name}: {one.get(name, 'missing')!s:.300} | {other.get(name, 'missing')!s:.300}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def leftovers(folder: Path) -> list[str]:
    """Return what kills have left under names that nobody reads."""
    return sorted(
        str(path.relative_to(folder))
        for root in ("data", "results")
        for path in (folder / root).rglob(".*.part*")
    )


def _seconds(name: str) -> bool:
    """Say whether a file holds GOT-10k's seconds of each frame."""
    return name.endswith("_time.txt")


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_plain(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        rows = csv.DictReader(path.read_text().splitlines())
        return [_plain(row) for row in rows if row.get("metric") not in OWN]
    if path.suffix in (".md", ".tex") and "fps" in path.read_text():
        return "a table of summary.csv"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            return {n: _digest(packed.read(n)) for n in packed.namelist() if not _seconds(n)}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: _digest(array.tobytes()) for name, array in arrays.items()}
    return _digest(path.read_bytes())


def _plain(value: Any) -> Any:
    """Return a JSON value without times and commits."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    own = {key for key in value if key in OWN or key.removeprefix("epoch_") in TIMED}
    return {key: _plain(item) for key, item in value.items() if key not in own}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mlflow(store: Path) -> list[tuple[str, str, int]]:
    """Return name, status and number of metrics of each run in the store that is not deleted.

    How often the machine's load was noted depends on how long a training took.
    """
    count = (
        "select count(distinct key || ' ' || step) from metrics m "
        "where m.run_uuid = r.run_uuid and key not like 'system/%'"
    )
    query = (
        f"select name, status, ({count}) from runs r where lifecycle_stage = 'active' order by name"
    )
    with sqlite3.connect(store) as connection:
        return list(connection.execute(query))
