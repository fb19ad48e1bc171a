"""Addresses with secrets in them, kept out of MLflow, which shows all that it has to many.

Where weights come from may be an address with a user, a password or a token. What was read from
such a configuration names it as a value or as a key, and files repeat it.
"""

import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from timewalk.addresses import public

TEXTS = frozenset((".json", ".jsonl", ".md", ".csv", ".txt", ".html", ".tex", ".svg"))
"""suffixes of files that may repeat an address"""


def secrets(value: Any) -> dict[str, str]:
    """Return what a nested value holds that may be secret, as it is written in texts, each with
    what may be shown instead; the longest first, since one may begin with another.

    Args:
        value: of JSON.
    """
    found: dict[str, str] = {}
    for text in set(_strings(value)):
        if (shown := public(text)) != text:
            found |= {write(text): write(shown) for write in (str, *WRITTEN)}
    return dict(sorted(found.items(), key=lambda pair: (-len(pair[0]), pair[0])))


def without(text: str, hidden: Mapping[str, str]) -> str:
    """Return a text with each of :func:`secrets` replaced by what may be shown."""
    for secret, shown in hidden.items():
        text = text.replace(secret, shown)
    return text


def clean_copy(path: Path, hidden: Mapping[str, str]) -> str | None:
    """Return the text of a file without secrets; None where the file may go as it is."""
    if not hidden or path.suffix not in TEXTS:
        return None
    text = path.read_text(encoding="utf-8")
    clean = without(text, hidden)
    return None if clean == text else clean


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def _in_python(text: str) -> str:
    return repr(text)[1:-1]


WRITTEN = (_in_json, _in_ascii, _in_python, html.escape)
"""how a text is written inside of others"""


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts in a nested value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
