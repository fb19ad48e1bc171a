"""Encoders in MLflow: logged once, registered under the run's name.

A logged model holds the weights, so that ``mlflow.pytorch.load_model("models:/<run>/<version>")``
gives the same module as :func:`timewalk.load_encoder`, where timewalk is installed. It is found
again by the digest of the encoder's file: a new evaluation of an encoder makes no new copy.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import mlflow.pytorch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion

from timewalk.artefacts import sha256_file
from timewalk.encoders import load_encoder
from timewalk.encoders.files import TENSORS
from timewalk.errors import UserError
from timewalk.report.mlflow_owner import Owner
from timewalk.report.mlflow_records import Tree, flatten
from timewalk.report.mlflow_store import remove_files

ENCODER, EXPERIMENT, RUN, SUPERSEDED = (
    f"timewalk.{name}" for name in ("encoder_sha256", "experiment", "run", "superseded")
)
CURRENT = "current"
"""alias of the version that a run's files are of"""
VERSIONS = "mlflow.modelVersions"
HALF = ".model."
WEIGHTS = "data/model.pth"
"""where a logged model has what it cannot be without"""


def has_weights(folder: Path) -> bool:
    """Return whether a run's folder has its encoder's weights: results are handed on without."""
    return (folder / TENSORS).is_file()


def find_model(
    client: MlflowClient,
    experiment: str,
    run: str,
    about: Mapping[str, Any],
    scratch: Path,
    owner: Owner,
) -> str | None:
    """Return the number of the logged model of an encoder, None where there is no whole one.

    Which MLflow run it came from does not matter, nor whether somebody has deleted that one. What
    our killed processes have left of models of the run is dropped.

    Args:
        client: of the store.
        experiment: number of the experiment.
        run: our run's name.
        about: content of ``encoder.json``.
        scratch: folder of our own file store.
        owner: who asks.
    """
    named = f"name = '{run}'"
    for model in client.search_logged_models([experiment], named):
        if model.status != "READY" and owner.has(model.tags):
            _drop(client, model, scratch)
    query = f"{named} and tags.`{ENCODER}` = '{about['sha256']}'"
    for model in client.search_logged_models([experiment], query):
        files = client.list_logged_model_artifacts(model.model_id, str(Path(WEIGHTS).parent))
        if WEIGHTS in [file.path for file in files]:
            return str(model.model_id)
        if owner.has(model.tags):
            _drop(client, model, scratch)
    return None


def _drop(client: MlflowClient, model: LoggedModel, scratch: Path) -> None:
    """Delete a logged model; its files first, so that a kill in between leaves it to be found."""
    remove_files(model.artifact_location, model.model_id, scratch)
    client.delete_logged_model(model.model_id)


def log_model(
    client: MlflowClient, experiment: str, run_id: str, tree: Tree, scratch: Path, owner: Owner
) -> str:
    """Write a run's encoder as a logged model, and return its number; READY comes last.

    Args:
        client: of the store.
        experiment: number of the experiment.
        run_id: the MLflow run that it is the outcome of.
        tree: of our run.
        scratch: folder for the files on their way.
        owner: who writes.
    """
    about = tree.encoder
    if (found := sha256_file(tree.folder / TENSORS)) != about["sha256"]:
        raise UserError(
            f"{tree.folder / TENSORS} has SHA-256 {found} but encoder.json says "
            f"{about['sha256']}; train the run again."
        )
    spec = {**about["architecture"], "stride": about["stride"], "summary_width": about["width"]}
    model = client.create_logged_model(
        experiment,
        name=tree.folder.name,
        source_run_id=run_id,
        tags={ENCODER: about["sha256"], RUN: tree.folder.name, **owner.tags},
        params=dict(flatten(spec)),
        model_type="encoder",
    )
    for half in scratch.glob(f"{HALF}*"):
        shutil.rmtree(half)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=HALF) as folder:
        _save(tree, Path(folder) / "model", model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _save(tree: Tree, folder: Path, model_id: str) -> None:
    packages = tree.encoder["provenance"].get("packages", {})
    needed = [f"timewalk=={tree.encoder['provenance'].get('timewalk', '')}"]
    needed += [f"{name}=={packages[name]}" for name in ("torch", "timm") if name in packages]
    # It advises against pickles on each call. Only pickles keep a module with all its methods, and
    # this one is of our own making.
    logger = logging.getLogger("mlflow.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        mlflow.pytorch.save_model(
            load_encoder(tree.folder),
            str(folder),
            mlflow_model=mlflow.models.Model(model_id=model_id),
            pip_requirements=[name.removesuffix("==") for name in needed],
            serialization_format="pickle",
        )
    finally:
        logger.setLevel(level)


def register(
    client: MlflowClient,
    experiment: str,
    run: str,
    model_id: str,
    run_id: str,
    about: Mapping[str, Any],
    owner: Owner,
) -> str:
    """Register a logged model as a version, once, and let the alias point at it.

    Versions that we wrote of the run's other encoders are marked as superseded. Suites that share a
    server share the names of models: a version's tags say whose it is, and of one encoder each has
    a version of its own.

    Args:
        client: of the store.
        experiment: name of the experiment.
        run: our run's name, and the registered model's.
        model_id: of the logged model.
        run_id: the MLflow run that the version is of.
        about: content of ``encoder.json``.
        owner: who writes.

    Returns:
        The version.
    """
    _create(client, run, about)
    source, signed = f"models:/{model_id}", {} if owner.alone else owner.tags
    versions = [
        version
        for version in client.search_model_versions(f"name = '{run}'")
        if version.tags.get(EXPERIMENT) == experiment and _is_own(version, source, owner)
    ]
    own = [version for version in versions if version.source == source]
    if not own:
        tags = {ENCODER: about["sha256"], EXPERIMENT: experiment, SUPERSEDED: "false"}
        created = client.create_model_version(
            run, source, run_id=run_id, tags=tags | owner.tags, model_id=model_id
        )
        own = [created]
    for version in versions:
        wanted = {**signed, SUPERSEDED: str(version.source != source).lower()}
        for tag in wanted.items() - version.tags.items():
            client.set_model_version_tag(run, version.version, *tag)
    number = str(own[0].version)
    if str(client.get_registered_model(run).aliases.get(CURRENT)) != number:
        client.set_registered_model_alias(run, CURRENT, number)
    # As MLflow's own functions do it: its page of models reads the version there.
    versions_tag = json.dumps([{"name": run, "version": number}])
    if client.get_logged_model(model_id).tags.get(VERSIONS) != versions_tag:
        client.set_logged_model_tags(model_id, {VERSIONS: versions_tag})
    return number


def _is_own(version: ModelVersion, source: str, owner: Owner) -> bool:
    """Return whether a version is ours, or of our encoder and of a folder that moved here."""
    tags = version.tags
    moved = version.source == source and owner.succeeds(tags)
    return owner.has(tags) or owner.inherits(tags) or moved


def retire_versions(
    client: MlflowClient, experiment: str, present: Collection[str], owner: Owner
) -> None:
    """Mark the versions that we wrote of runs whose folders are gone as superseded.

    Args:
        client: of the store.
        experiment: name of the experiment.
        present: names of the runs that are there.
        owner: who writes.
    """
    query = f"tags.`{EXPERIMENT}` = '{experiment}' and tags.`{SUPERSEDED}` = 'false'"
    for version in client.search_model_versions(query):
        if version.name not in present and owner.has(version.tags):
            client.set_model_version_tag(version.name, version.version, SUPERSEDED, "true")


def _create(client: MlflowClient, run: str, about: Mapping[str, Any]) -> None:
    if client.search_registered_models(f"name = '{run}'"):
        return
    method = about["provenance"]["config"]["method"]
    client.create_registered_model(
        run, description=f"The encoder of the run '{run}', method '{method}', by timewalk."
    )
