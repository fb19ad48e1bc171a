"""One training as several processes: torchrun on this machine, or through srun on several.

``timewalk train`` holds the GPUs and starts torchrun, which starts ``timewalk train`` once a GPU.
Signals to the first reach all of them on one machine: they finish the step, save and end. On
several Slurm signals them itself, and srun must not hear of it: it would kill them at once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from timewalk.errors import UserError
from timewalk.training.distributed import (
    die_with_parent,
    first_host,
    hosts_of_job,
    meeting_port,
)

ERROR_FILE = "TIMEWALK_ERROR_FILE"
"""environment variable: where a worker leaves the sentence of a user's mistake"""
INTERRUPTED_FILE = "interrupted"
"""name of the file beside it that a worker leaves when it has stopped after a signal"""
POLL_S, GRACE_S = 1.0, 30.0
SERVE = '[ "$SLURMD_NODENAME" = "$0" ] && serves=1; PET_RDZV_CONF=is_host=${serves:-0} exec "$@"'
"""shell script that runs torchrun; the machine named first is where the processes meet

torchrun's own guess compares addresses, and misses those of a second network card.
"""
FINISH_S = 600
"""seconds that a step and its checkpoint may take after a signal"""


def launch(arguments: Sequence[str], per_node: int, nodes: int) -> int:
    """Run ``timewalk`` with these arguments in several processes and return 0, or 75 after a
    signal.

    Args:
        arguments: the verb and its arguments.
        per_node: processes on each machine.
        nodes: machines; more than one needs a Slurm allocation of as many.

    Raises:
        UserError: a process failed; with its sentence if it had one.
    """
    # Of the folders that all machines see, the working directory is the one known here.
    shared = None if nodes == 1 else Path.cwd()
    with tempfile.TemporaryDirectory(prefix=".timewalk-", dir=shared) as folder:
        error = Path(folder) / "error"
        command = [*torchrun(per_node, nodes), "-m", "timewalk.cli", *arguments]
        threads = str(max(1, (os.cpu_count() or 1) // per_node))
        inherited = dict(os.environ) if nodes == 1 else without_step(os.environ)
        environment = {"OMP_NUM_THREADS": threads, **inherited, ERROR_FILE: str(error)}
        agent = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
        with _forwarded(agent if nodes == 1 else None) as received:
            status = _wait(agent, error)
        if status == 0:
            return 0
        # It is empty where the disk took no more.
        if error.exists() and (said := error.read_text(encoding="utf-8")):
            raise UserError(said)
        if received or error.with_name(INTERRUPTED_FILE).exists():
            return 75
        raise UserError(
            f"a training process ended with status {status}: see the log; the same command goes on "
            "from the last checkpoint."
        )


def _wait(agent: subprocess.Popen[bytes], error: Path) -> int:
    """Wait for torchrun; once a process has failed, the others get a little time and no more.

    A process that waits for the failed one inside CUDA hears no signal.
    """
    while True:
        try:
            return agent.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            if not error.exists():
                continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            return agent.wait(timeout=GRACE_S)
        agent.kill()  # its processes die with it


def torchrun(per_node: int, nodes: int) -> list[str]:
    """Return the command that starts the processes, without what they run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(per_node)]
    if _knows("--shutdown-timeout"):
        command += ["--shutdown-timeout", str(FINISH_S)]
    if nodes == 1:
        return [*command, "--standalone"]
    job = os.environ.get("SLURM_JOB_ID")
    hosts = hosts_of_job(job) if job else ["this machine"]
    if job is None or len(hosts) != nodes:
        raise UserError(
            f"nodes is {nodes} but this job holds {len(hosts)} machine(s): train under Slurm "
            "(`snakemake --profile slurm` asks for as many), or set nodes to 1."
        )
    command += ["--nnodes", str(nodes), "--rdzv-backend", "c10d"]
    command += ["--rdzv-id", f"{job}-{os.getpid()}"]
    command += ["--rdzv-endpoint", f"{first_host(hosts[0])}:{meeting_port(job)}"]
    srun = ["srun", "--jobid", job, "--nodes", str(nodes), "--ntasks", str(nodes)]
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        srun += ["--cpus-per-task", cores]
    # Beside the step that this process is: memory 0 means all of it, shared.
    shared = ["--overlap", "--mem=0", "--kill-on-bad-exit=1"]
    return [*srun, "--ntasks-per-node", "1", *shared, "sh", "-c", SERVE, hosts[0], *command]


def without_step(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the step that this process runs in.

    srun takes a step's one machine and its GPUs for options, and would refuse the job's others.
    """
    return {
        key: value
        for key, value in environment.items()
        if key == "SLURM_CONF" or not key.startswith(("SLURM_", "CUDA_VISIBLE_DEVICES"))
    }


def _knows(option: str) -> bool:
    from torch.distributed.run import get_args_parser

    return option in get_args_parser().format_help()


@contextlib.contextmanager
def _forwarded(agent: subprocess.Popen[bytes] | None) -> Iterator[list[int]]:
    """Pass SIGTERM or SIGUSR1 on to torchrun, if any, which passes SIGTERM on to the processes.

    Once: Slurm signals torchrun as well, and at the third it kills them.
    """
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        if agent is not None and not received:
            agent.send_signal(signal.SIGTERM)
        received.append(number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
