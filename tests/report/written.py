"""Folders of results, written without training anything."""

import json


def write_run(folder, name, method="dora", seed=0, steps=4, **config):
    """Write a finished run's card and curve."""
    run = folder / name
    run.mkdir(parents=True, exist_ok=True)
    settings = {
        "method": method,
        "dataset": "walk",
        "seed": seed,
        "encoder": {"name": "vit_small", "weights": None},
        "training": {"epochs": 2, "max_steps": steps},
        **config,
    }
    origin = {"run": name, "config": settings, "inputs": {"walk.json": "ab"}, "steps": steps}
    card = {"kind": "encoder", "architecture": {"width": 8, "depth": 2}, "provenance": origin}
    (run / "encoder.json").write_text(json.dumps(card))
    write_curve(run / "metrics.jsonl", steps, 5.0 + seed)
    return run


def write_curve(path, steps, first):
    """Write a falling loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"step": n, "epoch": 0, "time": 100.0 + n, "loss": first - n} for n in range(steps)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_result(
    folder, run, evaluation="knn", protocol="knn-a", dataset="digits", method="dora", **more
):
    """Write a result; what is no key of one is a metric."""
    path = folder / run / f"{evaluation}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, digest = more.pop("kind", evaluation), more.pop("digest", "d1")
    of = more.pop("dataset_kind", None)
    origin = {"dataset_kind": of} if of else {}
    settings = {"kind": kind, **more.pop("settings", {})}
    record = {
        "run": run,
        "method": method,
        "evaluation": evaluation,
        "protocol": protocol,
        "dataset": dataset,
        "split": "test",
        "samples": 10,
        "metrics": more.pop("metrics", more),
        "artefacts": [],
        "provenance": {
            "training": {"seed": 3},
            "settings": settings,
            **({"dataset_sha256": digest} if digest else {}),
            **origin,
        },
    }
    path.write_text(json.dumps(record))
    return path
