"""Leases of pretend GPUs, taken by real processes."""

import os
import re
import subprocess
import sys
import time

import pytest

from timewalk.training.devices import lease, visible_devices

HOLD = """
import sys, time
from pathlib import Path
from timewalk.training.devices import lease
with lease(int(sys.argv[2]), folder=Path(sys.argv[1])) as held:
    print(",".join(held), flush=True)
    sys.stdin.read()
"""


def hold(folder, count=1):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_four_jobs_get_four_devices_and_a_dead_ones_comes_back(tmp_path):
    jobs = [hold(tmp_path) for _ in range(4)]
    try:
        held = [job.stdout.readline().strip() for job in jobs]
        assert sorted(held) == ["0", "1", "2", "3"]
        fifth = hold(tmp_path)
        jobs.append(fifth)
        time.sleep(0.5)
        assert fifth.poll() is None
        jobs[2].kill()
        assert fifth.stdout.readline().strip() == held[2]
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def test_who_waits_says_for_whom_and_for_how_long(tmp_path):
    holder, script = hold(tmp_path, 4), f"import logging; logging.basicConfig(level='INFO'){HOLD}"
    assert holder.stdout.readline().strip() == "0,1,2,3"
    waiter = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0,1"},
    )
    try:
        said = waiter.stderr.readline()
        by = f"is held by process {holder.pid}"
        assert f"waiting for 2 GPU(s): 0 {by}, 1 {by}\n" in said
        holder.kill()
        assert waiter.stdout.readline() == "0,1\n"
        assert re.search(r"waited \d+ s for GPU 0, 1\n", waiter.stderr.readline())
    finally:
        for job in (holder, waiter):
            job.kill()
            job.communicate()
    assert (tmp_path / "gpu0.lock").read_text() == str(waiter.pid)


def test_a_lease_of_two(tmp_path):
    job = hold(tmp_path, 2)
    try:
        assert job.stdout.readline().strip() == "0,1"
    finally:
        job.kill()
        job.communicate()


def test_within_a_slurm_job_its_devices_are_dealt_out(tmp_path, monkeypatch, caplog):
    """One Snakemake in an allocation of two GPUs runs two jobs: not both on the first."""
    caplog.set_level("INFO")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    with lease(1, folder=tmp_path) as first:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
        with lease(1, folder=tmp_path) as second:
            assert (first, second) == (["5"], ["6"])
    assert "on GPU 6 of" in caplog.text
    assert "chosen by Slurm" in caplog.text


def test_slurm_jobs_do_not_wait_for_each_other(tmp_path, monkeypatch):
    """On one machine each may call its GPU 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with lease(1, folder=tmp_path) as one:
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        with lease(1, folder=tmp_path) as other:
            assert one == other == ["0"]


def test_zero_gpus_hides_them(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with lease(0, folder=tmp_path) as held:
        assert held == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_no_gpu_means_the_cpu(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == []
    with lease(2, folder=tmp_path / "locks") as held:
        assert held == []


@pytest.mark.parametrize(("preset", "pool"), [("", []), ("3", ["3"]), ("1,2", ["1", "2"])])
def test_an_outer_setting_is_the_pool(monkeypatch, preset, pool):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", preset)
    assert visible_devices() == pool
