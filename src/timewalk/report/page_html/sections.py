"""The parts of the page below the square: what is missing, pictures, models, provenance."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from timewalk.artefacts import version
from timewalk.report.page_html.content import Content
from timewalk.report.page_html.html import Markup, joined, tag
from timewalk.report.page_html.media import Medium, relative
from timewalk.report.page_html.tables import problem_id, row_data, sort_head
from timewalk.report.square import Row

HEIGHT, WIDTH = 190, 380
"""pixels of a picture's place on the page"""
SMALL = 160
"""pixels of the longer side of a picture whose pixels matter"""


def counts(content: Content) -> Markup:
    """Return in a line how much there is, and how much is missing."""
    failed = sum(problem.state == "failed" for problem in content.problems)
    missing = len(content.problems) - failed
    parts = [
        _count(sum(len(row.runs) for row in content.square.rows), "run", "runs"),
        _count(len(content.results), "result", "results"),
        _count(len({c.evaluation for c in content.square.columns}), "evaluation", "evaluations"),
    ]
    if failed:
        parts.append(_count(failed, "failed", "failed", "failed"))
    if missing:
        parts.append(_count(missing, "missing", "missing", "missing"))
    return tag("ul", parts, class_="counts")


def _count(number: int, one: str, several: str, class_: str | None = None) -> Markup:
    return tag("li", tag("b", f"{number:,}"), f" {one if number == 1 else several}", class_=class_)


def problems(content: Content) -> Markup:
    """Return what was asked for and is not there, each with what its job said."""
    notes = [tag("p", note, class_="note") for note in _not_compared(content)]
    if not content.problems:
        planned = "Every result that the suite asks for is here."
        said = planned if content.planned else "Nothing is known to be missing."
        return joined([tag("p", said), notes])
    methods = {run: row for row in content.square.rows for run in row.runs}
    rows = [
        tag(
            "tr",
            tag("th", problem.run, scope="row"),
            tag("td", problem.evaluation),
            tag("td", problem.state, class_="state"),
            tag("td", problem.why),
            id=problem_id(problem.run, problem.evaluation),
            class_=problem.state,
            **row_data(methods[problem.run]),
        )
        for problem in sorted(content.problems, key=lambda problem: problem.state)
    ]
    head = [sort_head(name) for name in ("Run", "Evaluation", "State", "Why")]
    table = tag(
        *("table", tag("thead", tag("tr", head)), tag("tbody", rows)),
        class_="plain wrap",
        data_sorts="sort-missing",
    )
    return joined([_scroll(table, "What is missing and what failed"), notes])


def _not_compared(content: Content) -> list[str]:
    """Return why some results stand beside others and are not compared with them."""
    cells = [cell for cell in content.square.cells.values() if not cell.comparable]
    sentences = dict.fromkeys(cell.note for cell in cells if cell.note)
    return [note for note in sentences if note not in content.square.problems.values()]


def gallery(content: Content) -> Markup:
    """Return the pictures and videos of each row's runs."""
    by_run: dict[str, list[Medium]] = {}
    for medium in content.gallery.media:
        by_run.setdefault(medium.run, []).append(medium)
    parts = []
    for row in content.square.rows:
        figures = [_figure(one, row) for run in row.runs for one in by_run.get(run, ())]
        if figures:
            more = [
                f"{count} more of {run} under {source}"
                for (run, source), count in content.gallery.more.items()
                if run in row.runs
            ]
            note = tag("p", "Beside these: ", "; ".join(more), ".", class_="note") if more else None
            grid = tag("div", figures, class_="grid")
            parts.append(tag("section", tag("h3", row.name), grid, note, **row_data(row)))
    return joined(parts) if parts else tag("p", "No evaluation or method has drawn any.")


def _figure(medium: Medium, row: Row) -> Markup:
    whose = f"{medium.run}, " if len(row.runs) > 1 else ""
    name = tag("a", medium.name, href=medium.link) if medium.video else medium.name
    caption = tag("figcaption", whose, tag("b", medium.source), " ", name)
    size = _size(medium)
    return tag(
        *("figure", _shown(medium, size), caption),
        data_run=medium.run,
        data_source=medium.source,
        style=f"--width:{size['width']}px",
    )


def _size(medium: Medium) -> dict[str, Any]:
    """Return the place of an image: of one height, unless it is very wide; small ones whole times
    as large, so that their pixels can be seen."""
    width, height = medium.width or 320, medium.height or 180
    scale = min(HEIGHT / height, WIDTH / width)
    scale = max(1, int(scale)) if max(width, height) <= SMALL else scale
    return {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}


def _shown(medium: Medium, size: dict[str, Any]) -> Markup:
    name = f"{medium.source} of {medium.run}: {medium.name}"
    if not medium.video:
        if medium.image is None:
            return tag("a", f"{medium.name} {medium.why}", href=medium.link)
        small = "small" if max(medium.width, medium.height) <= SMALL else None
        lazy = None if medium.image.startswith("data:") else "lazy"
        image = tag("img", src=medium.image, alt=name, loading=lazy, class_=small, **size)
        return tag("a", image, href=medium.link)
    link = tag("a", medium.name, href=medium.link)
    return tag(
        *("video", link),
        src=medium.inside or medium.link,
        poster=medium.image,
        controls=True,
        muted=True,
        loop=True,
        playsinline=True,
        preload="none",
        aria_label=name,
        **size,
    )


FACTS = ("Run", "Method", "Encoder", "Summary", "Patches", "Trained on", "Steps", "Seed", "SHA-256")


def models(content: Content) -> Markup:
    """Return a table of what each run's encoder is, with the way to its card."""
    rows = [
        tag("tr", tag("th", _card(content, run), scope="row"), _facts(about, row), **row_data(row))
        for row in content.square.rows
        for run in row.runs
        for about in (content.abouts[run],)
    ]
    head = [sort_head(name, name == "Steps") for name in FACTS]
    table = tag(
        *("table", tag("thead", tag("tr", head)), tag("tbody", rows)),
        class_="plain",
        data_sorts="sort-models",
    )
    return _scroll(table, "Models")


def _card(content: Content, run: str) -> Markup | str:
    card = content.folder / run / "card.md"
    return tag("a", run, href=relative(card, content.folder)) if card.is_file() else run


def _facts(about: Mapping[str, Any], row: Row) -> list[Markup]:
    if not about:
        return [tag("td", row.method), tag("td", "no encoder yet", colspan=len(FACTS) - 2)]
    origin = about.get("provenance", {})
    config = origin.get("config", {})
    steps = origin.get("steps")
    texts = (
        config.get("method", row.method),
        _architecture(config.get("encoder", {}), about.get("architecture", {})),
        f"{about.get('width')} numbers",
        f"{about.get('patch_width')} channels every {about.get('stride')} px",
        config.get("dataset") or "–",
    )
    digest = str(about.get("sha256", ""))
    return [
        *(tag("td", text) for text in texts),
        tag("td", f"{steps:,}" if steps else "–", data_v=steps),
        tag("td", origin.get("seed", config.get("seed", "–"))),
        tag("td", tag("code", digest[:12]), title=digest),
    ]


def _architecture(encoder: Mapping[str, Any], built: Mapping[str, Any]) -> str:
    name = str(encoder.get("name") or built.get("family") or "–")
    patch = built.get("patch_size")
    return f"{name}, patches of {patch} px" if patch else name


def provenance(content: Content) -> Markup:
    """Return with which versions, commits and configurations the results were made."""
    origins = [result.get("provenance", {}) for result in content.results.values()]
    origins += [about["provenance"] for about in content.abouts.values() if "provenance" in about]
    packages = Counter(
        f"{name} {number}"
        for origin in origins
        for name, number in origin.get("packages", {}).items()
    )
    hashes = {run: _config_hash(about) for run, about in content.abouts.items()}
    rows = [
        ("timewalk", _all(origin.get("timewalk") for origin in origins)),
        ("Commit", _all(origin.get("git_commit") for origin in origins)),
        ("Python", _all(origin.get("python") for origin in origins)),
        ("Device", _all(origin.get("device") for origin in origins)),
        ("Packages", ", ".join(sorted(packages))),
        ("Configurations (SHA-256)", ", ".join(f"{r} {h[:12]}" for r, h in hashes.items() if h)),
        ("Newest result", content.newest and f"{content.newest:%Y-%m-%d %H:%M} UTC"),
        ("This page", f"timewalk {version()}"),
    ]
    items = [[tag("dt", name), tag("dd", value)] for name, value in rows if value]
    return tag("dl", items)


def _config_hash(about: Mapping[str, Any]) -> str:
    return str(about.get("provenance", {}).get("config_sha256") or "")


def _all(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values if value is not None}))


def _scroll(table: Markup, label: str) -> Markup:
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)
