"""What the dashboard is told of a run, read from its files: no MLflow here.

A run's folder becomes a tree: the training, and below it one entry for each fine-tuning and each
evaluation. Times come from the files, so that reading again gives the same entries.
"""

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from timewalk.artefacts import read_json, sha256_file, sha256_json
from timewalk.encoders.files import CARD as ENCODER
from timewalk.encoders.files import TENSORS, encoder_digest
from timewalk.errors import UserError
from timewalk.report.mlflow_data_sets import DataSet, evaluation_data, training_data
from timewalk.report.mlflow_secrets import clean_copy, secrets, without

log = logging.getLogger(__name__)

LAYOUT = 3
"""of what is written: a store of another one is written anew"""
SHOWN = frozenset(
    f".{kind}"
    for kind in "png jpg jpeg gif svg mp4 webm html csv json md tex txt pdf".split()  # noqa: SIM905
)
"""suffixes of what people look at; masks, features and archives stay where they are"""
OWN = ("config.json", ENCODER, "metrics.jsonl", "system.jsonl", "validation.json", "card.md")
"""files of a run that its entry carries, where it has them"""
NETWORK = "network.json"
RESULT_KEYS = frozenset(
    (
        *("run", "evaluation", "protocol", "dataset", "split", "metrics", "samples", "seconds"),
        *("artefacts", "provenance"),
    )
)


class Point(NamedTuple):
    """One number at one step; the time in ms since 1970."""

    name: str
    value: float
    time_ms: int
    step: int


class File(NamedTuple):
    """A file, the folder that it is shown in, and its text without secrets if it holds some."""

    path: Path
    folder: str | None
    text: str | None = None


@dataclass
class Entry:
    """One run of MLflow's.

    Attributes:
        kind: training, finetuning or evaluation.
        name: shown.
        tags: to find it by.
        parameters: dotted names and texts.
        points: curves and single numbers.
        datasets: what it was made from.
        files: what is kept with it.
        start_ms: since 1970.
        end_ms: since 1970.
    """

    kind: str
    name: str
    tags: dict[str, str]
    parameters: dict[str, str]
    points: list[Point]
    datasets: list[DataSet]
    files: list[File]
    start_ms: int
    end_ms: int


@dataclass
class Tree:
    """A training and what hangs on it.

    Attributes:
        folder: of the run.
        key: digest of all its files: the same key, the same tree.
        encoder: content of ``encoder.json``.
        training: the entry on top.
        children: fine-tunings, then evaluations.
        left_out: results that were measured with another encoder, and fine-tunings of one.
        gone: files that results name and that are not there.
    """

    folder: Path
    key: str
    encoder: dict[str, Any]
    training: Entry
    children: list[Entry] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    gone: list[Path] = field(default_factory=list)


def read_tree(folder: Path, results: Sequence[Path]) -> Tree:
    """Read a run's folder: its files as they are, but for addresses with secrets in them.

    Args:
        folder: of the run.
        results: result files of its evaluations; those of another encoder are left out, and so
            are its fine-tunings.

    Raises:
        UserError: a file is missing or damaged.
    """
    about = read_json(folder / ENCODER)
    networks, older = _networks(folder)
    found, left_out = _of_encoder({path: _read_result(path) for path in sorted(results)}, about)
    training = _training(folder, about)
    evaluations = [_evaluation(path, result) for path, result in found.items()]
    for path, result in found.items():
        training.points += _result_points(path, result)
        training.tags[f"timewalk.protocol.{path.stem}"] = result["protocol"]
    children = [*(_finetuning(path) for path in networks), *evaluations]
    entries = [training, *children]
    gone = _leave_gone(entries)
    own = [read_json(path) for path in (folder / "config.json", *networks) if path.is_file()]
    hidden = secrets([about, *own, *found.values()])
    for entry in entries:
        _hide(entry, hidden)
    key = _key(folder, list(found), networks, gone)
    return Tree(folder, key, about, training, children, [*older, *left_out], gone)


def _networks(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the fine-tunings of a run's encoder, and those of one that was trained before.

    Results are handed on without weights too: then all fine-tunings count as the encoder's.
    """
    paths = sorted(folder.glob(f"finetuned/*/{NETWORK}"))
    began = {path: read_json(path).get("provenance", {}).get("weights", {}) for path in paths}
    if not any(began.values()):
        return paths, []
    if not (folder / TENSORS).is_file():
        log.warning("%s is gone: whether fine-tunings are of it is not known", folder / TENSORS)
        return paths, []
    digest = encoder_digest(folder)
    older = [path for path in paths if began[path] and digest not in began[path].values()]
    for path in older:
        log.warning(
            "%s is of another encoder than %s is now: left out; fine-tune again", path, folder
        )
    return [path for path in paths if path not in older], older


def _of_encoder(
    results: Mapping[Path, dict[str, Any]], about: Mapping[str, Any]
) -> tuple[dict[Path, dict[str, Any]], list[Path]]:
    """Return the results of an encoder, and where others are: of one that was trained before."""
    found = {
        path: result
        for path, result in results.items()
        if result["provenance"].get("encoder_sha256") == about["sha256"]
    }
    left_out = [path for path in results if path not in found]
    for path in left_out:
        log.warning(
            "%s was measured with another encoder than %s is now: left out; evaluate again",
            path,
            path.parent,
        )
    return found, left_out


def _leave_gone(entries: Sequence[Entry]) -> list[Path]:
    """Take the files that are not there out of entries, and return them."""
    gone = []
    for entry in entries:
        missing = [file.path for file in entry.files if not file.path.is_file()]
        entry.files = [file for file in entry.files if file.path not in missing]
        gone += missing
    for path in gone:
        log.warning("%s is gone: left out", path)
    return gone


def _hide(entry: Entry, hidden: Mapping[str, str]) -> None:
    """Replace secrets in all that an entry says and sends."""
    entry.tags = {key: without(value, hidden) for key, value in entry.tags.items()}
    entry.parameters = {key: without(value, hidden) for key, value in entry.parameters.items()}
    entry.files = [file._replace(text=clean_copy(file.path, hidden)) for file in entry.files]


def _key(
    folder: Path, results: Sequence[Path], networks: Sequence[Path], gone: Sequence[Path]
) -> str:
    """Return the digest of everything that decides on the entries but pictures and tables: of
    those, the results that list them speak, and which are gone."""
    tuned = sorted(path for network in networks for path in network.parent.glob("*.json*"))
    paths = [path for path in (folder / name for name in OWN) if path.is_file()]
    paths += [*tuned, *sorted(results)]
    names = [(path.relative_to(folder).as_posix(), sha256_file(path)) for path in paths]
    missing = sorted(path.relative_to(folder).as_posix() for path in gone)
    return sha256_json([LAYOUT, names, missing])


def _read_result(path: Path) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
        raise UserError(f"{path} is no result of an evaluation; leave it out, or make it again.")
    return result


def _training(folder: Path, about: Mapping[str, Any]) -> Entry:
    origin = about["provenance"]
    figures = sorted(path for path in folder.glob("figures/*") if path.suffix in SHOWN)
    files = [File(folder / name, None) for name in OWN if (folder / name).is_file()]
    entry = _learned("training", folder.name, folder, ENCODER, origin)
    entry.tags["timewalk.encoder_sha256"] = about["sha256"]
    entry.files = [*files, *(File(path, "figures") for path in figures)]
    if (card := folder / "card.md").is_file():
        entry.tags["mlflow.note.content"] = _description(card.read_text(encoding="utf-8"))
    entry.points += _validation(folder / "validation.json", entry.end_ms)
    return entry


def _description(card: str) -> str:
    """Return what a card says first and its results, without links, which lead nowhere there."""
    text = re.sub(r"\A---\n.*?\n---\n\s*# [^\n]*", "", card, flags=re.DOTALL)
    first, *sections = text.split("\n## ")
    shown = [first, *(f"## {section}" for section in sections if section.startswith("Results"))]
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(shown)).strip()


def _finetuning(path: Path) -> Entry:
    folder, about = path.parent, read_json(path)
    name = f"{folder.parent.parent.name}/finetuned/{folder.name}"
    entry = _learned("finetuning", name, folder, NETWORK, about.get("provenance", {}))
    entry.tags |= {"timewalk.finetuning": folder.name, "timewalk.network_sha256": about["sha256"]}
    entry.files = [File(path, None), File(folder / "metrics.jsonl", None)]
    return entry


def _learned(kind: str, name: str, folder: Path, about: str, origin: Mapping[str, Any]) -> Entry:
    """Return the entry of a training, of a run or of a network: parameters, curves, data."""
    curve, config = _lines(folder / "metrics.jsonl"), origin.get("config", {})
    end_ms = _written_ms(folder / about)
    return Entry(
        kind=kind,
        name=name,
        tags=_origin_tags(origin),
        parameters=dict(flatten(config)),
        points=[*_curves(curve, folder), *_system(folder / "system.jsonl")],
        datasets=training_data(config, origin),
        files=[],
        start_ms=int(curve[0]["time"] * 1000) if curve else end_ms,
        end_ms=end_ms,
    )


def _origin_tags(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that say where something comes from."""
    config = origin.get("config", {})
    found = {
        "timewalk.method": config.get("method") or config.get("task"),
        "timewalk.config_sha256": origin.get("config_sha256"),
        "timewalk.git_commit": origin.get("git_commit"),
        "timewalk.seed": origin.get("seed"),
        "timewalk.device": origin.get("device"),
        "timewalk.version": origin.get("timewalk"),
        "mlflow.source.name": "timewalk",
        "mlflow.source.git.commit": origin.get("git_commit"),
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def _evaluation(path: Path, result: Mapping[str, Any]) -> Entry:
    origin, end_ms = result["provenance"], _written_ms(path)
    shown, run = [], path.parent
    for name in result["artefacts"]:
        file = run / name
        if file.suffix in SHOWN:
            below = file.parent.relative_to(run / path.stem).as_posix()
            shown.append(File(file, None if below == "." else below))
    tags = _origin_tags(origin) | {
        "timewalk.evaluation": path.stem,
        "timewalk.protocol": result["protocol"],
        "timewalk.split": result["split"],
        "timewalk.method": result["method"],
        "timewalk.encoder_sha256": str(origin.get("encoder_sha256")),
        "timewalk.files_kept_outside": str(len(result["artefacts"]) - len(shown)),
    }
    if (seed := origin.get("training", {}).get("seed")) is not None:
        tags["timewalk.seed"] = str(seed)
    return Entry(
        kind="evaluation",
        name=f"{run.name}/{path.stem}",
        tags=tags,
        parameters=dict(flatten(origin.get("settings", {}))) | {"split": result["split"]},
        points=[
            *_result_points(path, result),
            Point(metric_name(path.stem, "samples"), result["samples"], end_ms, 0),
            Point(metric_name(path.stem, "seconds"), result["seconds"], end_ms, 0),
        ],
        datasets=list(evaluation_data(result)),
        files=[File(path, None), *shown],
        start_ms=end_ms - int(result["seconds"] * 1000),
        end_ms=end_ms,
    )


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


def _written_ms(path: Path) -> int:
    return int(path.stat().st_mtime * 1000)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing: run the stage that makes it.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _curves(curve: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[Point]:
    """Yield the training's curves; means of epochs and evaluations in between have charts of their
    own. The latter have a file of their own too, which counts steps as it should."""
    apart = {"epoch_": "epoch", "validation_": "validation"}
    elsewhere = (folder / "validation.json").is_file()
    for record in curve:
        time_ms = int(record["time"] * 1000)
        for name, value in record.items():
            if name in ("step", "time", "epoch") or not _plottable(value):
                continue
            prefix = next((prefix for prefix in apart if name.startswith(prefix)), "")
            if prefix == "validation_" and elsewhere:
                continue
            group = apart.get(prefix, "train")
            shown = metric_name(group, name.removeprefix(prefix))
            yield Point(shown, value, time_ms, record["step"])


def _validation(path: Path, time_ms: int) -> Iterator[Point]:
    for entry in read_json(path) if path.is_file() else []:
        for name, value in entry["metrics"].items():
            if _plottable(value):
                yield Point(metric_name("validation", name), value, time_ms, entry["step"])


def _system(path: Path) -> Iterator[Point]:
    """Yield how busy the machine was, under the names that MLflow's page for it looks for."""
    for record in _lines(path) if path.is_file() else []:
        time_ms = int(record["time"] * 1000)
        for name, value in record.items():
            if name not in ("step", "time") and _plottable(value):
                yield Point(metric_name("system", name), value, time_ms, record["step"])


def _result_points(path: Path, result: Mapping[str, Any]) -> Iterator[Point]:
    time_ms = _written_ms(path)
    for name, value in result["metrics"].items():
        if _plottable(value):
            yield Point(metric_name(path.stem, name), value, time_ms, 0)


def _plottable(value: float | None) -> bool:
    """Return whether a number can be drawn: an unknown one is no point."""
    return value is not None and math.isfinite(value)
