"""`timewalk` without the seconds that its imports take: forks of a process that has done them.

A folder with a program `timewalk` for the PATH of a test's Snakemake. The program asks the process
that has everything imported for a fork, which runs the verb in the asker's folder, with its words,
environment and streams; it ends as the verb ends. Where processes are counted, signalled or killed,
tests take the real command.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
order = {{"folder": os.getcwd(), "words": sys.argv[1:], "environment": dict(os.environ)}}
socket.send_fds(server, [b"x"], [0, 1, 2])
server.sendall(json.dumps(order).encode())
server.shutdown(socket.SHUT_WR)
answers = server.makefile()
pid = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = answers.readline()
sys.exit(int(code) if code else 137)
"""
PACKAGES = ("timewalk", "timewalk.cli")
"""whose modules and those of the packages below them verbs import"""
LATE = (
    *("matplotlib.pyplot", "mlflow", "sklearn.cluster", "sklearn.datasets", "sklearn.svm"),
    *("faiss", "cv2", "h5py", "faster_coco_eval"),
)
"""what verbs import where they need it"""


@cache
def folder() -> Path:
    """Return the folder with the program, whose server ends with this process."""
    place = Path(tempfile.mkdtemp(prefix="timewalk-ready-"))
    address = str(place / "socket")
    client = place / "timewalk"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )

    def end() -> None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(place)

    atexit.register(end)
    assert server.stdout.readline() == b"ready\n"
    return place


def _import_all() -> None:
    import timewalk
    from tests.workflow.forked import forget_logging

    for module in pkgutil.walk_packages(timewalk.__path__, "timewalk."):
        importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    forget_logging()


def _serve(listener: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Its end is that of the tests, however they end.
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        asker, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(asker)
        asker.close()


def _answer(asker: socket.socket) -> None:
    from tests.workflow.forked import run_verb

    _, streams, _, _ = socket.recv_fds(asker, 1, 3)
    text = b""
    while part := asker.recv(1 << 16):
        text += part
    order = json.loads(text)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    asker.sendall(f"{os.getpid()}\n".encode())
    code = run_verb(order["words"])
    asker.sendall(f"{code}\n".encode())
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    _import_all()
    door = socket.socket(socket.AF_UNIX)
    door.bind(sys.argv[1])
    door.listen(64)
    # Nothing of the server's own goes to its children.
    print("ready", flush=True)
    gc.freeze()
    _serve(door)
