"""The square as HTML: the table of headline metrics, and a table of every metric a protocol."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from timewalk.report.page_html.content import Problem
from timewalk.report.page_html.html import Markup, anchor, breakable, tag
from timewalk.report.square import BASELINES, Cell, Column, Row, Square, decimals_of

WORDS = {"no meaning": "–", "missing": "missing", "failed": "failed", "not asked for": "·"}


@dataclass
class Group:
    """The columns of one evaluation under one protocol on one split of one data set."""

    key: str
    columns: list[Column]

    @property
    def first(self) -> Column:
        """Any column: what they share."""
        return self.columns[0]


def groups_of(square: Square) -> list[Group]:
    """Return the columns of a square by what they share, in their order."""
    found: dict[tuple[str, ...], list[Column]] = {}
    for column in square.columns:
        found.setdefault(column.group, []).append(column)
    return [Group(f"g{number}", columns) for number, columns in enumerate(found.values())]


FRESH = "fresh weights"
"""of the same network: stands for several rows, of which each value has its own"""


def deltas_of(square: Square) -> list[str]:
    """Return the names of the rows that others are subtracted from, those of random weights first;
    then in the rows' order. Before them :data:`FRESH`, if that is not the same for all."""
    cells = list(_headline_cells(square))
    names = {name for cell in cells for name in cell.deltas}
    rows = sorted(square.rows, key=lambda row: row.method != BASELINES[0])
    several = len({cell.fresh for cell in cells} - {None}) > 1
    return [*([FRESH] if several else []), *(row.name for row in rows if row.name in names)]


def has_published(square: Square) -> bool:
    """Return whether a published figure stands beside a value of the square."""
    return any(cell.published and cell.mean is not None for cell in _headline_cells(square))


def _headline_cells(square: Square) -> Iterator[Cell]:
    for column in square.headlines():
        yield from (square.cell(row, column) for row in square.rows)


def decimals(square: Square, column: Column) -> int:
    """Return how many decimals a column is shown with."""
    return decimals_of(square.cell(row, column).mean for row in square.rows)


def all_shown(square: Square) -> str:
    """Return what the script says of an unfiltered square: the page may be seen before it runs."""
    rows, columns = len(square.rows), len(square.headlines())
    return f"{rows} of {rows} rows, {columns} of {columns} columns"


def square_table(square: Square, problems: Mapping[tuple[str, str], Problem]) -> Markup:
    """Return the table of headline metrics, whose cells lead to all metrics of their results.

    Args:
        square: its rows, columns and cells.
        problems: by run and evaluation, what is missing: such a cell leads to the list of these.
    """
    keys = {group.first.group: group.key for group in groups_of(square)}
    columns, names = square.headlines(), deltas_of(square)
    head = [_head(column) for column in columns]
    digits = [decimals(square, column) for column in columns]
    body = []
    for number, row in enumerate(square.rows):
        cells = [
            _cell(
                *(square.cell(row, c), c, n, names, f"{keys[c.group]}-r{number}"),
                [problems[x] for run in row.runs if (x := (run, c.evaluation)) in problems],
            )
            for c, n in zip(columns, digits, strict=True)
        ]
        body.append(tag("tr", row_header(row), cells, **row_data(row)))
    caption = (
        "Headline metric of every run under every evaluation. Best of a column bold, second best "
        "of three or more underlined; ± is the standard deviation over seeds."
    )
    return tag(
        *("table", tag("caption", caption), tag("thead", tag("tr", RUN, head))),
        *(tag("tbody", body),),
        id="square",
        data_sorts="sort",
    )


def row_data(row: Row) -> dict[str, str]:
    """Return what the script filters a row's element by."""
    return {
        "data_row": row.name,
        "data_method": row.method,
        "data_text": " ".join((row.name, row.method, *row.runs)).lower(),
    }


def row_header(row: Row) -> Markup:
    """Return the header of a row: its name, method and seeds."""
    seeds = f", {len(row.runs)} seeds" if len(row.runs) > 1 else ""
    about = tag("small", f"{row.method}{seeds}") if row.method != row.name or seeds else None
    name = tag("span", breakable(row.name))
    return tag("th", name, about, scope="row", class_="run", data_v=row.name)


def _head(column: Column) -> Markup:
    place = ", ".join(filter(None, (column.dataset, column.split)))
    text = " ".join((column.evaluation, column.kind, column.protocol, column.dataset)).lower()
    label, hidden = _direction(column)
    protocol = column.protocol or "no result yet"
    return tag(
        *("th", tag("span", breakable(column.evaluation), class_="evaluation")),
        tag("span", breakable(protocol), class_="protocol", title=protocol),
        tag("span", place or "–", class_="set"),
        _sort(column.metric or "–", label, hidden),
        scope="col",
        data_evaluation=column.evaluation,
        data_key="/".join((*column.group, column.metric)),
        data_lower=column.lower_is_better,
        data_text=text,
    )


def _direction(column: Column) -> tuple[str, str]:
    if not column.ranked or not column.metric:
        return "", ""
    return ("↓", "lower is better") if column.lower_is_better else ("↑", "higher is better")


def sort_head(label: str, numbers: bool = False, class_: str | None = None) -> Markup:
    """Return the header of a column by which the script sorts: by words, or by `data-v`."""
    key, words = label.lower(), not numbers
    return tag("th", _sort(label), scope="col", class_=class_, data_key=key, data_words=words)


def _sort(label: str, arrow: str = "", hidden: str = "") -> Markup:
    return tag(
        *("button", tag("span", class_="sorted", aria_hidden="true"), breakable(label)),
        tag("span", f"\N{NO-BREAK SPACE}{arrow}", aria_hidden="true", title=hidden)
        if arrow
        else None,
        tag("span", f", {hidden}", class_="sr") if hidden else None,
        type="button",
        class_="sort",
    )


RUN = sort_head("Run", class_="run")
"""header of the rows' names"""


def _cell(
    cell: Cell,
    column: Column,
    digits: int,
    names: Sequence[str],
    key: str,
    problems: Sequence[Problem],
) -> Markup:
    if cell.state == "not asked for":
        return tag("td", WORDS[cell.state], tag("span", "not asked for", class_="sr"), class_="no")
    away = problems and cell.state in ("missing", "failed")
    target = problem_id(problems[0].run, problems[0].evaluation) if away else key
    link = tag("a", _value(cell, digits), href=f"#{target}", class_="open", data_open=key)
    partly = [tag("small", words, class_="partly") for words in _partly(cell, problems)]
    value = None if cell.mean is None else repr(cell.mean)
    return tag(
        *("td", link, partly, list(_beside(cell, column, digits, names))),
        class_=cell.state.replace(" ", "-"),
        data_v=value,
    )


def _partly(cell: Cell, problems: Sequence[Problem]) -> Iterator[str]:
    """Yield what a reader of a cell's number needs to know of it."""
    if cell.state in ("value", "no meaning") and problems:
        yield "not all seeds"
    if any(problem.older for problem in problems):
        yield "of an older encoder"
    if not cell.comparable:
        yield "data of other content"


def _value(cell: Cell, digits: int) -> Markup:
    """Return a cell's number with its rank and spread, or why there is none."""
    if cell.mean is None:
        why = tag("span", "no meaning here", class_="sr") if cell.state == "no meaning" else None
        return tag("span", WORDS[cell.state], why, class_="state")
    number = f"{cell.mean:.{digits}f}"
    spread = None if cell.std is None else tag("small", f" ± {cell.std:.{digits}f}", class_="std")
    if cell.rank is None:
        return tag("span", number, spread)
    name, said = ("b", ", best") if cell.rank == 1 else ("u", ", second best")
    return tag("span", tag(name, number), spread, tag("span", said, class_="sr"))


def _beside(cell: Cell, column: Column, digits: int, names: Sequence[str]) -> Iterator[Markup]:
    """Yield what the reader can have beside a value: differences, and the published figure."""
    if cell.mean is None:
        return
    for number, name in enumerate(names):
        row = cell.fresh if name == FRESH else name
        if row in cell.deltas:
            yield _delta(cell.deltas[row], column, digits, row, str(number))
    figure = _figure(cell, column, digits, class_="beside published", data_beside="published")
    if figure is not None:
        yield figure


def _figure(cell: Cell, column: Column, digits: int, **attributes: str) -> Markup | None:
    """Return the published figure beside a value, with the difference to it."""
    if cell.published is None or cell.mean is None:
        return None
    difference = _delta(cell.mean - cell.published.value, column, digits, "published")
    text = f"published {cell.published.value:.{digits}f}, "
    return tag("span", text, difference, title=cell.published.source, **attributes)


def _delta(value: float, column: Column, digits: int, of: str, key: str | None = None) -> Markup:
    """Return a difference, and for those who do not see the table what is subtracted."""
    text = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    better = value < 0 if column.lower_is_better else value > 0
    kind = "" if not value or not column.ranked else " better" if better else " worse"
    name = f"beside{kind}" if key is not None else kind.strip() or None
    said = tag("span", f" ({less(of)})", class_="sr")
    return tag("span", text, said, class_=name, data_beside=key)


def less(name: str) -> str:
    """Return what a difference is."""
    return f"value \N{MINUS SIGN} {name}"


def metric_tables(square: Square) -> list[Markup]:
    """Return one table a protocol with all of its metrics: for reading, and for the script."""
    return [_metrics(square, group) for group in groups_of(square) if group.first.protocol]


def _metrics(square: Square, group: Group) -> Markup:
    first = group.first
    digits = [decimals(square, column) for column in group.columns]
    rows = []
    for number, row in enumerate(square.rows):
        cells = [square.cell(row, column) for column in group.columns]
        if all(cell.state == "not asked for" for cell in cells):
            continue
        values = [_plain(*one) for one in zip(cells, group.columns, digits, strict=True)]
        target = f"{group.key}-r{number}"
        rows.append(tag("tr", row_header(row), values, id=target, **row_data(row)))
    head = [
        tag(
            *("th", _sort(c.metric, *_direction(c))),
            scope="col",
            data_key=c.metric,
            data_lower=c.lower_is_better,
        )
        for c in group.columns
    ]
    samples = {square.cell(row, first).samples for row in square.rows} - {0}
    counts = ", ".join(f"{count:,}" for count in sorted(samples))
    title = f"{first.dataset}, {first.split}" + (f", {counts} samples" if counts else "")
    table = tag(
        *("table", tag("thead", tag("tr", RUN, head)), tag("tbody", rows)),
        aria_labelledby=group.key,
        data_sorts=f"sort-{group.key}",
    )
    text = " ".join((first.evaluation, first.kind, first.protocol, first.dataset)).lower()
    return tag(
        *("section", tag("h3", first.evaluation, " ", tag("small", title), id=group.key)),
        tag("p", tag("code", first.protocol), class_="protocol"),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_labelledby=group.key),
        [_sources(row, [square.cell(row, c) for c in group.columns], group) for row in square.rows],
        class_="group",
        data_evaluation=first.evaluation,
        data_text=text,
    )


def _plain(cell: Cell, column: Column, digits: int) -> Markup:
    figure = _figure(cell, column, digits, class_="figure")
    value = None if cell.mean is None else repr(cell.mean)
    return tag(
        "td", _value(cell, digits), figure, class_=cell.state.replace(" ", "-"), data_v=value
    )


def _sources(row: Row, cells: Sequence[Cell], group: Group) -> list[Markup]:
    """Return sentences on where the published figures beside a row's values are from."""
    metrics: dict[str, list[str]] = {}
    for cell, column in zip(cells, group.columns, strict=True):
        if cell.published is not None and cell.mean is not None:
            metrics.setdefault(cell.published.source, []).append(column.metric)
    return [
        tag(
            *("p", f"Published for {row.method}, {', '.join(names)}: {source}."),
            f" The difference is {less('published')}.",
            class_="note source",
            **row_data(row),
        )
        for source, names in metrics.items()
    ]


def problem_id(run: str, evaluation: str) -> str:
    """Return the id of a line in the list of what is missing."""
    return anchor("p", run, evaluation)
