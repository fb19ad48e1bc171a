"""A real Slurm on this machine, brought up once for the tests of this folder."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import ROOT, Workflow

HERE = Path(__file__).parent
IMPOSSIBLE = 77
"""status of start.sh where Slurm cannot be installed"""
PREFIX = "timewalk-slurm-"
"""of the clusters' folders"""
FIELDS = {
    "id": "%i",
    "name": "%j",
    "state": "%T",
    "partition": "%P",
    "gres": "%b",
    "reason": "%r",
    "comment": "%k",
    "nodes": "%N",
    "cpus": "%C",
    "memory": "%m",
    "limit": "%l",
    "folder": "%Z",
}


class Cluster:
    """A running Slurm of two nodes with four pretend GPUs each.

    Attributes:
        state: folder of its configuration, state and logs.
        environment: variables that let commands find it; to merge into the process's own.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {
            "SLURM_CONF": str(state / "etc" / "slurm.conf"),
            "PATH": f"{state / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def call(self, *words: str) -> str:
        """Return what a Slurm command prints; an error of it is one of the test's."""
        environment = os.environ | self.environment
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    def jobs(self, name: str | None = None) -> list[dict[str, str]]:
        """Return all jobs, ended ones too, oldest first; of one Snakemake run with its name."""
        words = ["squeue", "--noheader", "--states=all", "--sort=i"]
        words += ["--format", "|".join(FIELDS.values())]
        rows = [line.split("|") for line in self.call(*words).splitlines()]
        jobs = [dict(zip(FIELDS, row, strict=True)) for row in rows]
        return [job for job in jobs if name in (None, job["name"])]


class SlurmWorkflow(Workflow):
    """A working directory whose Snakemake sends jobs to the cluster."""

    def __init__(self, folder: Path, cluster: Cluster, profile: str = "slurm") -> None:
        super().__init__(folder, forked=False)
        self.cluster = cluster
        self.profile = ROOT / profile

    def command(self, *words: str, cores: int = 2) -> list[str]:
        """Return the command; `cores` are those of rules that run beside Snakemake."""
        snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "suite.yaml"]
        options = ["--profile", str(self.profile), "--local-cores", str(cores)]
        options += ["--slurm-init-seconds-before-status-checks", "1"]
        return [sys.executable, str(HERE / "hasty.py"), *words, *options, *snakefile]

    def environment(self) -> dict:
        """Return the environment of Snakemake, and so of its jobs."""
        own = super().environment()
        path = f"{self.cluster.state / 'bin'}:{own['PATH']}"
        return own | self.cluster.environment | {"PATH": path}


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A cluster of two nodes; each claims 32 cores, 256 GB and four GPUs."""
    remove_abandoned(Path(tempfile.gettempdir()))
    # Short: Unix sockets lie below.
    state = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        (state / "owner").write_text(str(os.getpid()))
        start(state)
        yield Cluster(state)
    finally:
        remove(state)


def remove_abandoned(folder: Path) -> None:
    """Take down the clusters that tests left in a folder when they were killed."""
    for owner in folder.glob(f"{PREFIX}*/owner"):
        pid = owner.read_text()
        # Empty for the moment between its creation and its writing.
        if pid and not psutil.pid_exists(int(pid)):
            remove(owner.parent)


def remove(state: Path) -> None:
    """Take a cluster down and delete its folder."""
    subprocess.run([HERE / "stop.sh", state, "--purge"], check=False)
    shutil.rmtree(state, ignore_errors=True)


def start(state: Path) -> None:
    """Start the cluster, or say in so many words that Slurm cannot be installed.

    The tests are then skipped; with ``TIMEWALK_NEED_SLURM=1`` in the environment they fail.
    """
    shape = ["--nodes", "2", "--gpus", "4", "--cpus", "32", "--mem", "256000"]
    words = [HERE / "start.sh", state, *shape, "--port", str(free_ports())]
    # The daemons go on: a pipe of theirs would never end.
    with (state / "start.log").open("w+") as log:
        done = subprocess.run(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        log.seek(0)
        text = log.read().strip()
    if done.returncode == IMPOSSIBLE:
        missing = f"SLURM IS MISSING, so NOTHING of `--profile slurm` was tested: {text}"
        if os.getenv("TIMEWALK_NEED_SLURM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    assert done.returncode == 0, text


def free_ports(number: int = 16) -> int:
    """Return the first of some ports in a row that nobody listens on."""
    for first in range(17000 + os.getpid() % 400 * 32, 32000, 32):
        if all(_free(port) for port in range(first, first + number)):
            return first
    raise AssertionError(f"no {number} free ports in a row")


def _free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def slurm_workflow(slurm: Cluster, tmp_path: Path) -> SlurmWorkflow:
    """A folder of its own whose jobs go to the cluster by the profile `slurm`."""
    return SlurmWorkflow(tmp_path, slurm)
