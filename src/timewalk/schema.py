"""The configuration's models as a JSON schema, and as a page for people.

Both hold all registered methods and evaluations; ``make schema`` publishes them.
"""

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from timewalk import evaluation, finetuning, methods
from timewalk.config import Config


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration with all registered methods and evaluations."""
    schema = Config.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    runs = {name: methods.get_method(name).Config for name in methods.method_names()}
    evals = {
        name: evaluation.get_evaluation(name).load().Config
        for name in evaluation.evaluation_names()
    }
    tuned = {name: finetuning.get_task(name).Config for name in finetuning.task_names()}
    sections = (
        ("runs", "method", runs),
        ("finetuning", "task", tuned),
        ("evaluations", "kind", evals),
    )
    for section, tag, models in sections:
        entries = schema["properties"][section]["patternProperties"]
        for pattern in entries:
            entries[pattern] = _tagged(tag, models, section, definitions)
    for section in schema["properties"].values():
        if "patternProperties" in section:
            section["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _tagged(
    tag: str, models: Mapping[str, type[BaseModel]], section: str, definitions: dict[str, Any]
) -> dict[str, Any]:
    branches = []
    for name, model in models.items():
        own = model.model_json_schema()
        definitions.update(own.pop("$defs", {}))
        definitions[f"{section}-{name}"] = own
        branches.append(
            {
                "if": {"properties": {tag: {"const": name}}},
                "then": {"$ref": f"#/$defs/{section}-{name}"},
            }
        )
    return {
        "type": "object",
        "required": [tag],
        "properties": {tag: {"enum": sorted(models)}},
        "allOf": branches,
    }


def config_markdown() -> str:
    """Return the page of all configuration keys: type, default and meaning, section by section."""
    schema = json_schema()
    lines = [
        "# Configuration",
        "",
        "Generated from the models by `make schema`; a test keeps it so. Every key, its type and",
        "range, its default and its meaning. Unknown keys are errors.",
        "",
        *_section("Top level", schema),
    ]
    order = sorted(schema["$defs"], key=lambda name: ("-" not in name, name))
    for name in order:
        title = (
            name.replace("runs-", "A run, `method: ")
            .replace("finetuning-", "A fine-tuning, `task: ")
            .replace("evaluations-", "An evaluation, `kind: ")
        )
        title = f"{title}`" if title != name else name
        lines += _section(title, schema["$defs"][name])
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, schema: dict[str, Any]) -> list[str]:
    rows = [
        f"| `{key}` | {_type(node)} | {_default(key, node, schema)} | {_text(node)} |"
        for key, node in schema.get("properties", {}).items()
    ]
    if not rows:
        return []
    about = " ".join(schema.get("description", "").split())
    return [
        f"## {title}",
        "",
        about,
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _text(node: dict[str, Any]) -> str:
    return " ".join(node.get("description", "").split()).replace("|", "\\|")


def _default(key: str, node: dict[str, Any], schema: dict[str, Any]) -> str:
    if key in schema.get("required", []):
        return "required"
    value = node.get("default")
    if isinstance(value, dict) and value:
        return "see there"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]}`"


LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _type(node: dict[str, Any]) -> str:
    if "$ref" in node:
        return f"[{node['$ref'].rpartition('/')[2]}](#{node['$ref'].rpartition('/')[2].lower()})"
    if "anyOf" in node:
        return " or ".join(_type(option) for option in node["anyOf"])
    if "enum" in node or "const" in node:
        return " or ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        items = node.get("prefixItems") or [node.get("items", {})]
        return "list of " + ", ".join(_type(item) for item in items)
    limits = [f"{sign} {node[key]:g}" for key, sign in LIMITS.items() if key in node]
    names = {
        "object": "mapping",
        "integer": "whole number",
        "string": "text",
        "boolean": "true or false",
    }
    return " ".join([names.get(node.get("type", ""), node.get("type", "any")), *limits])
