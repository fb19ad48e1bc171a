"""Docstrings as pages want them: roles become links, an asterisk is a product."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([\w.]+)`")
PRODUCT = re.compile(r"(?<=[\w)])\*(?=[\w(])")
CODE = re.compile(r"(``?[^`]+``?)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = _plain(obj.docstring.value)


def _plain(text: str) -> str:
    text = ROLE.sub(lambda found: f"`{found[1]}`", text)
    parts = CODE.split(text)
    return "".join(part if part[:1] == "`" else PRODUCT.sub(r"\\*", part) for part in parts)
