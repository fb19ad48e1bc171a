"""Where MLflow's store is, and what to say when it does not answer."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowException
from mlflow.exceptions import InvalidUrlException

from timewalk.addresses import public
from timewalk.errors import UserError

ADDRESS = "MLFLOW_TRACKING_URI"
WAITING = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
"""how often and how many seconds MLflow waits for a server: by its defaults for minutes"""
AT_FIRST, LATER = ("1", "5"), ("2", "60")
GONE = ("API request to ", "HTTPConnectionPool", "HTTPSConnectionPool")
"""in what MLflow says of a server that does not answer, or not as MLflow's"""
DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""packages of modules that MLflow needs for a database and that have other names"""


def is_remote() -> bool:
    """Return whether ``MLFLOW_TRACKING_URI`` names a store."""
    return bool(os.environ.get(ADDRESS))


def is_server(uri: str) -> bool:
    """Return whether an address is that of a server, which has pages of its own."""
    return uri.startswith(("http://", "https://"))


def store_uri(results: Path) -> str:
    """Return the tracking address: ``MLFLOW_TRACKING_URI``, else ``results/mlflow.db``."""
    return os.environ.get(ADDRESS) or f"sqlite:///{(results / 'mlflow.db').resolve()}"


def remove_files(location: str, number: str, ours: Path) -> None:
    """Remove what a run or a model has written, if it lies in our own file store: MLflow itself
    marks what is deleted, and keeps its files.

    Args:
        location: address of its artefacts, ``…/<number>/artifacts``.
        number: its number.
        ours: folder of our own file store.
    """
    parts = urlsplit(location)
    folder = Path(unquote(parts.path)).parent
    known = parts.scheme == "file" and folder.name == number
    if known and folder.is_relative_to(ours.resolve()) and folder.is_dir():
        shutil.rmtree(folder)


@contextmanager
def everywhere(uri: str) -> Iterator[None]:
    """Make an address MLflow's own: its registry asks no client for it, only MLflow itself."""
    before = os.environ.get(ADDRESS)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        # MLflow's way to forget an address.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ[ADDRESS] = before


@contextmanager
def answering(uri: str, patience: tuple[str, str]) -> Iterator[None]:
    """Turn the silence of a server at an address into one sentence, after seconds.

    Args:
        uri: tracking address.
        patience: how often it is asked again, and seconds for each answer, as text; what the
            environment says comes first.

    Raises:
        UserError: the server is gone or refuses.
    """
    own = {k: x for k, x in zip(WAITING, patience, strict=True) if k not in os.environ}
    os.environ.update(own)
    try:
        yield
    except (MlflowException, OSError) as error:
        text = str(error).splitlines()[0]
        if not is_server(uri) or not any(word in text for word in GONE):
            raise
        shown = public(uri)
        raise UserError(
            f"the MLflow server {shown} does not answer ({text.replace(uri, shown):.300}); every "
            f"result file is kept: start the server, or unset {ADDRESS}, and run again."
        ) from None
    finally:
        for name in own:
            os.environ.pop(name, None)


@contextmanager
def taken(uri: str) -> Iterator[None]:
    """Turn an address of ``MLFLOW_TRACKING_URI`` that MLflow cannot take into one sentence.

    Args:
        uri: tracking address.

    Raises:
        UserError: MLflow knows no such store, or a package for it is missing.
    """
    shown = public(uri)
    try:
        yield
    except ModuleNotFoundError as error:
        package = DRIVERS.get(error.name or "", error.name)
        raise UserError(
            f"{ADDRESS} is {shown}, and the Python package for such a store is missing: "
            f"pip install {package}, or unset {ADDRESS}, and run again."
        ) from None
    except MlflowException as error:
        if is_server(uri) and not isinstance(error, InvalidUrlException):
            raise
        # What it says repeats the address, and that of a wrong one tells no password from a host.
        if "@" in shown:
            shown = f"{shown.partition('://')[0]}://…"
        why = f" ({str(error).splitlines()[0].strip():.100})" if shown == uri else ""
        raise UserError(
            f"{ADDRESS} is {shown}, which MLflow does not take{why}: name a server "
            f"(http://HOST:5000) or a database (sqlite:///FILE), or unset it, and run again."
        ) from None
