"""The one writer of MLflow: mirrors result files into the store, idempotently.

Training and evaluation write files only. Here each run's files become one MLflow run, found again
by a tag that hashes their content: the same files change nothing, changed files make a new run
and mark the older one as superseded. Killed anywhere, it can run again: a run that is not
FINISHED is deleted and written anew. Times come from the files, so that repeating adds nothing.
"""

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType

from timewalk.artefacts import atomic_path, read_json, sha256_file, sha256_json, write_json
from timewalk.errors import UserError

log = logging.getLogger(__name__)

KEY, RUN, SUPERSEDED = "timewalk.key", "timewalk.run", "timewalk.superseded"
BATCH = 1000
"""metrics in one call: MLflow's limit"""


def store_uri(results: Path) -> str:
    """Return the tracking address: ``MLFLOW_TRACKING_URI``, else ``results/mlflow.db``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(results / 'mlflow.db').resolve()}"


def mirror(inputs: Sequence[Path], results: Path, experiment: str, stamp: Path) -> None:
    """Mirror results into MLflow and write which MLflow run holds which of ours.

    Args:
        inputs: result files ``<run>/<evaluation>.json``.
        results: folder that holds the store and its artefacts.
        experiment: name of the MLflow experiment.
        stamp: JSON to write: our runs, their MLflow run numbers and keys.
    """
    results.mkdir(parents=True, exist_ok=True)
    _create_store(results)
    client = MlflowClient(store_uri(results))
    experiment_id = _experiment(client, experiment, results)
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in inputs:
        folders[path.parent].append(path)
    written = {
        folder.name: _mirror_run(client, experiment_id, folder, sorted(paths))
        for folder, paths in folders.items()
    }
    write_json(stamp, {"experiment": experiment, "runs": written})


def _create_store(results: Path) -> None:
    """Make our own store under a temporary name: one that a kill left half made stays broken."""
    store = results / "mlflow.db"
    if os.environ.get("MLFLOW_TRACKING_URI") or store.exists():
        return
    with atomic_path(store) as temporary:
        MlflowClient(f"sqlite:///{temporary.resolve()}").search_experiments()


def _experiment(client: MlflowClient, name: str, results: Path) -> str:
    try:
        found = client.get_experiment_by_name(name)
    except mlflow.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the MLflow store {store_uri(results)} does not answer ({reason}); every result file "
            "is kept: start the server, or unset MLFLOW_TRACKING_URI, and run again."
        ) from None
    if found is not None:
        return str(found.experiment_id)
    # A server keeps artefacts where it was told to; our own file store keeps them beside it.
    location = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        location = (results / "mlartifacts").resolve().as_uri()
    # Else the dashboard opens on an empty page for language-model traces.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=location, tags=kind))


def _mirror_run(
    client: MlflowClient, experiment: str, folder: Path, results: Sequence[Path]
) -> dict[str, str]:
    files = [folder / "encoder.json", folder / "metrics.jsonl", *results]
    key = sha256_json([sha256_file(path) for path in files])
    existing = client.search_runs(
        [experiment], f"tags.`{KEY}` = '{key}'", run_view_type=ViewType.ACTIVE_ONLY
    )
    done = [run for run in existing if run.info.status == "FINISHED"]
    if done:
        return {"mlflow_run": done[0].info.run_id, "key": key}
    for half in existing:
        client.delete_run(half.info.run_id)
    run_id = _write_run(client, experiment, folder, results, key)
    _supersede(client, experiment, folder.name, key)
    log.info("%s: written as MLflow run %s", folder.name, run_id)
    return {"mlflow_run": run_id, "key": key}


def _supersede(client: MlflowClient, experiment: str, name: str, key: str) -> None:
    older = client.search_runs([experiment], f"tags.`{RUN}` = '{name}' and tags.`{KEY}` != '{key}'")
    for run in older:
        client.set_tag(run.info.run_id, SUPERSEDED, "true")


def _write_run(
    client: MlflowClient, experiment: str, folder: Path, results: Sequence[Path], key: str
) -> str:
    origin = read_json(folder / "encoder.json")["provenance"]
    curve = _read_curve(folder / "metrics.jsonl")
    end_ms = int((folder / "encoder.json").stat().st_mtime * 1000)
    start_ms = int(curve[0]["time"] * 1000) if curve else end_ms
    tags = {
        KEY: key,
        RUN: folder.name,
        "timewalk.method": origin["config"]["method"],
        "timewalk.git_commit": str(origin["git_commit"]),
        "timewalk.config_sha256": origin["config_sha256"],
        "timewalk.device": origin["device"],
        "mlflow.runName": folder.name,
    }
    run_id: str = client.create_run(experiment, start_time=start_ms, tags=tags).info.run_id
    parameters = [Param(name, value) for name, value in flatten(origin["config"])]
    for start in range(0, len(parameters), 100):
        client.log_batch(run_id, params=parameters[start : start + 100])
    metrics = [*_curve_metrics(curve), *_result_metrics(results, end_ms)]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    protocols = [RunTag(f"timewalk.protocol.{p.stem}", read_json(p)["protocol"]) for p in results]
    client.log_batch(run_id, tags=protocols)
    _log_artefacts(client, run_id, folder, results)
    client.set_terminated(run_id, status="FINISHED", end_time=end_ms)
    return run_id


def _log_artefacts(
    client: MlflowClient, run_id: str, folder: Path, results: Sequence[Path]
) -> None:
    for name in ("config.json", "encoder.json", "metrics.jsonl", "encoder.safetensors"):
        if (folder / name).exists():
            client.log_artifact(run_id, str(folder / name))
    if (folder / "figures").is_dir():
        client.log_artifacts(run_id, str(folder / "figures"), "figures")
    for path in results:
        client.log_artifact(run_id, str(path), "results")
        for artefact in read_json(path)["artefacts"]:
            client.log_artifact(run_id, str(folder / artefact), f"results/{path.stem}")


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and texts of a nested mapping, as MLflow's parameters want them."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(item)


def metric_name(*parts: str) -> str:
    """Return a name of the characters that MLflow accepts."""
    allowed = "_-. /"
    return "/".join("".join(c if c.isalnum() or c in allowed else "_" for c in p) for p in parts)


def _read_curve(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _curve_metrics(curve: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for record in curve:
        timestamp = int(record["time"] * 1000)
        for name, value in record.items():
            if name not in ("step", "time") and value is not None and math.isfinite(value):
                yield Metric(metric_name("train", name), value, timestamp, record["step"])


def _result_metrics(results: Sequence[Path], timestamp: int) -> Iterator[Metric]:
    for path in results:
        for name, value in read_json(path)["metrics"].items():
            if value is not None:
                yield Metric(metric_name(path.stem, name), value, timestamp, 0)
