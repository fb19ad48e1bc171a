"""What befalls a training on a cluster, and that none of it loses anything.

One `snakemake --profile slurm` trains the same network once for each fault, and once undisturbed.
Each training is halted after a checkpoint (SIGSTOP, so that the fault meets it between the first
step and the last however busy the machine is), then its fault happens, by itself on its node where
that matters. All of them must end, by themselves, with the undisturbed one's weights, bit for bit;
the one on two nodes, whose sums are rounded otherwise, must have stopped by itself.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.slurm.conftest import Cluster, SlurmWorkflow
from tests.workflow.conftest import Workflow, miniature
from timewalk.training.checkpoint import checkpoints

STEPS = 40
WITHIN_S = 600


@dataclass(frozen=True)
class Fault:
    """A way to lose a machine.

    Attributes:
        happen: brings it about, of the running job.
        ends: state of the training's first Slurm job where Snakemake submits a second one, and a
            retry is used up; None where it stays the same job.
        slurm: options of the job.
        partition: where it runs.
        nodes: machines that train together.
    """

    happen: Callable[["Run"], None]
    ends: str | None = None
    slurm: str = "--nodelist=node1"
    partition: str = "gpu"
    nodes: int = 1


@dataclass
class Run:
    """A training on the cluster."""

    name: str
    cluster: Cluster
    folder: Path
    pid: int = 0
    halted: int = 0
    """steps that it had done, at least, when its fault came"""
    jobs: list[dict[str, str]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "results" / self.name

    @property
    def job(self) -> str:
        """Return the newest Slurm job's number."""
        return self.submitted()[-1]["id"]

    def submitted(self) -> list[dict[str, str]]:
        """Return its Slurm jobs, oldest first."""
        here = [job for job in self.cluster.jobs() if job["folder"] == str(self.folder)]
        jobs = [job for job in here if job["comment"].endswith(f"_{self.name}")]
        return sorted(jobs, key=lambda job: int(job["id"]))

    def halt(self, after: int) -> bool:
        """Halt the training once it has a checkpoint of so many steps; return whether it has."""
        steps = [int(path.stem.split("-")[1]) for path in checkpoints(self.output / "checkpoints")]
        if not steps or max(steps) < after:
            return False
        self.pid, self.halted = trainer(self.folder, self.name), max(steps)
        os.kill(self.pid, signal.SIGSTOP)
        return True


def trainer(folder: Path, name: str) -> int:
    """Return the pid of `timewalk train` of a run; of several processes, one that torchrun made."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            ours = {"train", name} < set(words) and process.cwd() == str(folder)
            if not ours:
                continue
            worker = words[1:4] == ["-u", "-m", "timewalk.cli"]
            if worker if FAULTS[name].nodes > 1 else Path(words[1]).name == "timewalk":
                return process.pid
    raise AssertionError(f"{name} has ended before its fault")


def until(call: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + WITHIN_S
    while not call():
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.1)


def cancel(run: Run) -> None:
    run.cluster.call("scancel", run.job)


def requeue(run: Run) -> None:
    run.cluster.call("scontrol", "requeue", run.job)


def kill(run: Run) -> None:
    os.kill(run.pid, signal.SIGKILL)


def reach_time_limit(run: Run) -> None:
    run.cluster.call("scontrol", "update", f"jobid={run.job}", "EndTime=now")


def near_time_limit(run: Run) -> None:
    run.cluster.call("scontrol", "update", f"jobid={run.job}", "EndTime=now+230")


def preempt(run: Run) -> None:
    """Let a job of the better partition need the memory of the run's job."""
    node = run.submitted()[-1]["nodes"]
    words = ["sbatch", "--parsable", "--partition=gpu", f"--nodelist={node}", "--mem=245000"]
    words += ["--cpus-per-task=1", "--output=/dev/null", "--wrap", "sleep 600"]
    urgent = run.cluster.call(*words).strip()

    def state() -> str:
        return next(job["state"] for job in run.cluster.jobs() if job["id"] == urgent)

    until(lambda: state() == "RUNNING", "the preemption")
    run.cluster.call("scancel", urgent)


def lose_node(run: Run) -> None:
    """Let Slurm give the training's node up, and have it back."""
    pair = Run("warned_pair", run.cluster, run.folder)
    until(lambda: {job["state"] for job in pair.submitted()[-1:]} <= {"COMPLETED"}, "its end")
    run.cluster.call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    until(lambda: run.submitted()[-1]["state"] == "PENDING", "the requeue")

    def back() -> bool:
        # A node that is back by itself refuses to be resumed.
        with contextlib.suppress(AssertionError):
            run.cluster.call("scontrol", "update", "nodename=node2", "state=resume")
        state = run.cluster.call("sinfo", "--noheader", "--nodes=node2", "--format=%t")
        return set(state.split()) <= {"idle", "mix", "alloc"}

    until(back, "the node's return")


FAULTS = {
    # First: it takes longest, and needs both nodes to the end.
    "warned_pair": Fault(near_time_limit, "FAILED", "--signal=TERM@240", nodes=2),
    "time_limit": Fault(reach_time_limit, "TIMEOUT"),
    "warned": Fault(near_time_limit, "FAILED", "--nodelist=node1 --signal=TERM@240"),
    "cancelled": Fault(cancel, "CANCELLED"),
    "killed": Fault(kill, "FAILED"),
    "requeued": Fault(requeue),
    "preempted": Fault(preempt, None, "--nodelist=node2", "preempt"),
    # Last: it takes its node away from the one before, if that is still on it.
    "node_down": Fault(lose_node, None, "--nodelist=node2"),
}
RESTARTED = {"requeued", "preempted", "node_down"}
"""faults after which Slurm starts the same job again"""
SHORT = [name for name, fault in FAULTS.items() if fault.nodes == 1]
"""faults of `make test`; `make soak` has all of them"""


def suite() -> dict:
    """Return the miniature with one DoRA for each fault and one more."""
    config = miniature()
    dora = config["runs"]["dora"]
    training = {**dora["training"], "max_steps": STEPS, "checkpoint_minutes": 0.0001}
    alone = {**dora, "training": training}
    config["runs"] = {name: alone | {"nodes": fault.nodes} for name, fault in FAULTS.items()}
    config["runs"]["undisturbed"] = alone
    return config


def resources() -> list[str]:
    """Return the options that put each training where its fault finds it.

    Slurm counts memory that nobody uses: the preempted one's is what another job needs.
    """
    places = {f'"{name}": "{fault.slurm}"' for name, fault in FAULTS.items()}
    places = "{" + ", ".join(sorted(places)) + '}.get(wildcards.run, "--nodelist=node1")'
    chosen = {
        "slurm_extra": places,
        "slurm_partition": '"preempt" if wildcards.run == "preempted" else "gpu"',
        "gpu": "0",
        "mem_mb": '200000 if wildcards.run == "preempted" else 1000',
        "runtime": "60 * attempt",
    }
    rules = ("train", "train_nodes")
    return [
        "--set-threads",
        *(f"{rule}=1" for rule in rules),
        "--set-resources",
        *(f"{rule}:{key}={value}" for rule in rules for key, value in chosen.items()),
        "train_nodes:gres=gpu:1",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder whose frames are ready to train on."""
    workflow = Workflow(tmp_path_factory.mktemp("data"))
    workflow.configure(suite())
    outcome = workflow.run("data")
    assert outcome.code == 0, outcome.text
    return workflow.folder


def disturbed(
    folder: Path, data: Path, slurm: Cluster, after: Callable[[], int], faults: list[str]
) -> dict[str, Run]:
    """Train a run for each fault, let it happen, and return the runs after the last has ended.

    Args:
        folder: working directory, empty.
        data: one with the data.
        slurm: the cluster.
        after: draws the steps after which a training's fault comes.
        faults: their names.
    """
    subprocess.run(["cp", "-a", f"{data}/.", folder], check=True)
    workflow = SlurmWorkflow(folder, slurm)
    runs = {name: Run(name, slurm, folder) for name in [*faults, "undisturbed"]}
    targets = [f"results/{name}/encoder.safetensors" for name in runs]
    command = workflow.command(*targets, *resources())
    with running(command, workflow) as job:
        moments = {name: after() for name in faults}
        ready: set[str] = set()
        over = threading.Event()

        # On the side: none may come to its end while the fault of another one takes its time.
        def halt_all() -> None:
            while not over.is_set() and job.poll() is None and len(ready) < len(faults):
                ready.update(n for n in faults if n not in ready and runs[n].halt(moments[n]))
                time.sleep(0.05)

        with ThreadPoolExecutor(1) as side:
            halting = side.submit(halt_all)

            def halted(name: str) -> bool:
                assert job.poll() is None, (folder / "snakemake.out").read_text()
                if halting.done():
                    halting.result()
                return name in ready

            try:
                for name in faults:
                    until(lambda name=name: halted(name), f"a checkpoint of {name}")
                    FAULTS[name].happen(runs[name])
                status = job.wait(timeout=WITHIN_S)
            finally:
                over.set()
    assert status == 0, (folder / "snakemake.out").read_text()
    for run in runs.values():
        run.jobs = run.submitted()
    return runs


@contextlib.contextmanager
def running(command: list[str], workflow: SlurmWorkflow) -> Iterator[subprocess.Popen]:
    """Have Snakemake run; on the way out it and its jobs end."""
    with (workflow.folder / "snakemake.out").open("w") as out:
        job = subprocess.Popen(
            command, cwd=workflow.folder, env=workflow.environment(), stdout=out, stderr=out
        )
        try:
            yield job
        finally:
            if job.poll() is None:
                job.send_signal(signal.SIGINT)
                job.wait(timeout=60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data, slurm) -> dict[str, Run]:
    return disturbed(tmp_path_factory.mktemp("faults"), data, slurm, lambda: 1, SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_a_training_survives(runs, name):
    check(runs[name], runs["undisturbed"])


def check(run: Run, undisturbed: Run) -> None:
    """Check that a fault has cost the training nothing but time, and what it was to Snakemake."""
    before = FAULTS[run.name].ends
    assert [job["state"] for job in run.jobs] == [before, "COMPLETED"][before is None :]
    # A second attempt has more time.
    assert [job["limit"] for job in run.jobs][1:] == ["2:00:00"] * (before is not None)
    restarts = run.cluster.call("scontrol", "show", "job", run.jobs[-1]["id"])
    assert ("Restarts=0" not in restarts) == (run.name in RESTARTED)
    log = (run.folder / "logs" / "results" / f"train-{run.name}.log").read_text()
    first = int(log.split("going on from step ")[1].split()[0])
    assert run.halted <= first < STEPS
    encoders = [path.name for path in run.output.glob("*encoder*")]
    assert sorted(encoders) == ["encoder.json", "encoder.safetensors"]
    ours, theirs = (x.output / "encoder.safetensors" for x in (run, undisturbed))
    if FAULTS[run.name].nodes == 1:
        assert ours.read_bytes() == theirs.read_bytes()
    else:
        words = "returned non-zero exit status 75"
        assert any(words in text.read_text() for text in slurm_logs(run)), "killed, not stopped"
    lines = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(STEPS))


def slurm_logs(run: Run) -> list[Path]:
    """Return what its failed jobs printed, which Slurm keeps."""
    return list((run.folder / ".snakemake" / "slurm_logs").glob(f"*/{run.name}/*.log"))


def test_none_was_lost(runs, record_property):
    tried = [runs[name] for name in SHORT]
    lost = [run.name for run in tried if run.jobs[-1]["state"] != "COMPLETED"]
    record_property("faults", f"{len(tried)} tried, {len(lost)} lost")
    assert (len(tried), lost) == (7, [])


def test_the_undisturbed_training_ran_once(runs):
    undisturbed = runs["undisturbed"]
    assert [job["state"] for job in undisturbed.jobs] == ["COMPLETED"]
    log = (undisturbed.folder / "logs" / "results" / "train-undisturbed.log").read_text()
    assert "going on from step" not in log


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_at_random_moments(tmp_path, data, slurm, seed):
    draw = random.Random(seed)
    runs = disturbed(tmp_path, data, slurm, lambda: draw.randrange(1, STEPS - 4), list(FAULTS))
    for name in FAULTS:
        check(runs[name], runs["undisturbed"])
