"""The doctor: what it finds on made-up machines, and that it says what to do."""

import http.server
import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import threading

import pytest
import yaml

from timewalk import cli
from timewalk.doctor import as_json, examine, healthy
from timewalk.doctor import machine as doctor_machine
from timewalk.doctor.finding import Finding
from timewalk.doctor.text import as_text


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """An empty folder with room, no cluster, no server, and a torch that answers at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TIMEWALK_CACHE", str(tmp_path / "cache"))
    torch = 'import json; print(json.dumps({"cuda": None, "gpus": [], "threads": 1}))'
    monkeypatch.setattr(doctor_machine, "TORCH", torch)
    room = shutil.disk_usage(tmp_path)._replace(free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    _without(monkeypatch, tmp_path, "sbatch", "sinfo", "squeue", "sacct")


def _without(monkeypatch, tmp_path, *names):
    """Take programs from PATH, whatever this machine has."""
    which = shutil.which
    there = tmp_path / "bin"
    there.mkdir()

    def found(name, *rest, **more):
        own = there / name
        return str(own) if own.exists() else None if name in names else which(name, *rest, **more)

    monkeypatch.setattr(shutil, "which", found)
    monkeypatch.setenv("PATH", f"{there}{os.pathsep}{os.environ['PATH']}")


def program(tmp_path, name, text):
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def suite(tmp_path, **keys):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(keys))
    return [path]


def found(findings, area, name):
    return next(f for f in findings if (f.area, f.name) == (area, name))


def test_a_machine_alone_is_healthy():
    findings = examine([])
    assert healthy(findings), [f for f in findings if f.state == "missing"]
    assert {f.area for f in findings} == {"software", "GPUs", "ffmpeg", "disk", "Slurm", "MLflow"}
    assert found(findings, "ffmpeg", "libx264").state == "ok"
    assert found(findings, "GPUs", "CUDA").text.startswith("none: everything runs on the CPU")


def test_videos_are_there_to_come_or_missing(tmp_path):
    (tmp_path / "mine.mp4").touch()
    (tmp_path / "data" / "videos").mkdir(parents=True)
    (tmp_path / "data" / "videos" / "venice.mp4").touch()
    videos = {
        "mine": {"source": "mine.mp4"},
        "lost": {"source": "lost.mp4"},
        "web": {"source": "https://name:secret@example.org/a.mp4"},
        "inside": {"source": "package:timewalk/video/sources.csv"},
    }
    names = [*videos, "venice", "zurich"]
    findings = examine(suite(tmp_path, videos=videos, datasets={"walk": {"videos": names}}))
    states = {f.name: f.state for f in findings if f.area == "videos"}
    assert states == {
        **dict.fromkeys(("mine", "inside", "venice"), "ok"),
        **dict.fromkeys(("web", "zurich"), "to come"),
        "lost": "missing",
    }
    assert "correct videos.lost.source" in found(findings, "videos", "lost").remedy
    assert "secret" not in as_text(findings)
    assert not healthy(findings)


def test_data_sets_are_there_to_come_or_missing(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "VOC").mkdir()
    (tmp_path / "VOC" / ".lock").touch()
    (tmp_path / "JHMDB" / "x").mkdir(parents=True)
    prepared = tmp_path / "data" / "datasets" / "done" / "manifest.json"
    prepared.parent.mkdir(parents=True)
    prepared.touch()
    labelled = {
        "digits": {"kind": "arrays", "path": "digits"},
        "drawn": {"kind": "moving_shapes"},
        "voc": {"kind": "voc2012", "root": "VOC"},
        "davis": {"kind": "davis2017", "root": "DAVIS", "url": "official"},
        "jhmdb": {"kind": "jhmdb", "root": "JHMDB"},
        "done": {"kind": "vip", "root": "nowhere"},
    }
    datasets = {"stills": {"images": "photos"}, "lists": {"list": "list.txt"}}
    findings = examine(suite(tmp_path, datasets=datasets, labelled=labelled))
    states = {f.name: f.state for f in findings if f.area == "data sets"}
    assert states == {
        **dict.fromkeys(("stills", "digits", "jhmdb", "done"), "ok"),
        **dict.fromkeys(("davis", "drawn"), "to come"),
        **dict.fromkeys(("lists", "voc"), "missing"),
    }
    assert "docs/datasets.md" in found(findings, "data sets", "voc").remedy


def test_weights_are_named_by_the_first_run_that_wants_them(tmp_path):
    from timewalk.transfer import local_copy

    address = "https://example.org/kept.pth"
    local_copy(address).parent.mkdir(parents=True)
    local_copy(address).touch()
    runs = {
        "a": {"method": "pretrained", "encoder": {"weights": "none.pth"}},
        "b": {"method": "pretrained", "encoder": {"weights": "none.pth"}},
        "c": {"method": "pretrained", "encoder": {"weights": address}},
        "d": {"method": "pretrained", "encoder": {"weights": "https://example.org/far.pth"}},
        "e": {"method": "pretrained", "encoder": {"weights": "run:a"}},
        "f": {"method": "random"},
    }
    findings = examine(suite(tmp_path, runs=runs))
    states = {f.name: f.state for f in findings if f.area == "weights"}
    assert states == {"a": "missing", "c": "ok", "d": "to come", "e": "to come"}


def test_packages_that_the_suite_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("timewalk.doctor.suite", fromlist=["x"]).PACKAGES, "tsne", ("no-such-thing",)
    )
    items = {"map": {"kind": "tsne", "dataset": "digits"}, "typo": {"kind": "knnn"}}
    findings = examine(suite(tmp_path, evaluations=items))
    assert found(findings, "software", "no-such-thing").remedy == "pip install no-such-thing"
    assert "evaluation map" in found(findings, "software", "no-such-thing").text
    assert "did you mean 'knn'?" in found(findings, "evaluations", "typo").text


def test_gpus_and_a_broken_torch(monkeypatch):
    gpu = 'print(\'{"cuda": "13.0", "gpus": [["H200", 150000000000]], "threads": 1}\')'
    monkeypatch.setattr(doctor_machine, "TORCH", gpu)
    assert [f.text for f in doctor_machine.gpus()] == ["H200, 140 GiB"]
    monkeypatch.setattr(doctor_machine, "TORCH", "raise OSError('libcudart is missing')")
    (broken,) = doctor_machine.gpus()
    assert (broken.state, broken.text) == ("missing", "OSError: libcudart is missing")


def test_the_question_to_torch_is_right():
    import sys

    source = subprocess.run(
        [sys.executable, "-c", "from timewalk.doctor.machine import TORCH; print(TORCH)"],
        capture_output=True,
        text=True,
    ).stdout
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]).keys() == {"cuda", "gpus", "threads"}


def test_an_ffmpeg_without_x264(tmp_path, monkeypatch):
    program(tmp_path, "myffmpeg", 'echo "ffmpeg version 1.0 mine"; echo " V mjpeg x"')
    monkeypatch.setenv("TIMEWALK_FFMPEG", str(tmp_path / "bin" / "myffmpeg"))
    findings = list(doctor_machine.ffmpeg(needed=True))
    assert found(findings, "ffmpeg", "ffmpeg").text.startswith("ffmpeg version 1.0 at ")
    assert found(findings, "ffmpeg", "libx264").state == "missing"
    assert found(findings, "ffmpeg", "mjpeg").state == "ok"
    monkeypatch.setenv("TIMEWALK_FFMPEG", str(tmp_path / "none"))
    broken = found(doctor_machine.ffmpeg(needed=False), "ffmpeg", "ffmpeg")
    assert broken.state == "absent"
    assert "is no executable" in broken.text


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (finding,) = doctor_machine.disk({"results": 0.0})
    assert finding.state == "missing"
    assert "change its permissions" in finding.remedy


def test_room_for_what_is_still_to_come(tmp_path, monkeypatch):
    """Two tours of which one is fetched, one's own video, COCO from its address."""
    data = tmp_path / "data"
    files = suite(
        tmp_path,
        data_dir=str(data),
        videos={"mine": {"source": str(tmp_path / "mine.mp4")}},
        datasets={"walk": {"videos": ["venice", "zurich", "mine"]}},
        blur={"where": "video"},
        labelled={"coco": {"kind": "coco", "root": str(tmp_path / "coco"), "url": "official"}},
    )
    (data / "videos").mkdir(parents=True)
    (data / "videos" / "venice.mp4").touch()
    usage = shutil.disk_usage(tmp_path)
    tours = 2 * (15 + 15 + 25) - 15
    for free, advised in ((tours + 40, False), (tours + 39, True), (0.5, True)):
        room = usage._replace(free=int(free * 2**30))
        monkeypatch.setattr(shutil, "disk_usage", lambda path, room=room: room)
        finding = found(examine(files), "disk", str(data))
        assert (finding.remedy is not None) == advised
        assert finding.state == ("ok" if free > 1 else "missing")
        assert f"{free:.0f} GiB free" in finding.text
        assert f"about {tours + 40} GiB are to come" in finding.text
    (data / "datasets" / "coco").mkdir(parents=True)
    (data / "datasets" / "coco" / "manifest.json").write_text("{}")
    assert f"about {tours} GiB are to come" in found(examine(files), "disk", str(data)).text


def test_partitions_of_a_cluster(tmp_path):
    assert [f.state for f in doctor_machine.slurm()] == ["absent"]
    for name in ("sbatch", "squeue"):
        program(tmp_path, name, "exit 0")
    program(tmp_path, "sinfo", "echo 'gpu*|4|gpu:8|2-00:00:00'; echo 'cpu|2|(null)|infinite'")
    findings = list(doctor_machine.slurm())
    assert found(findings, "Slurm", "gpu*").text == "4 nodes, gpu:8, at most 2-00:00:00"
    assert "no GPUs" in found(findings, "Slurm", "cpu").text
    assert found(findings, "Slurm", "accounting").state == "absent"
    program(tmp_path, "sacct", "exit 0")
    assert not [f for f in doctor_machine.slurm() if f.name == "accounting"]
    program(tmp_path, "sinfo", "exit 1")
    assert "no cluster answers" in found(doctor_machine.slurm(), "Slurm", "partitions").text


def test_the_mlflow_store(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (finding,) = doctor_machine.mlflow(results)
    assert finding.state == "to come"
    with sqlite3.connect(results / "mlflow.db") as base:
        base.execute("create table runs (name text)")
        base.execute("insert into runs values ('dora')")
    base.close()
    (finding,) = doctor_machine.mlflow(results)
    assert finding.text.endswith("mlflow.db, 1 runs")
    (results / "mlflow.db").write_bytes(b"nothing" * 300)
    (finding,) = doctor_machine.mlflow(results)
    assert finding.state == "missing"
    assert "makes it again" in finding.remedy


def test_the_mlflow_server(tmp_path, monkeypatch):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    (finding,) = doctor_machine.mlflow(tmp_path)
    assert finding.state == "ok"
    server.shutdown()
    server.server_close()
    (finding,) = doctor_machine.mlflow(tmp_path)
    assert finding.state == "missing"
    assert "results are kept" in finding.remedy


def test_the_verb_its_json_and_its_exit_code(tmp_path, capsys):
    (config,) = suite(tmp_path, datasets={"stills": {"images": "photos"}})
    assert cli.main(["doctor", str(config), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is False
    assert {"area", "name", "state", "text", "remedy"} == report["findings"][0].keys()
    (tmp_path / "photos").mkdir()
    assert cli.main(["doctor", str(config)]) == 0
    text = capsys.readouterr().out
    assert "Nothing is missing" in text
    assert "MISSING" not in text
    assert cli.main(["doctor", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml is missing" in capsys.readouterr().err


def test_findings_as_text_and_json():
    findings = [
        Finding("disk", "Ergebnisse", "ok", "9 GiB free"),
        Finding("videos", "a", "missing", "x " * 60, "put it there"),
    ]
    text = as_text(findings, width=80)
    assert text.splitlines()[:2] == ["disk", "  ok       Ergebnisse: 9 GiB free"]
    assert "           put it there" in text
    assert max(map(len, text.splitlines())) <= 80
    assert as_json(findings)["findings"][1]["state"] == "missing"


def test_an_mlflow_server_with_a_password(tmp_path, monkeypatch):
    asked = []

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:pw@127.0.0.1:{server.server_port}")
    (finding,) = doctor_machine.mlflow(tmp_path)
    server.shutdown()
    server.server_close()
    assert finding.state == "ok"
    assert asked == ["Basic bWU6cHc="]


def test_a_server_that_does_not_speak_http(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            client.sendall(b"SSH-2.0-OpenSSH\r\n")
            client.close()

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
        (finding,) = doctor_machine.mlflow(tmp_path)
    assert finding.state == "missing"
    assert "hunter2" not in finding.text


def test_an_mlflow_store_elsewhere(tmp_path, monkeypatch):
    store = tmp_path / "mein #1.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    (finding,) = doctor_machine.mlflow(tmp_path)
    assert (finding.state, str(store) in finding.text) == ("to come", True)
    with sqlite3.connect(store) as base:
        base.execute("create table runs (name text)")
    base.close()
    (finding,) = doctor_machine.mlflow(tmp_path)
    assert (finding.state, finding.text) == ("ok", f"{store}, 0 runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@host/base")
    (finding,) = doctor_machine.mlflow(tmp_path)
    assert finding.text == "MLFLOW_TRACKING_URI names a postgresql store, not looked at"


def test_a_module_of_another_distribution_will_do(tmp_path, monkeypatch):
    def version(name):
        raise doctor_machine.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor_machine.metadata, "version", version)
    monkeypatch.setitem(doctor_machine.MODULES, "faiss-cpu", "json")
    monkeypatch.setitem(doctor_machine.MODULES, "onnxruntime", "no_such_module")
    findings = list(doctor_machine.software({"faiss-cpu": "x", "onnxruntime": "y"}))
    assert found(findings, "software", "faiss-cpu").state == "ok"
    assert found(findings, "software", "onnxruntime").state == "missing"


def test_weights_that_are_no_text(tmp_path):
    runs = {
        "a": {"method": "pretrained", "encoder": {"weights": 5}},
        "b": {"method": "pretrained", "encoder": {"weights": ["x.pth"]}},
        "c": {"method": "pretrained", "encoder": {"weights": "run:a"}},
    }
    findings = examine(suite(tmp_path, runs=runs))
    states = {f.name: f.state for f in findings if f.area == "weights"}
    assert states == {"a": "missing", "b": "missing", "c": "to come"}
    assert "runs.a.encoder.weights is 5" in found(findings, "weights", "a").text
