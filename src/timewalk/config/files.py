"""Configuration files: read, and laid over each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from timewalk.errors import UserError


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML configuration file."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name an existing configuration file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; save it as such.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name an existing configuration file."
        ) from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {where}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no keys; see config.yaml for an example.")
    return raw


def read_configs(paths: Sequence[Path]) -> dict[str, Any]:
    """Read configuration files, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, read_config(path))
    return merged


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the keys of ``over`` laid over it, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result
