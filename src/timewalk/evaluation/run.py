"""One evaluation of one run, written as one JSON under the schema that all results share."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from timewalk.artefacts import read_json, sha256_file, sha256_json, write_json
from timewalk.config import EvaluationConfig
from timewalk.evaluation import get_evaluation
from timewalk.provenance import provenance


def run_evaluation(
    name: str,
    run: Path,
    config: EvaluationConfig,
    embeddings: Sequence[Path] | None,
    output: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Score a run and write the result.

    Args:
        name: the evaluation's name in the configuration.
        run: the run's folder with ``encoder.safetensors`` and ``encoder.json``.
        config: the evaluation's settings.
        embeddings: features of the training and the test split.
        output: the result's JSON; artefacts go into the folder of the same name.
        device: where to compute.

    Returns:
        What was written: run, method, evaluation, protocol, dataset, split, metrics, samples,
        seconds, artefacts, provenance.
    """
    entry = get_evaluation(config.kind)
    started = time.monotonic()
    folder = output.with_suffix("")
    train, test = embeddings or (None, None)
    result = entry.load().evaluate(train, test, config, folder)
    about = read_json(run / "encoder.json")
    origin = about.get("provenance", {})
    settings = config.model_dump(mode="json")
    record = {
        "run": run.name,
        "method": origin.get("config", {}).get("method"),
        "evaluation": name,
        "protocol": result.protocol,
        "dataset": config.dataset,
        "split": "test",
        "metrics": result.metrics,
        "samples": result.samples,
        "seconds": time.monotonic() - started,
        "artefacts": [str(path.relative_to(output.parent)) for path in result.artefacts],
        "provenance": provenance(
            device,
            settings=settings,
            settings_sha256=sha256_json(settings),
            encoder_sha256=sha256_file(run / "encoder.safetensors"),
            training={key: value for key, value in origin.items() if key != "config"},
            embeddings=[_embedding(path) for path in embeddings or ()],
        ),
    }
    write_json(output, record)
    return record


def _embedding(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    about.pop("classes", None)
    return {"sha256": sha256_file(path), **about}
