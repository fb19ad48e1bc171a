"""Where the dashboard is, and what is said when there is none; its server: test_dashboard.py."""

import json
import shutil
import socket
import sqlite3
import sys
from contextlib import closing

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from tests.ports import free_port
from tests.report.mirrored import knn, write
from timewalk import cli
from timewalk.errors import UserError
from timewalk.report import mlflow_dashboard
from timewalk.report.mlflow import mirror, store_uri
from timewalk.report.mlflow_dashboard import find_dashboard, own_addresses
from timewalk.report.mlflow_view import FIRST, ROOM, TAG, write_view


@pytest.fixture
def port():
    return free_port()


def test_without_results_it_says_what_makes_them(tmp_path, bare, port):
    for empty in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(UserError, match="no results yet: make them with `snakemake"):
            find_dashboard(empty, "127.0.0.1", port)
    with pytest.raises(UserError, match=rf"mirror them with `timewalk mlflow {bare}`"):
        find_dashboard(bare, "127.0.0.1", port)
    assert not (bare / "mlflow.db").exists()
    assert not (bare / "mlartifacts").exists()


def test_a_store_without_the_experiment_is_none(results, port):
    with pytest.raises(UserError, match="mirror them with"):
        find_dashboard(results, "127.0.0.1", port)


def test_a_port_that_is_taken_is_one_sentence(results, capsys):
    mirror([], results)
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        assert cli.main(["dashboard", str(results), "--port", str(number)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"port {number} (" in said.err
    assert "make mlflow PORT=5001" in said.err
    assert said.err.count("\n") == 1


def test_the_address_is_of_this_experiment_whatever_its_number(results, port, monkeypatch):
    for name in ("first", "second"):
        MlflowClient(store_uri(results)).create_experiment(name)
    mirror([], results)
    started = []
    monkeypatch.setattr("os.execvpe", lambda *words: started.append(words))
    found = find_dashboard(results, "0.0.0.0", port)
    assert found.address == (
        f"http://{socket.gethostname()}:{port}/#/experiments/3/runs?workflowType=machine_learning"
        "&viewStateShareKey=timewalk"
    )
    assert found.environment["MLFLOW_BACKEND_STORE_URI"] == store_uri(results)
    assert cli.main(["dashboard", str(results), "--port", str(port)]) == 0
    [(program, command, _)] = started
    assert program == sys.executable
    assert command[1:4] == ["-m", "mlflow", "server"]
    assert command[command.index("--port") + 1] == str(port)


def test_a_store_of_an_earlier_version_has_no_view_to_lead_to(results, port):
    mirror([], results)
    with closing(sqlite3.connect(results / "mlflow.db", isolation_level=None)) as store:
        gone = store.execute("DELETE FROM experiment_tags WHERE key LIKE 'mlflow.sharedViewState%'")
        assert gone.rowcount == 1
    found = find_dashboard(results, "127.0.0.1", port)
    assert found.address.endswith("/runs?workflowType=machine_learning")


def test_only_beyond_this_machine_names_are_let_in(results, port, monkeypatch):
    mirror([], results)
    for host in ("127.0.0.1", "localhost"):
        assert "--allowed-hosts" not in find_dashboard(results, host, port).command
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(socket, "getfqdn", lambda: "node7.example")
    monkeypatch.setattr(mlflow_dashboard, "own_addresses", lambda: ["203.0.113.7", "2001:db8::7"])
    command = find_dashboard(results, "0.0.0.0", port).command
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    wanted = {"node7", "node7.example", "localhost", "127.0.0.1", "10.*", "192.168.*"}
    wanted |= {"203.0.113.7", "[[]2001:db8::7]"}
    assert wanted | {f"{name}:*" for name in wanted} <= set(hosts)
    assert "*" not in hosts
    origins = command[command.index("--cors-allowed-origins") + 1].split(",")
    names = ("node7.example", "203.0.113.7", "[2001:db8::7]")
    assert {f"http://{name}:{port}" for name in names} < set(origins)
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "own.example")
    assert "--allowed-hosts" not in find_dashboard(results, "0.0.0.0", port).command


def test_own_addresses_are_this_machines():
    interfaces = psutil.net_if_addrs().values()
    ours = {address.address.partition("%")[0] for one in interfaces for address in one}
    assert set(own_addresses()) <= ours  # none where no way leads out


def test_another_store_is_served_without_its_password_in_sight(results, port, monkeypatch):
    """A password in a command is seen by everybody on the machine."""
    other = shutil.copy(results / "mlflow.db", results / "other.db")
    monkeypatch.chdir(results)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    mirror([], results)
    found = find_dashboard(results, "127.0.0.1", port)
    assert f"sqlite:///{other}" not in " ".join(found.command)
    assert found.environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{other}"


def view(results):
    client = MlflowClient(store_uri(results))
    return json.loads(client.get_experiment_by_name("test").tags[TAG])


def test_headline_numbers_are_columns(results):
    bare = knn(results / "dora") | {"artefacts": []}
    write(results / "dora" / "drawn.json", bare | {"metrics": {}})
    mirror([], results, "test")
    first = ["tags.`timewalk.method`", "tags.`timewalk.seed`", "metrics.`knn/top1_k20`"]
    assert view(results) == {
        "searchFilter": "tags.timewalk.superseded = 'false'",
        "selectedColumns": first,
    }
    (results / "dora" / "knn.json").unlink()
    write(results / "dora" / "nearest.json", bare)
    mirror([], results, "test")
    *tags, old = first
    assert view(results)["selectedColumns"] == [*tags, "metrics.`nearest/top1_k20`", old]


def test_columns_of_today_come_first_and_old_ones_while_there_is_room(results):
    client = MlflowClient(store_uri(results))
    mirror([], results, "test")
    number = client.get_experiment_by_name("test").experiment_id
    old = [f"metrics.`{name:03}/{'x' * 190}`" for name in range(40)]
    client.set_experiment_tag(number, TAG, json.dumps({"selectedColumns": old}))
    mirror([], results, "test")
    assert view(results)["selectedColumns"][:3] == [*FIRST, "metrics.`knn/top1_k20`"]
    kept = view(results)["selectedColumns"][3:]
    assert kept == old[: len(kept)]
    text = client.get_experiment(number).tags[TAG]
    assert ROOM - 210 < len(text) <= ROOM <= MAX_EXPERIMENT_TAG_VAL_LENGTH


@pytest.mark.parametrize("text", ["mine", "[]", "{}", '{"selectedColumns": 3}'])
def test_a_view_that_somebody_has_edited_is_written_anew(results, text, caplog):
    client = MlflowClient(store_uri(results))
    number = client.create_experiment("test")
    client.set_experiment_tag(number, TAG, text)
    write_view(client, number, [])
    assert view(results)["selectedColumns"] == list(FIRST)
    assert [line for line in caplog.messages if "is written anew" in line]
