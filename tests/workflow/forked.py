"""A process with mounts of its own that runs verbs in forks: imports are paid once.

Mounts are seen in it alone and go with it, whatever happens to the tests. Run as a program it reads
a JSON order a line and answers each with one.
"""

import gc
import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

USERS = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])


class Forked:
    """That process, seen from the tests."""

    def __init__(self, unshare: list[str], *modules: str) -> None:
        command = [*unshare, sys.executable, __file__, *modules]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._ask(ready=True) == {}

    def seen(self, path: Path) -> Path:
        """Return under which name this process sees what is mounted in that one."""
        return Path(f"/proc/{self._process.pid}/root") / path.relative_to("/")

    def mount(self, path: Path, size: int) -> None:
        """Give a folder a disk of its own, or another size in bytes to the one that it has."""
        self._ask(mount=str(path), size=size)

    def unmount(self, path: Path) -> None:
        """Take a folder's disk away, if it has one, with all that is on it."""
        self._ask(unmount=str(path))

    def verb(self, folder: Path, words: list[str], **environment: str) -> tuple[int, str]:
        """Run a verb in a folder; return its exit code and what it writes to the terminal."""
        said = self._ask(folder=str(folder), words=words, environment=environment)
        return said["code"], said["text"]

    def command(self, folder: Path, words: list[str], **environment: str) -> tuple[int, str]:
        """Run any command."""
        said = self._ask(folder=str(folder), command=words, environment=environment)
        return said["code"], said["text"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **order: object) -> dict:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "wrong" not in answer, answer
        return answer


def unshare() -> list[str] | None:
    """Return the command that gives a process mounts of its own, None where nothing does."""
    for words in USERS:
        done = subprocess.run(
            [*words, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True
        )
        if done.returncode == 0:
            return words
    return None


def _serve(orders, answers) -> None:
    mounted = set()
    for line in orders:
        order = json.loads(line)
        answer = {}
        try:
            if "mount" in order:
                again = "remount," if order["mount"] in mounted else ""
                options = f"{again}size={order['size']}"
                place = order["mount"]
                subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
                mounted.add(place)
            elif "unmount" in order:
                if order["unmount"] in mounted:
                    # A process that a verb has started may still be at its end there.
                    subprocess.run(["umount", "--lazy", order["unmount"]], check=True)
                    mounted.remove(order["unmount"])
            elif "folder" in order:
                answer = _run(order)
        except Exception as error:
            answer = {"wrong": repr(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _run(order) -> dict:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(order["folder"])
        os.environ.update(order["environment"])
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(reader)
        os.close(writer)
        if "command" in order:
            os.execvp(order["command"][0], order["command"])
        # Without the seconds that it takes to take all the modules down.
        os._exit(run_verb(order["words"]))
    os.close(writer)
    with os.fdopen(reader, errors="replace") as text:
        said = text.read()
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "text": said}


def forget_logging() -> None:
    """Undo what libraries set up as they are imported: verbs set logging up before they do."""
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)


def run_verb(words: list[str]) -> int:
    """Return a verb's exit code, as its process would end with."""
    from timewalk.cli import main

    code = 1
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    import importlib

    for module in sys.argv[1:]:
        importlib.import_module(module)
    forget_logging()
    # The children's own streams are others.
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    gc.freeze()
    _serve(orders, answers)
