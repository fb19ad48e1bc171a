"""The dashboard of a folder of results: where it is, and the server that shows it."""

import os
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient

from timewalk.addresses import public
from timewalk.encoders.files import CARD as ENCODER
from timewalk.errors import UserError, reason
from timewalk.report.mlflow import experiment_name, refuse_deleted
from timewalk.report.mlflow_moved import ARTEFACTS, STORE, follow_if_free
from timewalk.report.mlflow_store import (
    AT_FIRST,
    answering,
    everywhere,
    is_remote,
    is_server,
    store_uri,
    taken,
)
from timewalk.report.mlflow_view import address

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""MLflow reports its use to its makers, and runs jobs of its own"""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""what a host that means all of a machine's is called on the machine itself"""


class Dashboard(NamedTuple):
    """Where runs are shown, and by what.

    Attributes:
        address: that a browser opens.
        command: of the server, which is still to be started; empty where one runs.
        environment: of that command. The store's address is there, since it may hold a password.
    """

    address: str
    command: list[str]
    environment: dict[str, str]


def find_dashboard(results: Path, host: str, port: int) -> Dashboard:
    """Return the dashboard of a folder of results.

    With ``MLFLOW_TRACKING_URI`` of a server it is that server's; any other store is to be served.

    Args:
        results: folder of results.
        host: to serve at.
        port: to serve at.

    Raises:
        UserError: the folder is in no store yet, the store does not answer, or the port is taken.
    """
    uri = store_uri(results)
    number = _experiment(results, uri)
    if is_server(uri):
        return Dashboard(address(public(uri), number), [], {})
    _refuse_taken(host, port)
    shown = EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    # Of experiments that somebody makes in the browser; else they would lie in the current folder.
    command += ["--workers", "1", "--artifacts-destination", str((results / ARTEFACTS).resolve())]
    environment = {**os.environ, **QUIET, "MLFLOW_BACKEND_STORE_URI": uri}
    return Dashboard(address(f"http://{shown}:{port}", number), command, environment)


def _experiment(results: Path, uri: str) -> str:
    """Return the number of the experiment of a folder of results."""
    if not is_remote():
        if not (results / STORE).is_file():
            raise _missing(results)
        follow_if_free(results / STORE)
    known = taken(uri) if is_remote() else nullcontext()
    with everywhere(uri), answering(uri, AT_FIRST), known:
        client = MlflowClient(uri)
        name = experiment_name(client, results)
        found = client.get_experiment_by_name(name)
    if found is None:
        raise _missing(results)
    refuse_deleted(found)
    return str(found.experiment_id)


def _missing(results: Path) -> UserError:
    if any(results.glob(f"*/{ENCODER}")):
        return UserError(
            f"no dashboard has the results of {results} yet: mirror them with "
            f"`timewalk mlflow {results}`, and call this again."
        )
    return UserError(
        f"{results} holds no results yet: make them with `snakemake --cores 8` (the demo's with "
        "`make demo`), and call this again."
    )


def _refuse_taken(host: str, port: int) -> None:
    """Refuse a port where the browser would meet the server of somebody else."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing can be served at {host}, port {port} ({reason(error)}): name another port "
            "with --port (make mlflow PORT=5001)."
        ) from None
