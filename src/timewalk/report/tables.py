"""Results to tables: one row a run, or runs that differ by their seed; one column a metric.

Two results of different protocols, data sets or splits never share a column. The first table has
the headline metric of each evaluation, the others all metrics of one protocol each. The best of a
column is bold and the second best of three or more underlined; runs of several seeds are mean ±
sample standard deviation. Published figures stand in the notes, with the differences to them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timewalk.artefacts import write_text
from timewalk.report.square import Cell, Column, Row, Square, natural, read_result, square
from timewalk.report.square import decimals_of as decimals_of

if TYPE_CHECKING:
    import pandas as pd

DASH = "–"
LINE = 74
"""characters side by side in a table of LaTeX, with three between two columns"""
FLOATS = 12
"""tables of LaTeX after which a page is ended: it holds back only so many"""
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "–": "--",
        "±": r"$\pm$",
        "↓": r"$\downarrow$",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)
"""characters that mean something to LaTeX"""


@dataclass(frozen=True)
class Text:
    """The text of a cell, and its rank in the column."""

    text: str
    rank: int | None = None


@dataclass
class Table:
    """A table of texts.

    Attributes:
        title: what it shows, and under which protocol.
        header: a title a column; the first ``names`` of them name the row.
        rows: as many texts each.
        notes: sentences below it.
        names: columns that name the row; they are repeated where a table has several parts.
        left: numbers of further columns whose texts begin at the left.
    """

    title: str
    header: list[str]
    rows: list[list[Text]]
    notes: list[str] = field(default_factory=list)
    names: int = 2
    left: tuple[int, ...] = ()


def long_table(results: Sequence[Path]) -> "pd.DataFrame":
    """Return one row a metric: run, method, evaluation, protocol, dataset, split, metric, value,
    samples, seed, source."""
    import pandas as pd

    rows = [row for path in results for row in _rows(path, read_result(path))]
    columns = ["run", "method", "evaluation", "protocol", "dataset", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=[*columns, "samples", "seed", "source"])


def _rows(path: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {
        key: result[key]
        for key in ("run", "method", "evaluation", "protocol", "dataset", "split", "samples")
    }
    shared["seed"] = result.get("provenance", {}).get("training", {}).get("seed")
    shared["source"] = str(path)
    metrics = sorted(result["metrics"].items(), key=lambda item: natural(item[0]))
    return [{**shared, "metric": metric, "value": value} for metric, value in metrics]


def write_tables(
    results: Sequence[Path], folder: Path, planned: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write ``summary.csv`` (long), ``summary.md`` and ``summary.tex`` into a folder.

    Args:
        results: JSON files of evaluations.
        folder: of the results.
        planned: what each run was asked for, as for :func:`timewalk.report.square.square`.
    """
    found = tables(square(results, planned, folder))
    write_text(folder / "summary.csv", long_table(results).to_csv(index=False))
    write_text(folder / "summary.md", "\n".join(map(markdown, found)))
    write_text(folder / "summary.tex", HEADER + latex_tables(found))


HEADER = "% \\usepackage{booktabs}; then \\input this file.\n\n"


def tables(made: Square) -> list[Table]:
    """Return the table of headline metrics, if there are any, and one for each protocol."""
    groups: dict[tuple[str, str, str, str], list[Column]] = {}
    for column in made.columns:
        if column.protocol:
            groups.setdefault(column.group, []).append(column)
    first = [headline_table(made)] if made.headlines() else []
    return [*first, *(_protocol_table(made, columns) for columns in groups.values())]


def headline_table(made: Square) -> Table:
    """Return the table of the headline metric of each evaluation, each under its own protocol."""
    columns, notes = made.headlines(), []
    for number, column in enumerate(columns, start=1):
        what = f"{column.metric} under {_place(made, column)}" if column.protocol else "no result"
        notes.append(f"[{number}] {column.evaluation}: {what}")
    header = [
        f"{column.evaluation} [{number}]{'↓' if column.lower_is_better else ''}"
        for number, column in enumerate(columns, start=1)
    ]
    rows = _texts(made, made.rows, columns)
    numbers = [f"[{number}]" for number in range(1, len(columns) + 1)]
    notes += [*_published(made, columns, numbers), *_not_compared(made, columns)]
    return Table("The headline metric of each evaluation", ["run", "method", *header], rows, notes)


def _protocol_table(made: Square, columns: Sequence[Column]) -> Table:
    """Return the table of all metrics of one protocol, with the runs that went through it."""
    rows = [
        row
        for row in made.rows
        if any(made.cell(row, column).state in ("value", "no meaning") for column in columns)
    ]
    header = [f"{c.metric}{'↓' if c.lower_is_better and c.ranked else ''}" for c in columns]
    title = f"{columns[0].evaluation}: {_place(made, columns[0])}"
    names = [column.metric for column in columns]
    notes = [*_published(made, columns, names), *_not_compared(made, columns)]
    return Table(title, ["run", "method", *header], _texts(made, rows, columns), notes)


def _published(made: Square, columns: Sequence[Column], names: Sequence[str]) -> list[str]:
    """Return a sentence for each source of published figures, with the runs' differences to them.

    Args:
        made: the square.
        columns: of a table.
        names: of these columns in the sentences.
    """
    found: dict[tuple[str, str], dict[tuple[str, float], list[str]]] = {}
    for row in made.rows:
        for column, name in zip(columns, names, strict=True):
            cell = made.cell(row, column)
            if cell.published is None:
                continue
            figures = found.setdefault((row.method, cell.published.source), {})
            runs = figures.setdefault((name, cell.published.value), [])
            if cell.mean is not None:
                decimals = decimals_of(made.cell(other, column).mean for other in made.rows)
                difference = cell.mean - cell.published.value
                runs.append(f"{row_title(row)} {difference:+.{decimals}f}")
    sentences = []
    for (method, source), figures in found.items():
        said = [
            f"{name} {value:g}" + (f" ({', '.join(runs)})" if runs else "")
            for (name, value), runs in figures.items()
        ]
        sentences.append(
            f"Published for {method} (value - published): {', '.join(said)}; {source}."
        )
    return sentences


def _not_compared(made: Square, columns: Sequence[Column]) -> list[str]:
    """Return why cells of some columns are not ranked or have no mean."""
    cells = [made.cell(row, column) for column in columns for row in made.rows]
    return list(dict.fromkeys(cell.note for cell in cells if cell.note and not cell.comparable))


def _place(made: Square, column: Column) -> str:
    """Return protocol, data set, split and number of samples of a column."""
    cells = (made.cell(row, column) for row in made.rows)
    samples = ", ".join(
        str(n) for n in dict.fromkeys(cell.samples for cell in cells if cell.samples)
    )
    return f"{column.protocol} on {column.dataset} ({column.split}, {samples or 0} samples)"


def _texts(made: Square, rows: Sequence[Row], columns: Sequence[Column]) -> list[list[Text]]:
    decimals = {
        column: decimals_of(made.cell(row, column).mean for row in rows) for column in columns
    }
    return [
        [
            Text(row_title(row)),
            Text(row.method),
            *(cell_text(made.cell(row, column), decimals[column]) for column in columns),
        ]
        for row in rows
    ]


def row_title(row: Row) -> str:
    """Return a row's name, with the number of its seeds where there are several."""
    return row.name if len(row.runs) == 1 else f"{row.name} ({len(row.runs)} seeds)"


def cell_text(cell: Cell, decimals: int) -> Text:
    """Return a cell's number, or why there is none: a metric without meaning is a dash."""
    if cell.mean is None:
        return Text(cell.state if cell.state in ("missing", "failed") else DASH)
    text = f"{cell.mean:.{decimals}f}"
    if cell.std is not None:
        text += f" ± {cell.std:.{decimals}f}"
    return Text(text, cell.rank)


def markdown(table: Table) -> str:
    """Return a table as Markdown with aligned columns."""
    around = {1: "**{}**", 2: "<u>{}</u>"}
    texts = _marked(table, around, lambda text: text.replace("|", "\\|").replace("<", "&lt;"))
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    left = [n < table.names or n in table.left for n in range(len(widths))]
    rule = ["-" * w if keep else "-" * (w - 1) + ":" for w, keep in zip(widths, left, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if keep else cell.rjust(width)
            for cell, width, keep in zip(cells, widths, left, strict=True)
        ]
        return "| " + " | ".join(padded) + " |\n"

    body = "".join(map(line, [texts[0], rule, *texts[1:]]))
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"### {table.title}\n\n{body}" + (f"\n{notes}" if notes else "")


def latex_tables(found: Sequence[Table]) -> str:
    """Return tables for LaTeX; many of them with ends of pages between."""
    text, floats = "", 0
    for table in found:
        new = latex(table)
        count = new.count("\\begin{table}")
        if floats and floats + count > FLOATS:
            text, floats = f"{text}\\clearpage\n\n", 0
        text, floats = f"{text}{new}\n", floats + count
    return text


def latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs; a wide one in several parts."""
    around = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    texts = _marked(table, around, escape_latex)
    notes = "".join(f"\n{escape_latex(note)}\\par" for note in table.notes)
    notes = f"\\par\\smallskip\\footnotesize\\raggedright{notes}\n" if notes else ""
    parts = _parts(table)
    written = []
    for columns in parts:
        chosen = [[row[column] for column in columns] for row in texts]
        more = "" if columns is parts[0] else " (continued)"
        below = notes if columns is parts[-1] else ""
        written.append(_tabular(chosen, table.names, escape_latex(table.title) + more, below))
    return "\n".join(written)


def _parts(table: Table) -> list[list[int]]:
    """Return the columns of each part of a table that is as wide as a page: its names and some."""
    rows = [table.header, *([cell.text for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) + 3 for column in zip(*rows, strict=True)]
    names = list(range(table.names))
    parts = [names[:]]
    for column in range(table.names, len(widths)):
        full = sum(widths[n] for n in [*parts[-1], column]) > LINE
        if full and len(parts[-1]) > table.names:
            parts.append(names[:])
        parts[-1].append(column)
    return parts


def _tabular(texts: Sequence[Sequence[str]], names: int, caption: str, notes: str) -> str:
    """Return one table of LaTeX from its lines, the first of which is the header."""
    lines = [" & ".join(cells) + " \\\\\n" for cells in texts]
    columns = "l" * names + "r" * (len(texts[0]) - names)
    return (
        f"\\begin{{table}}\n\\centering\n\\small\n\\caption{{{caption}}}\n\\smallskip\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\\midrule\n{''.join(lines[1:])}"
        f"\\bottomrule\n\\end{{tabular}}\n{notes}\\end{{table}}\n"
    )


def escape_latex(text: str) -> str:
    """Return a text in which nothing is a command of LaTeX."""
    return text.translate(LATEX)


def _marked(
    table: Table, around: Mapping[int, str], escape: Callable[[str], str]
) -> list[list[str]]:
    """Return header and rows, escaped, with the marks of ranks around them."""
    rows = [
        [around.get(cell.rank or 0, "{}").format(escape(cell.text)) for cell in row]
        for row in table.rows
    ]
    return [list(map(escape, table.header)), *rows]
