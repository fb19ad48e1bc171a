"""Folders of results, as trainings and evaluations leave them, without either."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from timewalk.video.write import write_mp4

NASTY = "<b>\"ü'&amp; </script>"
"""a name that no page may take for its own text"""


def run(folder: Path, name: str, method: str, *, seed: int = 0, **config: object) -> Path:
    """Write what a training leaves; return the run's folder."""
    place = folder / name
    place.mkdir(parents=True)
    settings = {"method": method, "dataset": "street", "encoder": {"name": "vit_tiny"}} | config
    about = {
        "kind": "encoder",
        "sha256": f"{abs(hash(name)):064x}"[:64],
        "architecture": {"family": "vit", "patch_size": 16},
        "width": 192,
        "patch_width": 192,
        "stride": 16,
        "provenance": {
            "config": settings | {"seed": seed},
            "config_sha256": "c" * 64,
            "git_commit": "0" * 40,
            "inputs": {},
            "packages": {"torch": "2.14.1"},
            "run": name,
            "seed": seed,
            "steps": 300,
            "timewalk": "0.1.0",
        },
    }
    (place / "encoder.json").write_text(json.dumps(about))
    return place


def result(
    place: Path,
    evaluation: str,
    metrics: dict[str, float | None],
    *,
    kind: str = "knn",
    protocol: str = "knn-cls-t0.07",
    dataset: str = "digits",
    artefacts: tuple[str, ...] = (),
    **origin: str,
) -> Path:
    """Write the result of an evaluation of a run."""
    training = json.loads((place / "encoder.json").read_text())["provenance"]
    content = {
        "run": place.name,
        "method": training["config"]["method"],
        "evaluation": evaluation,
        "protocol": protocol,
        "dataset": dataset,
        "split": "test",
        "metrics": metrics,
        "samples": 599,
        "seconds": 1.5,
        "artefacts": list(artefacts),
        "provenance": {
            "settings": {"kind": kind, "k": [5, 20]},
            "git_commit": "0" * 40,
            "device": "cpu (x86_64)",
            "packages": {"torch": "2.14.1"},
            "training": training,
            **origin,
        },
    }
    path = place / f"{evaluation}.json"
    path.write_text(json.dumps(content))
    return path


def log(place: Path, records: list[dict], name: str = "metrics.jsonl") -> None:
    """Write a training's log."""
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def picture(path: Path, width: int = 96, height: int = 64, colour: str = "#336699") -> Path:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def video(path: Path, size: int = 64, frames: int = 10) -> Path:
    """Write a video of a growing square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.full((frames, size, size, 3), 40, np.uint8)
    for number, image in enumerate(images):
        image[: 4 * number, : 4 * number] = 220
    write_mp4(path, images, fps=10)
    return path


def given(root: Path, headline: bool = False) -> Path:
    """Write a suite in which one figure is published: of a headline metric, or of another one."""
    folder = root / "results"
    settings = {"dataset": "imagenet", "dataset_kind": "folder"}
    encoder = {"name": "vit_small", "weights": "https://host/dino_deitsmall16_pretrain.pth"}
    run(folder, "given", "pretrained", encoder=encoder)
    run(folder, "random", "random")
    for name, value in (("given", 76.0), ("random", 5.0)):
        place = folder / name
        metrics = {"top1_final": value, "top1_best": value + 0.5}
        result(place, "linear", metrics, kind="linear", protocol="linear-n4-aug", **settings)
        if headline:
            result(place, "knn", {"top1_k20": value}, **settings)
    return folder


def failed(root: Path, run: str, evaluation: str, sentence: str) -> None:
    """Write the log of an evaluation that has ended with a sentence."""
    path = root / "logs" / "results" / f"evaluate-{run}-{evaluation}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"2026-11-22 06:28:17,259 INFO x: y\ntimewalk evaluate: {sentence}\n")


def some(root: Path) -> tuple[Path, dict[str, list[str]]]:
    """Write a suite of which a part is missing; return its folder and its plan.

    Rows: random, pretrained, dora (two seeds), one of a nasty name. knn: 20, 80, 60 ± 2.83, 40.
    A loss is better where it is lower; dora's linear has failed, crw has nothing yet.
    """
    folder = root / "results"
    scores = {"random": 20.0, "pretrained": 80.0, "dora_seed0": 58.0, "dora_seed1": 62.0}
    for name, score in {**scores, NASTY.replace("/", "|"): 40.0}.items():
        method = name.split("_")[0] if name in scores else "timet"
        place = run(folder, name, method, seed=int(name[-1]) if "seed" in name else 0)
        result(place, "knn", {"top1_k20": score, "top1_k5": score - 1, "top5_k20": 99.0})
        if method != "random":
            records = [{"step": n, "loss": 4 / (n + 1), "learning_rate": n / 9} for n in range(10)]
            log(place, records)
    settings = {"kind": "algorithm_loss", "protocol": f"loss-{NASTY}", "dataset": "pour"}
    for name, error in (("random", 0.4), ("dora_seed0", 0.1), ("dora_seed1", 0.3)):
        result(folder / name, "losses", {"loss_test": error, "tcn_1": None}, **settings)
    picture(folder / "dora_seed0" / "figures" / "objects-0.png")
    picture(folder / "dora_seed0" / "knn" / "map <1>.png", 900, 600)
    result(folder / "dora_seed0", "knn", {"top1_k20": 58.0, "top1_k5": 57.0, "top5_k20": 99.0},
           artefacts=("knn/map <1>.png", "knn/per_class.csv"))  # fmt: skip
    plan = {name: ["knn", "linear", "losses"] for name in ("random", *scores)}
    plan[NASTY.replace("/", "|")] = ["knn"]
    plan["crw"] = ["knn"]
    failed(root, "dora_seed0", "linear", "data/<digits>.json is missing: run its stage.")
    return folder, plan
