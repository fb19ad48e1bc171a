"""What the launcher does about locks that a killed Snakemake left. No Snakemake is started here."""

import errno
import fcntl
import importlib.util
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.workflow.conftest import ROOT
from timewalk import cli

FILE = ROOT / "workflow" / "launcher.py"
SPEC = importlib.util.spec_from_file_location("launcher", FILE)
launcher = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(launcher)

RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
import launcher
with launcher.running(launcher.HERE):
    launcher.LOCKS.mkdir(parents=True, exist_ok=True)
    (launcher.LOCKS / "0.output.lock").touch()
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIMEWALK_RUNNING", "")
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)


@pytest.fixture
def run():
    """A run in another process that holds Snakemake's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(FILE.parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert launcher.locked()


def mark():
    return launcher.RUNNING / socket.gethostname()


def test_what_a_killed_run_left_locked_is_removed(run, capsys):
    kill(run)
    with launcher.running(launcher.HERE):
        assert not launcher.locked()
    assert mark().stat().st_size == 0
    assert capsys.readouterr().err == ""


def test_a_lock_of_a_run_that_lives_stays(run, capsys):
    with launcher.running(launcher.HERE):
        assert launcher.locked()
    assert "another snakemake, or a job that one has left, is at work" in capsys.readouterr().err
    kill(run)  # the one that ended in between has not taken it for its own
    with launcher.running(launcher.HERE):
        assert not launcher.locked()


def test_a_lock_stays_while_a_job_of_the_killed_run_lives(run, monkeypatch):
    kill(run)
    monkeypatch.setenv("TIMEWALK_RUNNING", str(mark()))
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    job = context.Process(target=work, args=(begun,))
    job.start()
    assert begun.wait(300)
    with launcher.running(launcher.HERE):
        assert launcher.locked()
    job.kill()
    job.join()
    with launcher.running(launcher.HERE):
        assert not launcher.locked()


def work(begun):
    cli._share_lock()
    begun.set()
    time.sleep(600)


def test_a_job_whose_folder_has_moved_goes_on(monkeypatch):
    monkeypatch.setenv("TIMEWALK_RUNNING", "moved/away")
    assert cli._share_lock() is None


def test_a_lock_that_another_machine_may_have_made_stays(run, capsys):
    kill(run)
    (launcher.RUNNING / "node2").write_text(launcher.HERE)
    with launcher.running(launcher.HERE):
        assert launcher.locked()
    assert "a snakemake on node2 is at work in this folder" in capsys.readouterr().err


def test_a_lock_of_a_plain_snakemake_stays():
    launcher.LOCKS.mkdir(parents=True)
    (launcher.LOCKS / "0.input.lock").touch()
    with launcher.running(launcher.HERE):
        assert launcher.locked()


@pytest.mark.parametrize("words", [["-m", "snakemake"], ["bin/snakemake", "--cores"]])
def test_it_stays_after_a_kill_too_while_that_one_lives(run, words, tmp_path):
    kill(run)
    for module in (tmp_path / "snakemake.py", tmp_path / "bin" / "snakemake"):
        module.parent.mkdir(exist_ok=True)
        module.write_text("import time; print('begun', flush=True); time.sleep(600)")
    plain = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert plain.stdout.readline() == "begun\n"
    assert launcher.plain_snakemakes() == [plain.pid]
    with launcher.running(launcher.HERE):
        assert launcher.locked()
    plain.kill()
    plain.communicate()
    with launcher.running(launcher.HERE):
        assert not launcher.locked()


@pytest.mark.parametrize("left", [launcher.CLUSTER, launcher.HERE + launcher.CLUSTER])
def test_a_lock_stays_when_jobs_on_a_cluster_may_have_outlived_their_snakemake(run, left, capsys):
    kill(run)
    mark().write_text(left)
    for jobs in (launcher.CLUSTER, launcher.HERE):
        with launcher.running(jobs):
            assert launcher.locked()
        said = capsys.readouterr().err
        assert "one was killed here whose jobs on the cluster may still run" in said
        assert 'squeue --me -o "%i %T %k %N"' in said
        assert "snakemake --unlock" in said


def test_after_unlock_nothing_is_said_of_the_cluster(run, capsys, monkeypatch):
    kill(run)
    mark().write_text(launcher.CLUSTER)
    monkeypatch.setattr(
        "snakemake.cli.main", lambda: launcher.LOCKS.joinpath("0.output.lock").unlink()
    )
    monkeypatch.setattr(sys, "argv", ["snakemake"])
    launcher.start(["--unlock"])
    with launcher.running(launcher.CLUSTER):
        assert mark().read_text() == launcher.CLUSTER
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_without_locks_on_a_disk_it_goes_on(monkeypatch, capsys, number):
    def refuse(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    went_on = False
    with launcher.running(launcher.HERE):
        went_on = True
    assert went_on
    said = capsys.readouterr().err
    assert f"cannot be written and locked ({os.strerror(number)})" in said


def test_unlock_forgets_what_other_machines_left(run, monkeypatch):
    kill(run)
    other = launcher.RUNNING / "node2"
    other.write_text(launcher.CLUSTER)
    monkeypatch.setattr("snakemake.cli.main", lambda: None)
    monkeypatch.setattr(sys, "argv", ["snakemake"])
    launcher.start(["--unlock"])
    assert mark().stat().st_size == other.stat().st_size == 0


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        ("--cores 2 all", launcher.HERE),
        ("-c2", launcher.HERE),
        ("-c all", launcher.HERE),
        ("--cores=8 -q all", launcher.HERE),
        ("-j 4", launcher.HERE),
        ("--cores 8 -n", None),
        ("-np -c2", None),
        ("--profile slurm", launcher.CLUSTER),
        ("--profile slurm -n", None),
        ("--workflow-profile slurm", launcher.CLUSTER),
        ("--cores 8 --executor slurm", launcher.CLUSTER),
        ("-j5 -eslurm", launcher.CLUSTER),
        ("--cores 8 --nolock", None),
        ("--cores 8 --directory elsewhere", None),
        ("-c8 -delsewhere", None),
        ("--configfile workflow/demo.yaml", None),
        ("--version", None),
        ("--no-such-option", None),
    ],
)
def test_where_a_call_has_its_jobs(words, jobs, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert launcher.jobs_of(words.split()) == jobs
    assert capsys.readouterr().err == ""


def test_a_profile_in_the_environment_may_be_a_cluster(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "slurm")
    assert launcher.jobs_of(["--cores", "2"]) == launcher.CLUSTER
