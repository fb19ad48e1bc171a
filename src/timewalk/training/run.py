"""A run from its configuration to its files: train or bring the encoder, draw, export."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from timewalk.artefacts import atomic_path, sha256_file, sha256_json, write_json
from timewalk.config import RunConfig
from timewalk.data.clips import ClipSource, open_clips
from timewalk.encoders import save_encoder, save_head
from timewalk.encoders.files import CARD, TENSORS, weights_path
from timewalk.methods import get_method
from timewalk.methods.base import Method, TrainedRunConfig
from timewalk.provenance import provenance
from timewalk.training.between import Evaluate, forget
from timewalk.training.loop import Machine, Trainer
from timewalk.training.system import export as export_system

log = logging.getLogger(__name__)


def train(
    name: str,
    config: RunConfig,
    manifests: Sequence[Path],
    output: Path,
    machine: Machine,
    evaluate: Evaluate | None = None,
) -> None:
    """Train a run, or bring its given encoder, and write ``output/encoder.safetensors``,
    ``encoder.json``, ``metrics.jsonl`` and ``figures/``; of a method with heads that evaluations
    may use also ``head.safetensors``.

    Goes on from ``output/checkpoints/`` if it holds a checkpoint of the same configuration. Called
    in every process that trains; the main one writes.

    Args:
        name: the run's name.
        config: the run.
        manifests: shard manifests of the videos of the run's data set; empty without training.
        output: the run's folder.
        machine: device, workers and processes.
        evaluate: the evaluation between epochs, if the run asks for one.
    """
    method = get_method(config.method)(config).to(machine.device)
    resolved = config.model_dump(mode="json")
    origin = provenance(
        machine.device,
        run=name,
        config=resolved,
        config_sha256=sha256_json(resolved),
        seed=config.seed,
        inputs={str(path): sha256_file(path) for path in manifests},
        weights=_weights(config),
        processes=machine.processes.size,
    )
    if not isinstance(config, TrainedRunConfig):
        with atomic_path(output / "metrics.jsonl") as temporary:
            temporary.write_text("")
        _export(method, {}, output, resolved, origin)
        return
    if config.validation is not None and evaluate is None:
        log.warning(
            "nothing is evaluated between epochs: the command line names no data for the run's "
            "key 'validation' (--validation)"
        )
    shape = method.clip_shape()
    source = open_clips(
        manifests,
        shape.frames,
        shape.step,
        shape.shrink,
        shape.sampling,
        shape.per_video,
        shape.sampler,
        shape.fraction,
    )
    folder = output / "checkpoints"
    trainer = Trainer(method, config, source, folder, machine, origin, evaluate)
    trainer.run()
    if machine.processes.main:
        origin |= {"steps": trainer.total, "clips": len(source)}
        with atomic_path(output / "metrics.jsonl") as temporary:
            shutil.copyfile(folder / "metrics.jsonl", temporary)
        export_system(folder, output)
        forget(output)
        if trainer.between is not None:
            trainer.between.export(output)
        _export(method, _figures(method, source, machine.device), output, resolved, origin)
        for file in (TENSORS, CARD):
            with atomic_path(folder / file) as temporary:
                shutil.copyfile(output / file, temporary)


def _weights(config: RunConfig) -> dict[str, str]:
    """Return the digest of the weights that a run starts from: a resume needs the same ones."""
    weights = config.encoder.weights
    if weights is None or weights.startswith("timm:"):
        return {}
    return {weights: sha256_file(weights_path(weights))}


def _export(
    method: Method, figures: dict[str, Any], output: Path, resolved: Any, origin: dict[str, Any]
) -> None:
    write_json(output / "config.json", resolved)
    for picture, pixels in figures.items():
        with atomic_path(output / "figures" / f"{picture}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
    save_head(method.heads(), output)
    save_encoder(method.encoder, output, origin)


def _figures(method: Method, source: ClipSource, device: torch.device) -> dict[str, Any]:
    """Ask the method for pictures of four clips spread over the data."""
    spread = {len(source) * k // 4 for k in range(4)}
    pictures = {}
    for number, index in enumerate(sorted(spread)):
        clip = source.clip(index).frames.to(device)
        for picture, pixels in method.visualise(clip).items():
            pictures[f"{picture}-{number}"] = pixels
    return pictures
