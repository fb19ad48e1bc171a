"""timewalk: image encoders learned from video, and what they learned, measured."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timewalk.encoders import load_embedder, load_encoder

__all__ = ["load_embedder", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Fetched when asked for: torch takes seconds, and most verbs do without it.
    if name in __all__:
        from timewalk import encoders

        return getattr(encoders, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
