"""Two calls at once, two projects on one data folder, read-only folders, clocks that differ."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.workflow.conftest import Workflow, miniature
from tests.workflow.forked import unshare
from tests.workflow.kills import command, leftovers
from timewalk import cli
from timewalk.artefacts import alone, atomic_path

TARGETS = ("data", "results/random/knn.json", "results/summary.csv")
HOUR = 3600


def call(folder, *words, cores=2):
    """Start the project's snakemake."""
    return subprocess.Popen(
        command(*words, "--configfile", "suite.yaml", cores=cores),
        cwd=folder,
        env=Workflow(folder).environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    text, _ = process.communicate()
    return process.returncode, text


def run(folder, *words):
    return ended(call(folder, *words))


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """Two projects that made the same data at the same time; what a second call in one said."""
    root = tmp_path_factory.mktemp("projects")
    folders = root / "one", root / "two"
    suite = miniature() | {"data_dir": str(root / "data")}
    del suite["runs"]["dora"]
    for folder in folders:
        folder.mkdir()
        Workflow(folder).configure(suite)
    calls = [call(folder, *TARGETS, cores=1) for folder in folders]
    locks = folders[0] / ".snakemake" / "locks"
    while not list(locks.glob("*.output.lock")):
        assert calls[0].poll() is None, ended(calls[0])
        time.sleep(0.05)
    calls[0].send_signal(signal.SIGSTOP)
    second = run(folders[0], *TARGETS)
    calls[0].send_signal(signal.SIGCONT)
    return root, second, [ended(process) for process in calls]


def files(folder: Path) -> dict[str, str]:
    """Return the digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_second_call_in_a_folder_ends_with_a_message(projects):
    _, (code, text), _ = projects
    assert code == 1
    assert "snakemake: another snakemake, or a job that one has left, is at work" in text
    assert "Directory cannot be locked" in text
    assert "Traceback" not in text


def test_two_projects_make_the_same_data(projects):
    """Snakemake deletes what it makes, so one may take the other's away; none is ever half."""
    root, _, outcomes = projects
    for (code, text), folder in zip(outcomes, ("one", "two"), strict=True):
        print(f"project {folder}: exit code {code}")
        assert "Traceback" not in text, text
        again, text = run(root / folder, *TARGETS)
        assert again == 0, text
    frames = root / "data" / "frames" / "talk" / "carphone"
    jpegs = b"".join(path.read_bytes() for path in sorted(frames.glob("*.jpg")))
    shards = json.loads((root / "data" / "shards" / "talk" / "carphone.json").read_text())
    assert shards["frames_sha256"] == hashlib.sha256(jpegs).hexdigest()
    assert shards["counts"]["frames"] == json.loads((frames / "blur.json").read_text())["frames"]
    assert leftovers(root) == []
    results = [json.loads((root / name / TARGETS[1]).read_text()) for name in ("one", "two")]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_nothing_is_made_twice_at_once(tmp_path, caplog):
    held, order = threading.Event(), []

    def second():
        with alone(tmp_path / "frames"):
            order.append("second")

    with alone(tmp_path / "frames"):
        thread = threading.Thread(target=second)
        thread.start()
        while "another process makes" not in caplog.text:
            assert not held.wait(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_folder_is_replaced_at_once(tmp_path, monkeypatch):
    """Who reads a frame while its folder is made again finds the old one or the new one."""
    frame = tmp_path / "frames" / "0.jpg"
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path: seen.append(frame.read_text()))
    for text in ("old", "new"):
        with atomic_path(frame.parent) as temporary:
            temporary.mkdir()
            (temporary / frame.name).write_text(text)
    assert seen == ["new"]


@pytest.fixture(scope="module")
def finished(projects):
    """A folder in which everything is done; its data lie elsewhere."""
    root, _, _ = projects
    code, text = run(root / "one", *TARGETS)
    assert code == 0, text
    return root / "one"


def test_read_only_results(finished):
    own_mounts = unshare()
    if own_mounts is None:
        pytest.skip("NOT TESTED: no mounts of one's own here, so results cannot be made read-only")
    before = files(finished / "results")
    script = (
        "mount --bind results results && mount -o remount,ro,bind results; timewalk show results; "
        'timewalk card results/random results/random/knn.json; exec "$@"'
    )
    words = command("results/random/card.md", "--configfile", "suite.yaml")
    done = subprocess.run(
        [*own_mounts, "sh", "-c", script, "sh", *words],
        cwd=finished,
        env=Workflow(finished, forked=False).environment(),
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "random  random" in said
    assert (
        "timewalk card: results/random/card.md cannot be written: its device is read-only; make it "
        "writable and run the same command again: what is finished is kept.\n" in said
    )
    assert "results/random is read-only: make it writable, or name another" in said
    assert "Traceback" not in said
    assert files(finished / "results") == before
    code, text = run(finished, "results/random/card.md")
    assert code == 0, text


def test_a_folder_of_another_user(monkeypatch, capsys, tmp_path):
    def denied(results, planned):
        raise PermissionError(errno.EACCES, "Permission denied", str(results / "summary.md"))

    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timewalk.report.show.show_suite", denied)
    assert cli.main(["show", "results"]) == 1
    assert (
        "timewalk show: results/summary.md may not be read or written by this user: change its "
        "permissions, or name another folder, and run the same command again."
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("data", "results"), [(1, 1), (-1, -1), (1, -1), (-1, 1)], ids=lambda hours: f"{hours:+d}h"
)
def test_a_file_servers_clock(finished, data, results):
    """Contents that are the same are not made again, whatever the clock of their disk says."""
    for root, hours in ((finished.parent / "data", data), (finished / "results", results)):
        for path in root.rglob("*"):
            os.utime(path, (time.time() + hours * HOUR,) * 2)
    code, text = run(finished, *TARGETS)
    assert code == 0, text
    assert "Nothing to be done" in text


def test_another_content_with_a_newer_time_is_made_again(finished):
    path = finished.parent / "data" / "datasets" / "digits" / "manifest.json"
    about = path.read_text()
    path.write_text(about + " ")
    os.utime(path, (time.time() + 2 * HOUR,) * 2)
    _, text = run(finished, "-n", *TARGETS)
    assert "rule embed" in text
