"""HTML from Python: elements whose texts and attributes are escaped, whatever files say."""

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = frozenset(("img", "br", "input", "meta", "source"))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: HTML (:class:`Markup`), texts, numbers, or lists of these; None is nothing.
        attributes: `class_` is class, `data_x` is data-x; None and False leave one out, True stands
            for one without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """Return children one after the other."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(joined(child))
        elif child is not None:
            parts.append(child if isinstance(child, Markup) else escape(str(child)))
    return Markup("".join(parts))


def script_json(value: Any) -> Markup:
    """Return a value as JSON for a script element, which no text in it can end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text))


def anchor(*names: str) -> str:
    """Return an id of names, the same for the same names and never of others."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]", lambda x: f".{ord(x[0]):x}.", name) for name in names)


def breakable(text: str) -> Markup:
    """Return a long name that a line may break after its separators."""
    return Markup(
        "<wbr>".join(escape(part) for part in re.findall(r"[^_/.:-]*[_/.:-]|[^_/.:-]+", text))
    )
