"""A preempted Slurm job: what it does between SIGTERM and the moment its machine is taken.

Slurm requeues a preempted job (same job, no retry of the workflow used up) unless the job ends by
itself within its grace: that counts as a failure. So while this job is being preempted, SIGTERM
does not end a verb (a training, which has its own way, finishes its step and writes a checkpoint),
and however the verb ends, it has Slurm requeue the job first. A success is none either: Snakemake,
which started the verb in this job, was told to stop too, and would remove what the verb made.

Seen with Slurm 22.05 in ``scontrol show job``: within the grace ``JobState=RUNNING`` and a date at
``PreemptTime``. After scancel, requeue, a lost node or the time limit ``JobState=COMPLETING``:
Slurm has decided, and the exit code changes nothing. In the lead time of ``--signal``
``JobState=RUNNING`` and ``PreemptTime=None``, and after a requeue ``PreemptTime=None`` again.
"""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

POLL_S = 5.0
ANSWER_S, TRIES = 20.0, 3
"""seconds that Slurm has for an answer, and how often it is asked"""


def spared(work: Callable[[], int]) -> int:
    """Do a verb's work and return its exit code, such that a preemption is no failure of it.

    Does nothing outside a Slurm job, nor in one of several training processes: the one that started
    them does. Must be called in the main thread.
    """
    if "SLURM_JOB_ID" not in os.environ or "TIMEWALK_ERROR_FILE" in os.environ:
        return work()
    owner = os.getpid()

    def on_term(number: int, frame: object) -> None:
        # A forked worker ends as if this handler were not here.
        if os.getpid() == owner and in_grace():
            log.warning("SIGTERM: Slurm preempts this job; going on for as long as it may run")
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        return work()
    finally:
        _end_requeued()
        signal.signal(signal.SIGTERM, before)


def in_grace() -> bool:
    """Return whether Slurm preempts this job, will requeue it and has left it some time.

    False where Slurm does not answer.
    """
    job = _job()
    return (
        job.get("JobState") == "RUNNING"
        and job.get("Requeue") == "1"
        and job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A")
    )


def _end_requeued() -> None:
    """Within a grace, return only once Slurm has decided what becomes of the job.

    Being asked, it requeues the job at once, and whoever needs the machine does not wait for the
    end of the grace. Where a site forbids that, the end of the grace is waited for: the time at
    which Slurm ends the job, so the wait has an end.
    """
    if not in_grace():
        return
    log.warning("Slurm preempts this job: ending it for now, to be started again by Slurm")
    subprocess.run(["scontrol", "requeue", _name()], check=False)
    while in_grace():
        time.sleep(POLL_S)


def _name() -> str:
    """Return what names this job alone: the number of an array's last task is the whole array's."""
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    return os.environ["SLURM_JOB_ID"]


def record(answer: str, job: str) -> dict[str, str]:
    """Return the fields of a job in what ``scontrol --oneliner show job`` prints, or none.

    Asked for the last task of an array, which has the array's number, it prints all its tasks.
    """
    for line in answer.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        if fields.get("JobId") == job:
            return fields
    return {}


def _job() -> dict[str, str]:
    """Return what Slurm knows of this job, or nothing where it does not answer."""
    if shutil.which("scontrol") is None:
        return {}
    job = os.environ["SLURM_JOB_ID"]
    words = ["scontrol", "--oneliner", "show", "job", job]
    for _ in range(TRIES):
        try:
            answer = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            continue
        # A signal to the whole job ends scontrol too: ask again.
        if answer.returncode == 0:
            return record(answer.stdout, job)
    return {}
