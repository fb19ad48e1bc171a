"""What pages hold beside their sentences: blocks of code, by language and by the file they name."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>```+)(?P<language>\w*) *(?P<rest>.*)$")
TITLE = re.compile(r'title="([^"]+)"')
INDENTED = " " * 4


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: from the project's root.
        line: of its first line of code, from 1.
        language: as the fence says; empty for an indented block.
        title: the file that it is or changes; empty where it names none.
        text: its lines, unindented, with a line end each.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the README and all pages of the documentation, and those beside the code."""
    beside = ("README.md", "CONTRIBUTING.md", "envs/README.md", "results/README.md")
    return [*(ROOT / name for name in beside), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page: fenced ones, and those that are indented by four spaces."""
    name = page.relative_to(ROOT).as_posix()
    lines = page.read_text(encoding="utf-8").split("\n")
    found, number = [], 0
    while number < len(lines):
        if fence := FENCE.match(lines[number]):
            end = _closing(lines, number, fence)
            indent = len(fence["indent"])
            body = [line[indent:] for line in lines[number + 1 : end]]
            title = TITLE.search(fence["rest"])
            language = fence["language"] or "text"
            found.append(_block(name, number + 2, language, title[1] if title else "", body))
            number = end + 1
        elif _begins_indented(lines, number):
            end = number
            while end < len(lines) and (lines[end].startswith(INDENTED) or not lines[end].strip()):
                end += 1
            body = [line[4:] for line in lines[number:end]]
            while not body[-1].strip():
                body.pop()
            found.append(_block(name, number + 1, "", "", body))
            number = end
        else:
            number += 1
    return found


def _block(page: str, line: int, language: str, title: str, body: list[str]) -> Block:
    return Block(page, line, language, title, "".join(f"{text}\n" for text in body))


def _closing(lines: list[str], start: int, fence: re.Match[str]) -> int:
    wanted = fence["indent"] + fence["marks"]
    for number in range(start + 1, len(lines)):
        if lines[number].rstrip() == wanted:
            return number
    raise AssertionError(f"line {start + 1}: a fence that nothing closes")


def _begins_indented(lines: list[str], number: int) -> bool:
    """Say whether a block begins here: after an empty line, and not within a list."""
    if not lines[number].startswith(INDENTED) or not lines[number].strip():
        return False
    if number == 0 or lines[number - 1].strip():
        return False
    before = next((line for line in reversed(lines[:number]) if line.strip()), "")
    return not re.match(r"^( *)([-*]|\d+\.) ", before) and not before.startswith("  ")


def apply_diff(text: str, diff: str, place: str = "") -> str:
    """Change a text as a diff says: hunks between lines of `@@`, each found by its old lines."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines()
        assert all(line[:1] in {" ", "+", "-", ""} for line in lines), place
        old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
        found = f"\n{text}".count(f"\n{old}")
        assert found == 1, f"{place}: found {found} times, not once:\n{old}"
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
    return text
