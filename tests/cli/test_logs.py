"""What several attempts of a job leave in their one log."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from timewalk.cli import logs
from timewalk.report.failures import ended_by, last_attempt


def attempt(log, *words, **environment):
    command = [sys.executable, "-m", "timewalk.cli", "--log", str(log), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def fails(log, **environment):
    done = attempt(log, "frames", log.with_name("no.mp4"), log.with_name("out"), **environment)
    assert done.returncode == 1
    assert "no.mp4 is missing" in ended_by(log)


def test_a_later_attempt_keeps_the_reason_of_the_earlier_failure(tmp_path):
    log = tmp_path / "frames.log"
    fails(log)
    assert attempt(log, "methods").returncode == 0
    text = log.read_text()
    assert text.index("no.mp4 is missing") < text.index("an attempt begins: methods")
    assert ended_by(log) is None
    assert "dora" in last_attempt(log)
    assert "no.mp4" not in last_attempt(log)


def test_an_attempt_says_what_slurm_calls_it(tmp_path):
    log = tmp_path / "frames.log"
    fails(log, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="2")
    first = log.read_text().splitlines()[0]
    assert re.match(r"\d{4}-\d\d-\d\d .*an attempt begins: frames, on \S+, process \d+,", first)
    assert first.endswith("Slurm job 7, restart 2")


def test_the_second_attempts_record_begins_a_line(tmp_path):
    log = tmp_path / "frames.log"
    log.write_text("timewalk frames: an old sentence")
    assert attempt(log, "methods").returncode == 0
    assert ended_by(log) is None


def test_who_still_writes_to_the_log_goes_on_doing_so(tmp_path):
    log = tmp_path / "frames.log"
    fails(log)
    with open(log, "a") as earlier:
        fails(log)
        earlier.write("a last word\n")
    assert log.read_text().count("no.mp4 is missing") == 2
    assert log.read_text().endswith("a last word\n")


def test_a_log_that_snakemake_removes_comes_back_until_a_success(tmp_path):
    log = tmp_path / "x.log"
    for number in (1, 2):
        fails(log)
        assert log.read_text().count("no.mp4 is missing") == number
        log.unlink()
    assert attempt(log, "methods").returncode == 0
    assert log.read_text().count("no.mp4 is missing") == 2
    log.unlink()
    assert attempt(log, "methods").returncode == 0
    assert log.read_text().count("an attempt begins") == 1


def test_without_second_names_it_goes_on(tmp_path, monkeypatch):
    def refuse(path, name):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    log = tmp_path / "x.log"
    log.touch()
    logs._keep(log)
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]


@pytest.mark.parametrize(("lines", "kept"), [(10, 10), (11, 4)])
def test_a_log_that_grows_for_ever_is_cut_at_a_line(tmp_path, monkeypatch, lines, kept):
    monkeypatch.setattr(logs, "LARGEST", 100)
    monkeypatch.setattr(logs, "KEPT", 49)
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {n:04d}\n" for n in range(lines)))
    logs._cut(log)
    left = log.read_text().splitlines()
    assert left == [f"line {n:04d}" for n in range(lines - kept, lines)]
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]


def test_a_log_of_another_users_attempt_is_begun_anew(tmp_path, monkeypatch):
    """Linux lets nobody link what is another's; the job has nothing to do with that."""

    def refuse(path, name):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    log = tmp_path / "x.log"
    (tmp_path / ".x.log.attempts").write_text("another's\n")
    monkeypatch.setattr(os, "link", refuse)
    redirected = os.dup(1), os.dup(2), sys.stdout, sys.stderr
    try:
        logs.redirect(log)
    finally:
        os.dup2(redirected[0], 1)
        os.dup2(redirected[1], 2)
        sys.stdout, sys.stderr = redirected[2:]
    assert log.read_text() == ""


def test_work_that_is_done_stays_so_whatever_the_disk_says(tmp_path, monkeypatch):
    def refuse(path, missing_ok):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / ".x.log.attempts").touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    logs.succeed(tmp_path / "x.log")
    assert (tmp_path / ".x.log.attempts").exists()  # the disk did refuse, and nothing was raised


def test_logs_that_differ_in_their_suffix_are_two(tmp_path):
    fails(tmp_path / "out.1")
    assert attempt(tmp_path / "out.2", "methods").returncode == 0
    assert "no.mp4" not in (tmp_path / "out.2").read_text()
