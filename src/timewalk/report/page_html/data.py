"""What the page's script needs beside its tables: where each result comes from, and the curves."""

import json
import math
from collections.abc import Mapping
from typing import Any

from timewalk.report.page_html.content import Content
from timewalk.report.page_html.media import relative
from timewalk.report.page_html.tables import groups_of

ORIGIN = (
    *("timewalk", "git_commit", "device", "python", "packages", "settings"),
    *("encoder_sha256", "head_sha256", "dataset_sha256", "train_dataset_sha256"),
    "settings_sha256",
)
TRAINING = ("seed", "steps", "clips", "processes", "config_sha256", "git_commit", "device")


class Pool:
    """Values of which many results have the same, each kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._known: dict[str, int] = {}

    def add(self, value: Any) -> int:
        """Return the number of a value."""
        key = json.dumps(value, sort_keys=True)
        if key not in self._known:
            self._known[key] = len(self.values)
            self.values.append(value)
        return self._known[key]


def page_data(content: Content) -> dict[str, Any]:
    """Return the data of the page's script, as plain values of JSON."""
    pool = Pool()
    problems = {f"{x.run}/{x.evaluation}": (x.state, x.why) for x in content.problems}
    return {
        "rows": [{"name": row.name, "runs": row.runs} for row in content.square.rows],
        "groups": {group.key: _group(vars(group.first)) for group in groups_of(content.square)},
        "results": {
            f"{run}/{name}": _result(content, result, pool)
            for (run, name), result in content.results.items()
        },
        "problems": problems,
        "pool": pool.values,
        "curves": [vars(curves) for curves in content.curves],
    }


def _group(column: Mapping[str, Any]) -> dict[str, Any]:
    return {key: column[key] for key in ("evaluation", "kind", "protocol", "dataset", "split")}


def _result(content: Content, result: Mapping[str, Any], pool: Pool) -> dict[str, Any]:
    origin = result.get("provenance", {})
    training = origin.get("training", {})
    known = [(key, origin.get(key)) for key in ORIGIN]
    known += [(f"training: {key}", training.get(key)) for key in TRAINING]
    several = any(result["run"] in row.runs and len(row.runs) > 1 for row in content.square.rows)
    return {
        "file": relative(result["path"], content.folder),
        "samples": result["samples"],
        "seconds": round(float(result.get("seconds") or 0), 3),
        "origin": [(pool.add(key), pool.add(value)) for key, value in known if value is not None],
        "files": [
            relative(result["folder"] / name, content.folder)
            for name in result.get("artefacts", ())
        ],
        "metrics": _finite(result["metrics"]) if several else None,
    }


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    finite = {k: v for k, v in metrics.items() if v is not None and math.isfinite(v)}
    return dict.fromkeys(metrics) | finite
