"""A folder of results as a suite leaves it, made in a moment, and what a store holds of it."""

import json
from pathlib import Path

import torch
from mlflow import MlflowClient

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, encoder_digest, save_encoder
from timewalk.report.mlflow import mirror, store_uri

TINY = {"name": "vit_tiny", "patch_size": 8, "image_size": 32, "depth": 1, "width": 24, "heads": 2}
CARD = """---
tags: [timewalk]
---

# {name}

What it is.

## Architecture

A table.

## Results

[knn](knn.json): 61.5
"""
START = 1_700_000_000.0
KINDS = {"dora": None, "dora/finetuned/segmented": "dora", "dora/knn": "dora"}
"""runs of MLflow's for one of ours, and what they hang on"""
WHOSE = ("timewalk.owner", "timewalk.results")
"""tags"""


def origin(run: str, **more) -> dict:
    """Return the provenance of a training."""
    config = {
        "method": "dora",
        "dataset": "talk",
        "training": {"epochs": 2, "learning_rate": 0.0005},
        "seed": 3,
    }
    return {
        "run": run,
        "config": config,
        "config_sha256": "c0ffee",
        "git_commit": "abcdef",
        "seed": 3,
        "device": "cpu (test)",
        "timewalk": "0.1.0",
        "packages": {"torch": torch.__version__.split("+")[0]},
        "inputs": {"data/shards/talk/a.json": "a" * 64, "data/shards/talk/b.json": "b" * 64},
        **more,
    }


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def loss(step: int) -> float:
    """Return a number that no straight line of others passes through."""
    return 5.0 - step / 8 + step % 2


def curve(steps: int) -> list[dict]:
    return [
        {"step": n, "epoch": 0, "time": START + n, "loss": loss(n), "odd": None}
        for n in range(steps)
    ]


def knn(folder: Path, top1: float = 61.5) -> dict:
    """Return the result of an evaluation of the encoder that a run's folder holds."""
    encoder = json.loads((folder / "encoder.json").read_text())
    return {
        "run": folder.name,
        "method": "dora",
        "evaluation": "knn",
        "protocol": "knn-x",
        "dataset": "digits",
        "split": "test",
        "samples": 10,
        "seconds": 2.5,
        "metrics": {"top1@k=10": top1, "top1_k20": 50.0, "top5@k=10": None},
        "artefacts": ["knn/confusion.csv", "knn/deep/masks.npz"],
        "provenance": {
            "encoder_sha256": encoder["sha256"],
            "dataset_sha256": "d" * 64,
            "train_dataset_sha256": None,
            "frames_sha256": {},
            "settings": {"kind": "knn", "k": [10]},
            "training": {"seed": 3},
        },
    }


def make_run(folder: Path, seed: int = 0, steps: int = 3) -> Path:
    """Write a run that was trained, fine-tuned and evaluated; return its folder."""
    name = folder.name
    encoder = build_encoder(EncoderConfig(**TINY), seed)
    save_encoder(encoder, folder, origin(name))
    write(folder / "config.json", origin(name)["config"])
    (folder / "card.md").write_text(CARD.format(name=name))
    lines = curve(steps)
    lines.append({"step": steps - 1, "epoch": 0, "time": START + steps, "epoch_loss": 4.0})
    lines.append({"step": steps - 1, "epoch": 0, "time": START + steps, "validation_tau": 0.5})
    write_lines(folder / "metrics.jsonl", lines)
    system = {"step": 0, "time": START, "cpu_utilization_percentage": 50.0}
    write_lines(folder / "system.jsonl", [system])
    write(folder / "validation.json", [{"step": 2, "metrics": {"tau": 0.25, "r2": None}}])
    (folder / "figures").mkdir()
    (folder / "figures" / "objects-0.png").write_bytes(b"png")
    (folder / "knn" / "deep").mkdir(parents=True)
    (folder / "knn" / "confusion.csv").write_text("a,b\n")
    (folder / "knn" / "deep" / "masks.npz").write_bytes(b"large")
    write(folder / "knn.json", knn(folder))
    tuned = folder / "finetuned" / "segmented"
    config = {"task": "semantic_segmentation", "dataset": "scenes", "seed": 3}
    about = origin(name, config=config, inputs={"data/datasets/scenes/manifest.json": "e" * 64})
    about["weights"] = {f"results/{name}": encoder_digest(folder)}
    write(tuned / "network.json", {"sha256": "f" * 64, "provenance": about})
    write_lines(tuned / "metrics.jsonl", curve(2))
    return folder


def content(uri: str) -> list:
    """Return all that a store says, but for numbers that it gives itself and for whose it is."""
    client = MlflowClient(uri)
    found = []
    for experiment in client.search_experiments():
        if experiment.name == "Default":
            continue
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        names = {run.info.run_id: run.info.run_name for run in runs}
        whole = [client.get_run(run_id) for run_id in names]
        found += [_run(client, run, names, experiment.name) for run in whole]
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name = '{model.name}'"):
            tags = sorted(x for x in version.tags.items() if x[0] not in WHOSE)
            found.append((model.name, str(version.version), tags))
        found.append((model.name, model.description, {k: str(v) for k, v in model.aliases.items()}))
    return sorted(found, key=str)


def _run(client: MlflowClient, run, names: dict, experiment: str) -> tuple:
    tags = {key: value for key, value in run.data.tags.items() if key not in WHOSE}
    parent = names.get(tags.pop("mlflow.parentRunId", ""))
    curves = {
        key: sorted(
            (m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }
    inputs = [
        (x.dataset.name, x.dataset.digest, x.dataset.source, [(t.key, t.value) for t in x.tags])
        for x in run.inputs.dataset_inputs
    ]
    return (
        (experiment, run.info.run_name, parent, run.info.status),
        (run.info.start_time, run.info.end_time),
        sorted(tags.items()),
        sorted(run.data.params.items()),
        sorted(curves.items()),
        sorted(inputs),
        sorted(files(client, run.info.run_id)),
        (len(run.inputs.model_inputs), len(run.outputs.model_outputs)),
    )


def files(client: MlflowClient, run_id: str, below: str | None = None) -> list[str]:
    """Return the paths of a run's artefacts."""
    found = []
    for item in client.list_artifacts(run_id, below):
        found += files(client, run_id, item.path) if item.is_dir else [item.path]
    return found


def call(results: Path) -> str:
    """Mirror the run; return the number of its run in MLflow."""
    mirror([results / "dora" / "knn.json"], results, "test", results / "mlflow.json")
    stamp = json.loads((results / "mlflow.json").read_text())["runs"]
    return stamp["dora"]["mlflow_run"]


def runs(results: Path, query: str = "") -> dict:
    """Return the runs in MLflow that a query finds, by name."""
    client = MlflowClient(store_uri(results))
    experiment = client.get_experiment_by_name("test").experiment_id
    return {run.info.run_name: run for run in client.search_runs([experiment], query)}
