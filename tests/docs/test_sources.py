"""Sources that docstrings name: each short name is on the page of sources, each page is there."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = re.compile(r"(?<!-> )\bSource:\s+([^.;:\"]+)")
PAGE = re.compile(r"\bdocs/(?:\w+/)*\w+\.md\b")
UNPUBLISHED = re.compile(r"\bspec/\w+\.md\b|\bsheets?\b[^.\"]{0,60}\bsections?\s\d", re.IGNORECASE)
FILES = sorted(path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def short_names() -> list[str]:
    text = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \*\*([^*]+)\*\* \|", text, re.MULTILINE)


def texts() -> list[tuple[Path, str]]:
    """Return each file's text with the line breaks of its paragraphs as blanks."""
    return [(path, re.sub(r"\n *", " ", path.read_text(encoding="utf-8"))) for path in FILES]


def test_short_names_are_told_apart():
    names = short_names()
    assert len(names) == len(set(names)) > 30


def test_every_source_is_on_the_page():
    names = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in short_names()))
    named = [(path, source) for path, text in texts() for source in SOURCE.findall(text)]
    assert len(named) > 100
    assert [(path, source) for path, source in named if not names.search(source)] == []


def test_every_page_that_code_names_is_there():
    named = {(path, page) for path, text in texts() for page in PAGE.findall(text)}
    assert [(path, page) for path, page in named if not (ROOT / page).is_file()] == []


def test_nothing_refers_to_notes_that_are_not_published():
    assert [path for path, text in texts() if UNPUBLISHED.search(text)] == []


@pytest.mark.parametrize(
    "text", ["Sheet: spec/dora.md", "(sheet of CRW, section 7)", "sheet section 2"]
)
def test_such_references_are_found(text):
    assert UNPUBLISHED.search(text)
