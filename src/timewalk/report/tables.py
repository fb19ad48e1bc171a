"""Results to tables: one row a run, one column an evaluation's metric under one protocol.

Two results of different protocols, data sets or splits never share a column.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from timewalk.artefacts import read_json, write_text


def long_table(results: Sequence[Path]) -> pd.DataFrame:
    """Return one row a metric: run, method, evaluation, protocol, dataset, split, metric, value,
    samples, seed, source."""
    rows = [row for path in results for row in _rows(path, read_json(path))]
    columns = ["run", "method", "evaluation", "protocol", "dataset", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=[*columns, "samples", "seed", "source"])


def _rows(path: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {
        key: result[key]
        for key in ("run", "method", "evaluation", "protocol", "dataset", "split", "samples")
    }
    shared["seed"] = result["provenance"]["training"].get("seed")
    shared["source"] = str(path)
    metrics = sorted(result["metrics"].items(), key=lambda item: _natural(item[0]))
    return [{**shared, "metric": metric, "value": value} for metric, value in metrics]


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names by the numbers in them: k5 before k10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def wide_table(long: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run, in the order of the results; a metric without meaning is empty."""
    column = (
        long["evaluation"]
        + " ("
        + long["protocol"]
        + ", "
        + long["dataset"]
        + ") "
        + long["metric"]
    )
    table = long.assign(column=column).pivot(
        index=["run", "method"], columns="column", values="value"
    )
    order = pd.MultiIndex.from_frame(long[["run", "method"]].drop_duplicates())
    return table.reindex(index=order, columns=column.drop_duplicates())


def write_tables(results: Sequence[Path], folder: Path) -> None:
    """Write ``summary.csv`` (long), ``summary.md`` and ``summary.tex`` (wide) into a folder."""
    long = long_table(results)
    write_text(folder / "summary.csv", long.to_csv(index=False))
    write_text(folder / "summary.md", sections(long))
    write_text(folder / "summary.tex", latex(wide_table(long)))


def sections(long: pd.DataFrame) -> str:
    """Return one Markdown table an evaluation, protocol and data set, with short columns."""
    keys = ["evaluation", "protocol", "dataset", "split"]
    parts = []
    for names, group in long.groupby(keys, sort=False):
        evaluation, protocol, dataset, split = names
        samples = ", ".join(str(n) for n in group["samples"].unique())
        table = wide_table(group)
        table.columns = list(group["metric"].drop_duplicates())
        title = f"{evaluation}: {protocol} on {dataset} ({split}, {samples} samples)"
        parts.append(f"### {title}\n\n{markdown(table)}")
    return "\n".join(parts)


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows as text: numbers with two decimals, in columns of which none is above
    1 (tau, R2, losses) with four, as the field reports them; an empty metric as a dash."""
    header = ["run", "method", *map(str, table.columns)]
    numbers = table.to_numpy(dtype=float)
    decimals = [4 if _at_most_one(column) else 2 for column in numbers.T]
    rows = [
        [
            *map(str, names),
            *("–" if pd.isna(x) else f"{x:.{n}f}" for x, n in zip(values, decimals, strict=True)),
        ]
        for names, values in zip(table.index, numbers, strict=True)
    ]
    return header, rows


def _at_most_one(column: np.ndarray) -> bool:
    found = np.abs(column[~np.isnan(column)])
    return bool(len(found) and found.max() <= 1 and (found % 1).any())


def markdown(table: pd.DataFrame) -> str:
    """Return a wide table as a Markdown table with aligned columns."""
    header, rows = _cells(table)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width if n < 2 else "-" * (width - 1) + ":" for n, width in enumerate(widths)]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |\n"

    return "".join(map(line, [header, rule, *rows]))


def latex(table: pd.DataFrame) -> str:
    """Return a wide table for LaTeX with the package booktabs."""
    header, rows = _cells(table)

    def line(cells: list[str]) -> str:
        escaped = (
            cell.replace("_", r"\_").replace("%", r"\%").replace("–", "--") for cell in cells
        )
        return " & ".join(escaped) + r" \\" + "\n"

    body = "".join(map(line, rows))
    columns = "ll" + "r" * len(table.columns)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )
