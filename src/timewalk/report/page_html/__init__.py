"""The report: one page for a browser that needs nothing but itself.

From a folder of results to ``report.html``: the methods x evaluations square with its protocols,
learning curves, pictures, what is missing and where everything comes from. Style, script and small
pictures are inside; whatever is large is linked beside it. What files say is escaped. Everything
but curves and filters can be read without JavaScript. The same files give the same page.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from timewalk.artefacts import write_text
from timewalk.errors import UserError
from timewalk.report.page_html import sections, tables
from timewalk.report.page_html.content import Content, gather
from timewalk.report.page_html.data import page_data
from timewalk.report.page_html.html import Markup, joined, script_json, tag


def write_page(folder: Path, planned: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write ``report.html`` into a folder of results.

    Args:
        folder: of results.
        planned: names of the evaluations that each run was asked for, so that the page says what
            is missing; None: it shows what there is.

    Returns:
        The page's path.

    Raises:
        UserError: there is no such folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: run the suite whose results_dir it is first.")
    target = folder / "report.html"
    write_text(target, page(gather(folder, planned)))
    return target


def page(content: Content) -> str:
    """Return the page as text."""
    square = content.square
    names = tables.deltas_of(square)
    published = tables.has_published(square)
    # What is random comes first of the rows to beat.
    default = "published" if published else "0" if names else "none"
    return Template(_file("page.html")).substitute(
        title=_escaped(f"{content.folder.as_posix()}: timewalk"),
        suite=_escaped(content.folder.as_posix()),
        style=_file("page.css") + _beside_rules(len(names)),
        script=_file("page.js") + _file("curves.js"),
        data=script_json(page_data(content)),
        counts=sections.counts(content),
        shown=tables.all_shown(square),
        beside=_beside_options(names, published, default),
        default=default,
        square=tables.square_table(square, {(x.run, x.evaluation): x for x in content.problems}),
        metrics=joined(tables.metric_tables(square)),
        columns=len(square.columns),
        problems=sections.problems(content),
        gallery=sections.gallery(content),
        models=sections.models(content),
        provenance=sections.provenance(content),
    )


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _escaped(text: str) -> Markup:
    return joined([text])


def _beside_options(names: Sequence[str], published: bool, default: str) -> Markup:
    options = [("none", "nothing"), *((str(n), tables.less(x)) for n, x in enumerate(names))]
    options += [("published", "published figure")] if published else []
    return joined(tag("option", x, value=key, selected=key == default) for key, x in options)


def _beside_rules(count: int) -> str:
    rules = [
        f'[data-shown="{number}"] [data-beside="{number}"]{{display:block}}'
        for number in range(count)
    ]
    return "\n".join(rules)
