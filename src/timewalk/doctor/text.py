"""The doctor's findings for people: by area, each on a line, what to do below it."""

from collections.abc import Sequence
from pathlib import Path

from timewalk.doctor.finding import Finding
from timewalk.report.terminal import terminal_width, text_width, wrapped

MARKS = {"ok": "ok", "missing": "MISSING", "absent": "absent", "to come": "to come"}
INDENT = " " * 11


def as_text(
    findings: Sequence[Finding], files: Sequence[Path] = (), width: int | None = None
) -> str:
    """Return findings as lines of a terminal.

    Args:
        findings: in the order in which they are shown.
        files: configuration files that were looked at.
        width: columns; default: the terminal's.
    """
    width = width or terminal_width()
    lines: list[str] = []
    area = None
    for finding in findings:
        if finding.area != area:
            lines += [*([""] if lines else []), finding.area]
            area = finding.area
        lines += _lines(finding, width)
    missing = sum(finding.state == "missing" for finding in findings)
    suite = ", ".join(map(str, files)) or "the machine alone; name a configuration for its suite"
    verdict = f"{missing} missing" if missing else "Nothing is missing"
    return "\n".join([*lines, "", wrapped(f"{verdict} ({suite}).", width)])


def _lines(finding: Finding, width: int) -> list[str]:
    first = f"  {MARKS[finding.state]:<8} {finding.name}: {finding.text}"
    lines = [wrapped(first, width, INDENT)] if text_width(first) > width else [first]
    if finding.remedy is not None:
        lines.append(wrapped(f"{INDENT}{finding.remedy}", width, INDENT))
    return lines
