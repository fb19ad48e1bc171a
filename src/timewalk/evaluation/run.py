"""One evaluation of one run, written as one JSON under the schema that all results share."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from timewalk.artefacts import read_json, sha256_file, sha256_json, write_json
from timewalk.config import EvaluationConfig
from timewalk.encoders import encoder_digest
from timewalk.encoders.dense.files import CARD as NETWORK_CARD
from timewalk.encoders.files import HEAD, TENSORS
from timewalk.errors import UserError
from timewalk.evaluation import __file__ as registry
from timewalk.evaluation import get_evaluation
from timewalk.evaluation.base import Inputs
from timewalk.provenance import provenance

log = logging.getLogger(__name__)


def run_evaluation(
    name: str, inputs: Inputs, config: EvaluationConfig, output: Path
) -> dict[str, Any]:
    """Score a run and write the result.

    Args:
        name: the evaluation's name in the configuration.
        inputs: the run, the labelled set and what else the evaluation reads.
        config: the evaluation's settings.
        output: the result's JSON; artefacts go into the folder of the same name.

    Returns:
        What was written: run, method, evaluation, protocol, dataset, split, metrics, samples,
        seconds, artefacts, provenance.

    Raises:
        UserError: the evaluation reads embeddings or a network and got none, or the network of
            another encoder; or a metric is no number.
    """
    entry = get_evaluation(config.kind)
    embeddings = [path for path in (inputs.train, inputs.test) if path is not None]
    if entry.needs == "embeddings" and len(embeddings) != 2:
        raise UserError(
            f"evaluations.{name}: '{config.kind}' reads the features of both splits; name them "
            "with --embeddings TRAIN TEST."
        )
    if entry.needs == "network" and inputs.network is None:
        raise UserError(
            f"evaluations.{name}: '{config.kind}' tests a fine-tuned network; name its folder with "
            "--network."
        )
    folder, run = output.with_suffix(""), inputs.run
    network = inputs.network and _network(inputs.network, run)
    started = time.monotonic()
    result = entry.load().evaluate(inputs, config, folder)
    metrics = numbers(result.metrics, f"evaluations.{name}")
    _warn_of_strays(metrics, f"evaluations.{name}", config.kind)
    about = read_json(run / "encoder.json")
    origin = about.get("provenance", {})
    settings = config.model_dump(mode="json", exclude={"runs"})
    record = {
        "run": run.name,
        "method": origin.get("config", {}).get("method"),
        "evaluation": name,
        "protocol": result.protocol,
        "dataset": config.dataset,
        "split": "test",
        "metrics": metrics,
        "samples": result.samples,
        "seconds": time.monotonic() - started,
        "artefacts": [str(path.relative_to(output.parent)) for path in result.artefacts],
        "provenance": provenance(
            inputs.device,
            settings=settings,
            settings_sha256=sha256_json(settings),
            encoder_sha256=sha256_file(run / "encoder.safetensors"),
            head_sha256=sha256_file(run / HEAD) if (run / HEAD).exists() else None,
            dataset_kind=read_json(inputs.dataset).get("parameters", {}).get("kind"),
            dataset_sha256=sha256_file(inputs.dataset),
            train_dataset_sha256=inputs.train_dataset and sha256_file(inputs.train_dataset),
            frames_sha256={path.parent.name: sha256_file(path) for path in inputs.frames},
            training={key: value for key, value in origin.items() if key != "config"},
            network=network,
            embeddings=[_embedding(path) for path in embeddings],
        ),
    }
    write_json(output, record)
    return record


def numbers(metrics: Mapping[str, Any], key: str) -> dict[str, float | None]:
    """Return metrics as JSON takes them; scalars of NumPy and torch become plain numbers.

    Raises:
        UserError: one is no number; names it after the evaluation's key.
    """
    plain = {}
    for name, value in metrics.items():
        scalar = value.item() if getattr(value, "ndim", None) == 0 else value
        if scalar is not None and (isinstance(scalar, bool) or not isinstance(scalar, int | float)):
            raise UserError(
                f"{key}: the metric '{name}' is {_shape(value)}, no number; return a float from "
                "the evaluation, or None where it has no meaning."
            )
        plain[name] = scalar
    return plain


def _warn_of_strays(metrics: Mapping[str, Any], key: str, kind: str) -> None:
    """Name metrics that the registry does not know: it can neither rank nor choose by them."""
    entry = get_evaluation(kind)
    if stray := [f"'{metric}'" for metric in metrics if not entry.declares(metric)]:
        log.warning(
            "%s: the entry '%s' of %s does not declare %s; add what is missing to its 'metrics', "
            "or correct the name.",
            *(key, kind, registry, ", ".join(stray)),
        )


def _shape(value: Any) -> str:
    """Return what a value is, short enough for a sentence."""
    what = f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")
    return f"{what} of shape {tuple(value.shape)}" if hasattr(value, "shape") else what


def _network(folder: Path, run: Path) -> dict[str, Any]:
    about = read_json(folder / NETWORK_CARD)
    weights = about.get("provenance", {}).get("weights", {})
    if weights and encoder_digest(run) not in weights.values():
        raise UserError(
            f"{folder / NETWORK_CARD} is of another encoder than {run / TENSORS} is now; run its "
            "fine-tuning again."
        )
    keys = ("name", "title", "dataset", "images", "steps", "sha256", "provenance")
    return {key: about.get(key) for key in keys}


def _embedding(path: Path) -> dict[str, Any]:
    if path.suffix == ".npy":
        return {"sha256": sha256_file(path)}
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    for names in ("classes", "names"):
        about.pop(names, None)
    return {"sha256": sha256_file(path), **about}
