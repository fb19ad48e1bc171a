"""The dashboard as people see it: MLflow's own server on a mirrored suite, in a real browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote

import PIL.Image
import pytest
from mlflow import MlflowClient

from tests.browser import PATIENCE_MS, chromium  # noqa: F401
from tests.ports import free_port
from tests.report.mirrored import content, knn, make_run, write
from timewalk import cli
from timewalk.errors import UserError
from timewalk.report.mlflow import mirror, store_uri

CURRENT = quote("tags.timewalk.superseded = 'false'")
RUNS = f"runs?workflowType=machine_learning&searchFilter={CURRENT}"


@dataclass
class Dashboard:
    """A server with everything, and which MLflow runs hold which of ours."""

    address: str
    results: Path
    stamp: dict

    def run(self, name: str) -> str:
        return self.stamp["runs"][name]["mlflow_run"]


def make_suite(folder: Path) -> Path:
    make_run(folder / "dora", seed=0, steps=30)
    make_run(folder / "variant", seed=1, steps=20)
    write(folder / "variant" / "knn.json", knn(folder / "variant", 77.5))
    return folder


def start(folder: Path, port: int) -> subprocess.Popen:
    """Start the server and wait for its answer."""
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    own = ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "kept"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words, *own],
        cwd=folder,
        env=os.environ
        | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=open(folder / "server.log", "w"),  # noqa: SIM115 - the server's own
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_for(server, port, folder)
    return server


def wait_for(server: subprocess.Popen, port: int, folder: Path) -> None:
    """Wait for the answer of a server that writes its log into a folder."""
    for _ in range(PATIENCE_MS // 500):
        time.sleep(0.5)
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (OSError, HTTPException):  # not yet
            continue
    raise AssertionError((folder / "server.log").read_text())


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    results = make_suite(folder / "results")
    address = f"http://127.0.0.1:{port}" if (port := free_port()) else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(UserError, match="does not answer"):
            mirror([], results, "suite", results / "mlflow.json")
        assert not (results / "mlflow.json").exists()
        server = start(folder, port)
        try:
            mirror([], results, "suite", results / "mlflow.json")
            stamp = json.loads((results / "mlflow.json").read_text())
            yield Dashboard(address, results, stamp)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """What `timewalk dashboard` serves: a store of its own, moved after it was written."""
    folder = tmp_path_factory.mktemp("own")
    results = make_suite(folder / "first" / "results")
    drawn = PIL.Image.new("RGB", (64, 48), "teal")
    drawn.save(results / "dora" / "figures" / "objects-0.png")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        MlflowClient(store_uri(results)).create_experiment("another")
        mirror([], results, None, results / "mlflow.json")
        write(results / "dora" / "knn.json", knn(results / "dora", 33.5))
        mirror([], results, None, results / "mlflow.json")
        results = (folder / "first").rename(folder / "second") / "results"
        command = [sys.executable, "-m", "timewalk.cli", "dashboard", "results"]
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=results.parent,
            stdout=open(folder / "server.log", "w"),  # noqa: SIM115 - the server's own
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(server, port, folder)
            lines = (folder / "server.log").read_text().splitlines()
            [printed] = [line for line in lines if line.startswith("http://")]
            stamp = json.loads((results / "mlflow.json").read_text())
            yield Dashboard(printed, results, stamp)
            os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C
            server.wait(120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        assert not (folder / "first").exists()
        assert {path.name for path in results.parent.iterdir()} == {"results"}


@pytest.fixture
def page(dashboard, chromium):  # noqa: F811
    found = chromium.new_page(viewport={"width": 1400, "height": 1000})
    found.set_default_timeout(PATIENCE_MS)
    yield found
    found.close()


def visit(page, dashboard, path: str) -> None:
    """Open a page; a panel about something else opens with the first one."""
    server = dashboard.address.partition("/#/")[0]
    page.goto(f"{server}/#/{path}" if path else dashboard.address)
    page.add_locator_handler(
        page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]'),
        lambda close: close.click(),
    )


def test_the_printed_address_leads_to_the_runs(page, own):
    visit(page, own, "")
    for name in ("dora", "variant"):
        page.get_by_role("link", name=name, exact=True).first.wait_for()
    page.get_by_text(re.compile(r"6\s*matching runs")).wait_for()  # without what is superseded
    page.get_by_text("knn/top1_k20", exact=True).first.wait_for()
    page.get_by_text("timewalk.seed", exact=True).first.wait_for()
    assert "/#/experiments/2/runs?" in own.address


def test_pictures_of_a_moved_store_are_shown(page, own):
    visit(page, own, f"experiments/2/runs/{own.run('dora')}/artifacts/figures/objects-0.png")
    page.get_by_alt_text("figures/objects-0.png").first.wait_for()
    page.wait_for_function("[...document.images].some(image => image.naturalWidth === 64)")


def test_a_server_for_others_answers_to_its_name(own, tmp_path):
    port, name = free_port(), socket.gethostname()
    words = ["dashboard", str(own.results), "--host", "0.0.0.0", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "timewalk.cli", *words],
        stdout=open(tmp_path / "server.log", "w"),  # noqa: SIM115 - the server's own
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(server, port, tmp_path)
        assert f"http://{name}:{port}/#/" in (tmp_path / "server.log").read_text()
        named, private = f"{name}:{port}", f"192.168.1.2:{port}"
        assert [asked(port, host) for host in (named, name, private)] == [200, 200, 200]
        assert asked(port, f"evil.example:{port}") == 403
        assert searched(port, named, f"http://{named}") == 200
        assert searched(port, named, "http://evil.example") == 403
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def asked(port: int, host: str) -> int:
    """Return what a server answers to a browser that knows it under a name."""
    return status(port, "GET", "/", {"Host": host})


def searched(port: int, host: str, origin: str) -> int:
    """Return what a server answers to a page that looks for runs."""
    headers = {"Host": host, "Origin": origin, "Content-Type": "application/json"}
    body = json.dumps({"experiment_ids": ["2"]})
    return status(port, "POST", "/ajax-api/2.0/mlflow/runs/search", headers, body)


def status(port: int, method: str, path: str, headers: dict, body: str | None = None) -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, headers)
        return connection.getresponse().status


def test_a_server_that_runs_is_not_served_again(dashboard, own, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dashboard.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "suite")
    assert cli.main(["dashboard", str(dashboard.results)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{dashboard.address}/#/experiments/1/runs?")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nobody's")
    assert cli.main(["dashboard", str(dashboard.results)]) == 1


def test_a_server_that_was_down_has_everything_a_file_has(dashboard, tmp_path, monkeypatch):
    kept = content(dashboard.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dashboard.address)
    mirror([], dashboard.results, "suite")
    assert content(dashboard.address) == kept
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    again = shutil.copytree(dashboard.results, tmp_path / "results")
    mirror([], again, "suite")
    assert content(store_uri(again)) == kept
    assert not (dashboard.results / "mlflow.db").exists()


def test_the_runs_are_found(page, dashboard):
    visit(page, dashboard, f"experiments/1/{RUNS}")
    for name in ("dora", "variant"):
        page.get_by_role("link", name=name, exact=True).first.wait_for()
    page.get_by_text(re.compile(r"6\s*matching runs")).wait_for()
    assert page.get_by_role("link", name="dora/knn").count() == 0  # below its training


def test_the_curves_are_drawn(page, dashboard):
    visit(page, dashboard, f"experiments/1/{RUNS}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("train/loss")
    page.get_by_text("train/loss", exact=True).first.wait_for()
    # Charts come one after the other, and are drawn again as more of their points arrive.
    page.wait_for_function(
        """() => {
            const lines = [...document.querySelectorAll('.scatterlayer .js-line')];
            const points = lines.map(line => (line.getAttribute('d') ?? '').split(',').length - 1);
            return points.includes(20) && points.includes(30);
        }"""
    )


def test_one_run_says_what_it_is(page, dashboard):
    visit(page, dashboard, f"experiments/1/runs/{dashboard.run('dora')}")
    page.get_by_role("heading", name="dora", exact=True).first.wait_for()
    for text in ("dora/knn", "dora/finetuned/segmented", "system/cpu_utilization_percentage"):
        page.get_by_text(text, exact=True).first.wait_for()
    page.get_by_text(re.compile(r"talk \(")).first.wait_for()
    page.get_by_text("What it is.", exact=True).wait_for()


def test_runs_are_compared(page, dashboard):
    runs = [dashboard.run("dora"), dashboard.run("variant")]
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps(['1']))}"
    visit(page, dashboard, f"compare-runs?{query}")
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    for value in ("knn/top1_k_10", "61.5", "77.5"):
        page.get_by_text(value, exact=True).first.wait_for(state="attached")


def test_encoders_are_in_the_registry(page, dashboard):
    visit(page, dashboard, "models/variant")
    page.get_by_text("Version 1").first.wait_for()
    page.get_by_text(re.compile("current")).first.wait_for()
