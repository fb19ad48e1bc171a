"""One training as several processes: torchrun on this machine, or through srun on several.

``timewalk train`` holds the GPUs and starts torchrun, which starts ``timewalk train`` once a GPU.
Signals to the first reach all of them: they finish the step, save and end.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from timewalk.errors import UserError
from timewalk.training.distributed import die_with_parent, first_host

ERROR_FILE = "TIMEWALK_ERROR_FILE"
"""environment variable: where a worker leaves the sentence of a user's mistake"""
POLL_S, GRACE_S = 1.0, 30.0
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
    with tempfile.TemporaryDirectory(prefix="timewalk-") as folder:
        error = Path(folder) / "error"
        command = [*torchrun(per_node, nodes), "-m", "timewalk.cli", *arguments]
        threads = str(max(1, (os.cpu_count() or 1) // per_node))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, ERROR_FILE: str(error)}
        agent = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
        with _forwarded(agent) as received:
            status = _wait(agent, error)
        if status == 0:
            return 0
        if error.exists():
            raise UserError(error.read_text(encoding="utf-8"))
        if received:
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
    here = int(os.environ.get("SLURM_JOB_NUM_NODES", os.environ.get("SLURM_NNODES", 1)))
    if here != nodes:
        raise UserError(
            f"nodes is {nodes} but this job holds {here} machine(s): give the rule `train` the "
            "resource nodes in the Slurm profile, or set the run's nodes to 1."
        )
    host = first_host(os.environ["SLURM_JOB_NODELIST"])
    job = os.environ["SLURM_JOB_ID"]
    command += ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", job]
    command += ["--rdzv-endpoint", f"{host}:{20000 + int(job) % 20000}"]
    srun = ["srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1"]
    # Within a step of the same job: memory 0 means all of it, shared.
    return [*srun, "--overlap", "--mem=0", "--kill-on-bad-exit=1", *command]


def _knows(option: str) -> bool:
    from torch.distributed.run import get_args_parser

    return option in get_args_parser().format_help()


@contextlib.contextmanager
def _forwarded(agent: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGUSR1 on to torchrun, which passes SIGTERM on to the processes."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        agent.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
