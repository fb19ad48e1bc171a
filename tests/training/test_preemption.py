"""What a verb does while Slurm preempts its job, with a `scontrol` that plays Slurm."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from timewalk.training.preemption import in_grace, spared

RUNNING = "JobId=7 JobName=train JobState=RUNNING Requeue=1 Restarts=0"
PREEMPTED = f"{RUNNING} PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:00:09"
UNDISTURBED = f"{RUNNING} PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None"
DECIDED = "JobId=7 JobName=train JobState=COMPLETING Requeue=1 Restarts=1"


class Slurm:
    """A `scontrol` that answers what a file says, and notes a requeue."""

    def __init__(self, folder: Path) -> None:
        self.answer, self.calls = folder / "answer", folder / "calls"
        program = folder / "bin" / "scontrol"
        program.parent.mkdir()
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >> {self.calls}\n'
            f'if [ "$1" = requeue ]; then\n'
            f"  [ -e {folder}/refuses ] && exit 1\n"
            f"  echo '{DECIDED}' > {self.answer}; exit 0\n"
            "fi\n"
            f"cat {self.answer}\n"
        )
        program.chmod(0o755)
        self.refuses = folder / "refuses"
        self.environment = {"SLURM_JOB_ID": "7", "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def requeues(self) -> int:
        return self.calls.read_text().split().count("requeue")


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


@pytest.fixture
def job(slurm, monkeypatch):
    """This process as a job of that Slurm."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TIMEWALK_ERROR_FILE", raising=False)
    monkeypatch.setattr("timewalk.training.preemption.POLL_S", 0.01)
    return slurm


@pytest.mark.parametrize(
    ("answer", "grace"),
    [
        (PREEMPTED, True),
        (PREEMPTED.replace("Requeue=1", "Requeue=0"), False),
        (PREEMPTED.replace("RUNNING", "COMPLETING"), False),
        (UNDISTURBED, False),
        (UNDISTURBED.replace("None", "Unknown"), False),
        (DECIDED, False),
        ("", False),
    ],
)
def test_slurm_says_whether_it_is_a_preemption(job, answer, grace):
    job.answer.write_text(answer)
    assert in_grace() is grace


def test_without_an_answer_it_is_none(job):
    assert not in_grace()
    assert len(job.calls.read_text().splitlines()) == 3


def test_without_scontrol_it_is_none(job, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not in_grace()


def test_a_preempted_training_is_requeued_once_it_has_stopped(job):
    job.answer.write_text(PREEMPTED)
    assert spared(lambda: 75) == 75
    assert job.requeues() == 1


def test_where_requeue_is_forbidden_it_waits_for_slurm(job, monkeypatch):
    job.answer.write_text(PREEMPTED)
    job.refuses.touch()
    waited = []

    def wait(seconds):
        waited.append(seconds)
        if waited.count(7) == 3:
            job.answer.write_text(DECIDED)

    # The library that calls scontrol sleeps too, for less.
    monkeypatch.setattr("timewalk.training.preemption.POLL_S", 7)
    monkeypatch.setattr("timewalk.training.preemption.time.sleep", wait)
    assert spared(lambda: 75) == 75
    assert waited.count(7) == 3
    assert job.requeues() == 1


def test_the_last_task_of_an_array_asks_for_itself_alone(job, monkeypatch):
    """Its number is the array's: Slurm answers with all tasks, and would requeue them all."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    others = PREEMPTED.replace("JobId=7", "JobId=8") + "\n"
    job.answer.write_text(others + UNDISTURBED)
    assert not in_grace()
    job.answer.write_text(PREEMPTED + "\n" + UNDISTURBED.replace("JobId=7", "JobId=8"))
    assert spared(lambda: 75) == 75
    assert "requeue 7_3" in job.calls.read_text().splitlines()


@pytest.mark.parametrize("answer", [UNDISTURBED, DECIDED])
def test_any_other_end_is_told_at_once(job, answer):
    job.answer.write_text(answer)
    assert spared(lambda: 75) == 75
    assert job.requeues() == 0


def test_a_crash_within_a_grace_is_requeued(job):
    job.answer.write_text(PREEMPTED)

    def work():
        raise RuntimeError("a loader's worker was ended by the signal")

    with pytest.raises(RuntimeError):
        spared(work)
    assert job.requeues() == 1


def test_a_success_within_a_grace_does_not_count(job):
    """Snakemake in the job was told to stop as well: it will end with a failure."""
    job.answer.write_text(PREEMPTED)
    assert spared(lambda: 0) == 0
    assert job.requeues() == 1


@pytest.mark.parametrize("answer", [UNDISTURBED, DECIDED])
def test_any_other_success_is_one(job, answer):
    job.answer.write_text(answer)
    assert spared(lambda: 0) == 0
    assert job.requeues() == 0


@pytest.mark.parametrize("outside", ["no Slurm", "one of several processes"])
def test_elsewhere_nothing_is_asked(job, monkeypatch, outside):
    if outside == "no Slurm":
        monkeypatch.delenv("SLURM_JOB_ID")
    else:
        monkeypatch.setenv("TIMEWALK_ERROR_FILE", "error")
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    assert spared(lambda: seen.append(signal.getsignal(signal.SIGTERM)) or 75) == 75
    assert seen == [before]
    assert not job.calls.exists()


WORK = """
import sys
from timewalk.training.preemption import spared
def work():
    print("started", flush=True)
    sys.stdin.read()
    return 0
raise SystemExit(spared(work))
"""


@pytest.mark.parametrize(
    ("answer", "status", "requeues"), [(PREEMPTED, 0, 1), (UNDISTURBED, -signal.SIGTERM, 0)]
)
def test_a_verb_goes_on_within_a_grace_alone(slurm, answer, status, requeues):
    slurm.answer.write_text(answer)
    environment = os.environ | slurm.environment
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WORK], env=environment, **pipes) as verb:
        assert verb.stdout.readline() == b"started\n"
        verb.send_signal(signal.SIGTERM)
        verb.stdin.close()  # the end of its work
        assert verb.wait(timeout=240) == status
    assert slurm.requeues() == requeues


FORKS = """
import os, signal, time
from timewalk.training.preemption import spared
def work():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        # As it begins, Python forgets signals that have come already.
        os.write(writer, b"begun")
        time.sleep(600)
        os._exit(1)
    os.read(reader, 5)
    os.kill(child, signal.SIGTERM)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return int(ended != -signal.SIGTERM)
raise SystemExit(spared(work))
"""


def test_a_forked_worker_ends_as_ever(slurm):
    slurm.answer.write_text(UNDISTURBED)
    environment = os.environ | slurm.environment
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment)
    assert done.returncode == 0
