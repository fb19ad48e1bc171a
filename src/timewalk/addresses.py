"""Addresses as they may be shown: without what may be secret in them."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit


def public(source: str) -> str:
    """Return a source without what may be secret: user, password, any query but a video's id."""
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
    except ValueError:  # no host that can be told from what stands before it
        return f"{source.partition('://')[0]}://…"
    host = parts.netloc.rpartition("@")[2]
    query = parts.query if parts.query.startswith("v=") and "&" not in parts.query else ""
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def public_settings(settings: Any) -> Any:
    """Return settings to show: every address in them, at any depth, as :func:`public` gives it."""
    if isinstance(settings, Mapping):
        return {key: public_settings(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [public_settings(value) for value in settings]
    return public(settings) if isinstance(settings, str) else settings
