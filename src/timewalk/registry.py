"""What the registries share: importing what a line names, and what a module says of itself.

A wrong line and a module that fails in itself are told apart: the one is mended in the registry,
the other in the module.
"""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from timewalk.errors import UserError, reason


def load_module(module: str, line: str) -> ModuleType:
    """Import the module that a line of a registry names.

    Args:
        module: its dotted name.
        line: the registry's file and what stands there, for messages.

    Raises:
        UserError: there is no such module, or an import inside it fails.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        if missing and f"{module}.".startswith(f"{error.name}."):
            message = f"{line}: there is no module {error.name}; correct this line, or write it."
            raise UserError(message) from None
        raise UserError(
            f"module {module} fails to import: {reason(error)}; correct that import, or install "
            "what it needs."
        ) from error


def summary(module: str) -> str:
    """Return the first sentence of a module's docstring; of one that cannot be read, why.

    Read, not imported: importing torch for a list of names takes seconds.
    """
    try:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            return f"(there is no module {module})"
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes())) or ""
    except (ImportError, SyntaxError) as error:
        return f"({module} cannot be read: {reason(error)})"
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def patterns_meet(one: str, other: str) -> bool:
    """Return whether some name matches both of two patterns with ``*`` and ``?``."""
    if not one or not other:
        return not (one + other).strip("*")
    if one[0] == "*":
        return patterns_meet(one[1:], other) or patterns_meet(one, other[1:])
    if other[0] == "*":
        return patterns_meet(other, one)
    same = one[0] == other[0] or "?" in (one[0], other[0])
    return same and patterns_meet(one[1:], other[1:])
