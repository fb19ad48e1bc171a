"""The rows of the square: runs, of which those that differ only by their seed are one."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from timewalk.addresses import public_settings
from timewalk.artefacts import read_json, sha256_json
from timewalk.config.changes import decisive


@dataclass
class Row:
    """A run, or runs that differ only by their seed.

    Attributes:
        name: the run's, or what the names of its runs have in common.
        method: what they were trained with.
        runs: their names.
        seeds: of each of them, where known.
        encoder: settings of their encoder: `name` of the architecture, `weights` and the rest.
    """

    name: str
    method: str
    runs: list[str]
    seeds: list[int]
    encoder: dict[str, Any] = field(default_factory=dict)


def make_rows(
    results: Sequence[Mapping[str, Any]], places: Mapping[str, Path], asked: Iterable[str]
) -> list[Row]:
    """Return the rows in the order of the plan, then of the results.

    Args:
        results: as :func:`timewalk.report.square.read_result` returns them.
        places: the folder of each run.
        asked: names of the runs of the plan.
    """
    about = {item["run"]: item for item in reversed(results)}
    runs = list(dict.fromkeys([*asked, *(item["run"] for item in results)]))
    groups: dict[tuple[str, int], list[Row]] = {}
    # By name, so that the order of the results does not matter.
    for run in sorted(runs):
        key, row = _row(run, places.get(run), about.get(run, {}))
        number = 0
        # Two runs of one seed are no sample of seeds.
        while any(row.seeds == other.seeds for other in groups.get((key, number), [])):
            number += 1
        groups.setdefault((key, number), []).append(row)
    rows: list[Row] = []
    for members in sorted(groups.values(), key=lambda rows: min(runs.index(r.name) for r in rows)):
        names = [member.name for member in members]
        seeds = [seed for member in members for seed in member.seeds]
        name = _common_name(names, {*runs, *(row.name for row in rows)} - {*names})
        rows.append(Row(name, members[0].method, names, seeds, members[0].encoder))
    return rows


def _row(run: str, folder: Path | None, result: Mapping[str, Any]) -> tuple[str, Row]:
    """Return a digest of all that a run has in common with those of other seeds, and its row."""
    config, inputs = _configuration(folder)
    config = public_settings(config)
    seed = config.get("seed", result.get("provenance", {}).get("training", {}).get("seed"))
    method = str(config.get("method") or result.get("method") or "")
    same = {k: v for k, v in decisive(config).items() if k != "seed"} if config else run
    row = Row(run, method, [run], [] if seed is None else [seed], dict(config.get("encoder", {})))
    return sha256_json([same, inputs]), row


def _configuration(folder: Path | None) -> tuple[dict[str, Any], Any]:
    """Return a run's configuration and the digests of its data; empty where they are not known."""
    if folder is not None and (folder / "encoder.json").is_file():
        origin = read_json(folder / "encoder.json").get("provenance", {})
        if isinstance(origin.get("config"), dict):
            return origin["config"], sorted(origin.get("inputs", {}).items())
    if folder is not None and (folder / "config.json").is_file():
        return read_json(folder / "config.json"), [str(folder)]
    return {}, []


def _common_name(runs: Sequence[str], taken: Container[str]) -> str:
    """Return what the names of runs begin with, without `seed` and separators at its end."""
    if len(runs) == 1:
        return runs[0]
    letters = takewhile(lambda same: len(set(same)) == 1, zip(*runs, strict=False))
    name = "".join(same[0] for same in letters)
    if name not in runs:
        name = re.sub(r"[_-]+(seed|s)?[_-]*\d*[_-]*$", "", name)
    return runs[0] if not name or name in taken else name
