"""Tables for a terminal: plain text, no colours, as wide as the terminal, 80 columns in a pipe."""

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

from timewalk.report.tables import Table

MARKS = {1: "*", 2: "'"}
LEGEND = "* best of a column   ' second best"
LEAST = 40
"""columns of a terminal below which nothing is fitted any more"""


def terminal_width() -> int:
    """Return the columns to fill: those of the terminal, or 80."""
    return max(LEAST, shutil.get_terminal_size((80, 24)).columns)


def text_width(text: str) -> int:
    """Return how many columns a text takes: wide letters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def clipped(text: str, width: int) -> str:
    """Return a text of so many columns at most, with … in the middle where some was left out."""
    if text_width(text) <= width:
        return text
    head = (width - 1) // 2
    while text_width(text[:head]) > head:
        head -= 1
    tail = text[head:]
    while text_width(tail) > width - 1 - text_width(text[:head]):
        tail = tail[1:]
    return f"{text[:head]}…{tail}"


def plain_table(table: Table, width: int | None = None) -> str:
    """Return a table that fits a width; columns that do not fit come in further blocks."""
    marked = any(cell.rank for row in table.rows for cell in row)
    texts = [
        list(table.header),
        *(
            [
                cell.text + (MARKS.get(cell.rank or 0, " " if marked and n >= table.names else ""))
                for n, cell in enumerate(row)
            ]
            for row in table.rows
        ),
    ]
    blocks = columns(texts, table.names, width or terminal_width(), table.left)
    notes = [wrapped(note, width or terminal_width(), "    ") for note in table.notes]
    title = [wrapped(table.title, width or terminal_width())] if table.title else []
    return "\n".join([*title, *blocks, *notes])


def columns(
    texts: Sequence[Sequence[str]], names: int, width: int, left: Sequence[int] = ()
) -> list[str]:
    """Return lines of aligned columns in blocks of at most ``width``, an empty line between them.

    Args:
        texts: header and rows.
        names: how many columns stand at the left and are repeated in each block.
        width: columns of the terminal.
        left: further columns that begin at the left.
    """
    widest = max(8, (width - 12) // max(1, names))
    texts = [
        [clipped(cell, widest if n < names else width // 2) for n, cell in enumerate(row)]
        for row in texts
    ]
    widths = [max(map(text_width, column)) for column in zip(*texts, strict=True)]
    blocks = [list(range(names))]
    for column in range(names, len(widths)):
        if (
            sum(widths[n] + 2 for n in [*blocks[-1], column]) - 2 > width
            and len(blocks[-1]) > names
        ):
            blocks.append(list(range(names)))
        blocks[-1].append(column)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        lines += [_line(row, block, widths, {*range(names), *left}) for row in texts]
    return lines


def _line(row: Sequence[str], block: Sequence[int], widths: Sequence[int], left: set[int]) -> str:
    cells = []
    for n in block:
        room = " " * (widths[n] - text_width(row[n]))
        cells.append(row[n] + room if n in left else room + row[n])
    return "  ".join(cells).rstrip()


def wrapped(text: str, width: int | None = None, indent: str = "  ") -> str:
    """Return a sentence in lines of the terminal's width; paths are never broken."""
    return textwrap.fill(
        text,
        width or terminal_width(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
