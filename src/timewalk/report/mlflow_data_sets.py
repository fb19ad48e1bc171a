"""Data sets as the dashboard names them: digest, where they lie, what for."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timewalk.artefacts import sha256_json

DIGEST = 32
"""characters of a digest that MLflow keeps of a data set: it takes 36"""
SOURCE = 32_768
"""characters of where a data set lies that are written out: MLflow takes 65,535"""


class DataSet(NamedTuple):
    """A data set that something was made from: digest and where it lies."""

    name: str
    digest: str
    source: Mapping[str, Any]
    context: str


def training_data(config: Mapping[str, Any], origin: Mapping[str, Any]) -> list[DataSet]:
    """Return what a training of this configuration and provenance has seen."""
    inputs = origin.get("inputs")
    if not inputs:
        return []
    # One manifest stands for itself; several are one data set.
    digests = sorted(inputs.values())
    digest = digests[0] if len(digests) == 1 else sha256_json(digests)
    return [DataSet(config["dataset"], digest[:DIGEST], _source(inputs), "training")]


def _source(manifests: Mapping[str, str]) -> dict[str, Any]:
    """Return where a data set lies: each manifest with its digest, or of very many their number,
    one digest over all and the folder that they share."""
    whole = {"manifests": dict(manifests)}
    if len(json.dumps(whole)) <= SOURCE:
        return whole
    folder = os.path.commonpath([Path(path).parent for path in manifests])
    return {"count": len(manifests), "sha256": sha256_json(manifests), "folder": str(folder)}


def evaluation_data(result: Mapping[str, Any]) -> Iterator[DataSet]:
    """Yield what a result was measured on."""
    origin = result["provenance"]
    settings = origin.get("settings", {})
    named = (
        (result["dataset"], "dataset_sha256", f"evaluation ({result['split']})"),
        (settings.get("train_dataset"), "train_dataset_sha256", "evaluation (training split)"),
    )
    for name, key, context in named:
        if name and (digest := origin.get(key)):
            yield DataSet(name, digest[:DIGEST], {"manifest_sha256": digest}, context)
    frames = origin.get("frames_sha256")
    if frames:
        digest = sha256_json(frames)[:DIGEST]
        name = settings.get("frames") or "frames"
        yield DataSet(name, digest, _source(frames), "evaluation (frames)")
