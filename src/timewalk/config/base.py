"""What all configuration models share: strictness, kinds of values, and how names are looked up."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from timewalk.errors import UserError, nearest

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Positive = Annotated[int, Field(ge=1)]
Names = list[Name]
"""a name of its own, since a key may be called `list`"""
Probability = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model without unknown keys and without NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Split(Strict):
    """One of two parts of a set of videos; the same names, seed and share give the same parts."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """share of the videos that are in `train`, rounded down; the others are in `val`"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1
    """of the order in which the sorted names are dealt out"""
    part: Literal["train", "val"]
    """which part this set is"""


def package_file(source: str, key: str) -> Path:
    """Return the path of `package:<import name>/<file>` without importing that package.

    Raises:
        UserError: the package is not installed, or holds no such file.
    """
    import importlib.util

    package, _, inside = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{key}: the Python package '{package}' is not installed; pip install it.")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise UserError(f"{key}: the Python package '{package}' holds no file '{inside}'.")
    return path


def lookup(kind: str, name: str, known: dict[str, Any]) -> Any:
    """Return ``known[name]``; an unknown name is a :class:`UserError` with the nearest one."""
    if name not in known:
        raise UserError(f"unknown {kind} '{name}'{nearest(name, known)}")
    return known[name]
