"""The dashboard of a folder of results: where it is, and the server that shows it."""

import os
import socket
import sys
from contextlib import nullcontext, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Experiment

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
EVERYWHERE = ("0.0.0.0", "::")
"""hosts that mean all of a machine's"""
SOMEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""addresses of nobody (RFC 5737, RFC 3849)"""
LOCAL = ("localhost", "127.0.0.1", "[[]::1]")
PRIVATE = ("10.*", *(f"172.{n}.*" for n in range(16, 32)), "192.168.*", "fc00:*", "fd00:*")
"""addresses, as patterns of MLflow's for what a browser asks for (RFC 1918, RFC 4193)"""
CHECKS = {
    "--allowed-hosts": "MLFLOW_SERVER_ALLOWED_HOSTS",
    "--cors-allowed-origins": "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS",
}
"""MLflow's checks of who asks, and what people set them by"""


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
    experiment = _experiment(results, uri)
    if is_server(uri):
        return Dashboard(address(public(uri), experiment), [], {})
    _refuse_taken(host, port)
    shown = _names(host)[0]
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    # Of experiments that somebody makes in the browser; else they would lie in the current folder.
    command += ["--workers", "1", "--artifacts-destination", str((results / ARTEFACTS).resolve())]
    command += _checks(host, port)
    environment = {**os.environ, **QUIET, "MLFLOW_BACKEND_STORE_URI": uri}
    return Dashboard(address(f"http://{shown}:{port}", experiment), command, environment)


def _names(host: str) -> list[str]:
    """Return what a browser calls a host: all of a machine's have the machine's names."""
    if host in EVERYWHERE:
        known = [socket.gethostname(), socket.getfqdn(), *own_addresses()]
        return [_in_address(name) for name in dict.fromkeys(known)]
    return [_in_address(host)]


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def own_addresses() -> list[str]:
    """Return the addresses that this machine shows to others, for those who type a number."""
    found = []
    for family, somewhere in SOMEWHERE:
        # Connecting without a stream sends nothing: the kernel only chooses the way.
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((somewhere, 9))
            found.append(way.getsockname()[0])
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _checks(host: str, port: int) -> list[str]:
    """Return the words that let MLflow's server answer to a host's names: by itself it answers to
    this machine alone, and takes searches from pages of this machine alone."""
    if _is_loopback(host):
        return []
    names = _names(host)
    known = [*LOCAL, *PRIVATE, *(name.replace("[", "[[]") for name in names)]
    # Without a port too: a browser leaves out 80.
    hosts = [shown for name in known for shown in (name, f"{name}:*")]
    origins = [f"http://{name}{end}" for name in names for end in ("", f":{port}")]
    said = dict(zip(CHECKS, (",".join(hosts), ",".join(origins)), strict=True))
    return [word for key in said if CHECKS[key] not in os.environ for word in (key, said[key])]


def _experiment(results: Path, uri: str) -> Experiment:
    """Return the experiment of a folder of results."""
    remote = is_remote()  # asked first: MLflow writes its address there
    if not remote:
        if not (results / STORE).is_file():
            raise _missing(results)
        follow_if_free(results / STORE)
    known = taken(uri) if remote else nullcontext()
    with everywhere(uri), answering(uri, AT_FIRST), known:
        client = MlflowClient(uri)
        name = experiment_name(client, results, remote)
        found = client.get_experiment_by_name(name)
    if found is None:
        raise _missing(results)
    refuse_deleted(found)
    return found


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
