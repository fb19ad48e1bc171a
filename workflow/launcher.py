"""The `snakemake` of this project's environment: Snakemake, with two things added.

Targets may stand at the end. Snakemake's options of the form NAME=VALUE take every word that
follows, so that `snakemake --resources gpu=4 results/dora/knn.json` takes the target for a resource
and fails. Here a word without `=` ends such a list and is a target; and so is, after
`--configfile`, a further word that is no YAML file.

The same command is enough after a kill. A killed Snakemake leaves its lock, and the next one cannot
know whether its owner is dead. So each run, and each job of it on this machine, also shares a lock
of the kernel's, on a file of this machine's, which ends when they do: who gets it alone knows that
what is locked is stale, and removes that. Nothing is removed where another machine may be at work
in the folder, or where jobs on a cluster may still run.

`make setup` puts this in place of `.venv/bin/snakemake`; with any other Snakemake name targets
first, and call it with `--unlock` after a kill.
"""

import fcntl
import io
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import TextIO

PAIRS = {
    "--resources", "--res", "--config", "-C", "--set-threads", "--set-resources",
    "--default-resources", "--default-res", "--set-resource-scopes", "--set-scatter",
    "--groups", "--group-components",
}  # fmt: skip
FILES = {"--configfile", "--configfiles"}
LOCKS = Path(".snakemake/locks")
"""Snakemake's own"""
RUNNING = Path(".snakemake/running")
"""a file of each machine: while a run there has not come to its end, it says where its jobs are"""
HERE, CLUSTER = "jobs on this machine\n", "jobs on a cluster\n"


def targets_first(words: list[str]) -> list[str]:
    """Move the words that end a list of NAME=VALUE pairs to the front."""
    targets, rest, in_pairs, in_files = [], [], False, False
    for number, word in enumerate(words):
        if word == "--":
            return targets + rest + words[number:]
        if word.startswith("-"):
            in_pairs, in_files = word in PAIRS, word in FILES
        elif (in_pairs and "=" not in word) or (
            in_files and words[number - 1] not in FILES and not word.endswith((".yaml", ".yml"))
        ):
            targets.append(word)
            continue
        rest.append(word)
    return targets + rest


def jobs_of(words: list[str]) -> str | None:
    """Say where a call with these words has its jobs: here or on a cluster; None: it has none."""
    from snakemake.cli import parse_args
    from snakemake.exceptions import CliException

    try:
        with redirect_stderr(io.StringIO()):
            options = parse_args(words)[1]
    except (SystemExit, CliException):
        return None  # Snakemake itself will say what is wrong
    if options.dryrun or options.nolock or options.directory or not (options.cores or options.jobs):
        return None
    return HERE if options.executor in (None, "local") else CLUSTER


@contextmanager
def running(jobs: str) -> Iterator[None]:
    """Share this machine's lock of the folder; first remove Snakemake's, if killed runs left it."""
    mine = RUNNING / socket.gethostname()
    with ExitStack() as stack:
        try:
            RUNNING.mkdir(parents=True, exist_ok=True)
            # Some network disks share a lock only with who may read.
            handle = stack.enter_context(open(mine, "a+"))
            if not alone(handle):
                say("another snakemake, or a job that one has left, is at work in this folder.")
            else:
                remove_stale_locks(mine)
            fcntl.flock(handle, fcntl.LOCK_SH)
            handle.write(jobs)
            handle.flush()
        except OSError as error:
            say(f"{mine} cannot be written and locked ({error.strerror}): after a kill, --unlock.")
            yield
            return
        if jobs == HERE:
            os.environ["TIMEWALK_RUNNING"] = str(mine.resolve())  # the jobs share the lock
        try:
            yield
        finally:
            if alone(handle) and not locked():
                handle.truncate(0)


def alone(handle: TextIO) -> bool:
    """Take a lock that nobody else holds; return False if somebody does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_stale_locks(mine: Path) -> None:
    """Remove Snakemake's locks if they are those of runs on this machine that were killed."""
    left = set(mine.read_text().splitlines(keepends=True))
    if not left or not locked():
        return
    others = [file.name for file in RUNNING.iterdir() if file != mine and file.stat().st_size]
    if others:
        say(f"a snakemake on {others[0]} is at work in this folder, or was killed.")
    elif CLUSTER in left:
        say(
            "one was killed here whose jobs on the cluster may still run (Slurm shows them: "
            '`squeue --me -o "%i %T %k %N"`): wait for their end or cancel them (`scancel`), then '
            "`snakemake --unlock`, then the same command."
        )
    elif left == {HERE} and not plain_snakemakes():
        for file in LOCKS.glob("*.lock"):
            file.unlink()


def plain_snakemakes() -> list[int]:
    """Return the processes of a Snakemake that works in this folder without this launcher."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program = os.fsdecode((process / "cmdline").read_bytes()).split("\0")[1:3]
            here = (process / "cwd").resolve() == Path.cwd()
        except OSError:  # it has ended, or is another user's
            continue
        snakemake = any(Path(word).name == "snakemake" for word in program)
        if here and snakemake and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def locked() -> bool:
    """Say whether a Snakemake is at work here, or was killed."""
    return any(LOCKS.glob("*.lock"))


def say(sentence: str) -> None:
    """Tell the user something."""
    print(f"snakemake: {sentence}", file=sys.stderr)


def start(words: list[str]) -> None:
    """Run Snakemake with these words."""
    from snakemake.cli import main

    words = targets_first(words)
    sys.argv[1:] = words
    if "--unlock" in words:  # somebody has looked: nothing runs, here or elsewhere
        for file in RUNNING.glob("*"):
            os.truncate(file, 0)
    if jobs := jobs_of(words):
        with running(jobs):
            main()
    else:
        main()


if __name__ == "__main__":
    start(sys.argv[1:])
