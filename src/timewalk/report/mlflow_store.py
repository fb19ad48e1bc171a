"""Where MLflow's store is, and what to say when it does not answer."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowException

from timewalk.errors import UserError

ADDRESS = "MLFLOW_TRACKING_URI"
WAITING = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
"""how often and how many seconds MLflow waits for a server: by its defaults for minutes"""
AT_FIRST, LATER = ("1", "5"), ("2", "60")
GONE = ("API request to ", "HTTPConnectionPool", "HTTPSConnectionPool")
"""in what MLflow says of a server that does not answer, or not as MLflow's"""


def is_remote() -> bool:
    """Return whether ``MLFLOW_TRACKING_URI`` names a store."""
    return bool(os.environ.get(ADDRESS))


def store_uri(results: Path) -> str:
    """Return the tracking address: ``MLFLOW_TRACKING_URI``, else ``results/mlflow.db``."""
    return os.environ.get(ADDRESS) or f"sqlite:///{(results / 'mlflow.db').resolve()}"


def without_password(uri: str) -> str:
    """Return an address without a name and password that may stand in it."""
    host = urlsplit(uri).netloc
    return uri.replace(host, host.rsplit("@", 1)[1]) if "@" in host else uri


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
        if not urlsplit(uri).scheme.startswith("http") or not any(word in text for word in GONE):
            raise
        shown = without_password(uri)
        raise UserError(
            f"the MLflow server {shown} does not answer ({text.replace(uri, shown):.300}); every "
            f"result file is kept: start the server, or unset {ADDRESS}, and run again."
        ) from None
    finally:
        for name in own:
            os.environ.pop(name, None)
