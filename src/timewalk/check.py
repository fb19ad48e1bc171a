"""Settings checked against a model: each finding of pydantic becomes one readable sentence.

Apart from ``timewalk.suite``, which knows the methods and so needs torch: stages that only touch
video files check their settings in a tenth of the time and memory.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from timewalk.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)


def check(model: type[M], raw: Any, prefix: str = "") -> M:
    """Validate ``raw``; every finding of pydantic becomes one readable sentence."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(model, item, prefix) for item in error.errors()]
        raise UserError("\n".join(lines)) from None


def _sentence(model: type[BaseModel], item: Any, prefix: str) -> str:
    path = ".".join([prefix, *map(str, item["loc"])] if prefix else map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        known = _keys_at(model.model_json_schema(), item["loc"][:-1])
        return f"{path}: unknown key{nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{path}: this key is missing."
    message = item["msg"].removeprefix("Value error, ")
    value = "" if isinstance(item["input"], Mapping) else f" is {item['input']!r}"
    return f"{path or 'configuration'}{value}: {message}."


def _keys_at(schema: dict[str, Any], loc: tuple[Any, ...]) -> set[str]:
    """Collect the known keys at a location, through references and every branch of a union."""
    level = [schema]
    for part in (None, *loc):
        # The tag of a discriminated union is part of pydantic's location.
        if tagged := [node for node in level if part is not None and _tag(node) == part]:
            level = tagged
            continue
        level = [
            child
            for node in level
            for child in ([node] if part is None else _children(node, str(part)))
        ]
        level = [leaf for node in level for leaf in _branches(schema, node)] or level
    return {key for node in level for key in node.get("properties", {})}


def _branches(root: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _branches(root, root["$defs"][node["$ref"].rpartition("/")[2]])
    options = node.get("anyOf", []) + node.get("oneOf", []) + node.get("allOf", [])
    return [leaf for option in options for leaf in _branches(root, option)] or [node]


def _children(node: dict[str, Any], part: str) -> list[dict[str, Any]]:
    if part in node.get("properties", {}):
        return [node["properties"][part]]
    if "patternProperties" in node:
        return list(node["patternProperties"].values())
    if isinstance(node.get("items"), dict):
        return [node["items"]]
    return [node]


def _tag(node: dict[str, Any]) -> Any:
    return node.get("properties", {}).get("kind", {}).get("const")
