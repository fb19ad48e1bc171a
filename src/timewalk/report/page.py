"""Pieces of a Markdown page: tables, code, counts."""

import json
from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """Return a Markdown table; None is a dash.

    Args:
        header: a title a column.
        rows: cells, whose texts may be Markdown.
        right: columns whose cells stand at the right.
    """
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [header, rule, *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "–" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def code(value: Any) -> str:
    """Return a value as code: a text as it is, anything else as JSON; None is a dash."""
    if value is None:
        return "–"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def fenced(text: str) -> str:
    """Return lines of Python as a block of code."""
    return f"```python\n{text.strip()}\n```\n"


def number(value: float | None) -> str:
    """Return a count with its thousands apart; None is a dash."""
    return "–" if value is None else f"{value:,}"
