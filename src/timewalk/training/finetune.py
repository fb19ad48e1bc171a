"""A fine-tuning from a run's encoder to a network in files: train or go on, save."""

import shutil
from pathlib import Path

from timewalk.artefacts import atomic_path, read_json, sha256_file, sha256_json
from timewalk.encoders import encoder_digest, load_encoder
from timewalk.encoders.dense.files import save_network
from timewalk.finetuning import get_task
from timewalk.finetuning.base import Finetuning, FinetuningConfig
from timewalk.provenance import provenance
from timewalk.training.loop import Machine, Trainer
from timewalk.training.system import export as export_system


def finetune(
    name: str,
    config: FinetuningConfig,
    run: Path,
    manifest: Path,
    output: Path,
    machine: Machine,
) -> None:
    """Fine-tune a run's encoder, and write ``output/network.safetensors``, ``network.json`` and
    ``metrics.jsonl``.

    Goes on from ``output/checkpoints/`` if it holds a checkpoint of the same configuration. After a
    change of encoder or data it starts anew, with the older checkpoints moved aside: unlike a run,
    it is made of another training. Called in every process that trains; the main one writes.

    Args:
        name: the fine-tuning's name.
        config: the fine-tuning.
        run: the run's folder.
        manifest: ``manifest.json`` of the labelled set.
        output: folder of the network.
        machine: device, workers and processes.
    """
    task = get_task(config.task)(config, load_encoder(run), read_json(manifest))
    task.to(machine.device)
    source = task.open(manifest)
    resolved = config.model_dump(mode="json")
    origin = provenance(
        machine.device,
        run=run.name,
        finetuning=name,
        config=resolved,
        config_sha256=sha256_json(resolved),
        seed=config.seed,
        inputs={str(manifest): sha256_file(manifest)},
        weights={str(run): encoder_digest(run)},
        processes=machine.processes.size,
    )
    folder = output / "checkpoints"
    trainer = Trainer(task, config, source, folder, machine, origin, derived=True)
    trainer.run()
    if not machine.processes.main:
        return
    with atomic_path(output / "metrics.jsonl") as temporary:
        shutil.copyfile(folder / "metrics.jsonl", temporary)
    export_system(folder, output)
    about = {
        "name": name,
        "task": config.task,
        "title": task.title() + _normalised(task, trainer),
        "dataset": config.dataset,
        "classes": read_json(manifest)["classes"],
        "sizes": task.sizes(),
        "images": len(source),
        "steps": trainer.total,
        "provenance": origin,
    }
    save_network(task.network, output, about)


def _normalised(task: Finetuning, trainer: Trainer) -> str:
    """Return what the protocol's name says where batch normalisations saw less than a batch."""
    whole = trainer.together == trainer.settings.batch_size
    return f"-bn{trainer.together}" if task.batch_statistics and not whole else ""
