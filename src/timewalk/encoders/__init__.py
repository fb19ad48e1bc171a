"""Image encoders: networks from images to a summary vector and a map of patch vectors."""

from timewalk.encoders.base import Encoder, Features
from timewalk.encoders.embedders import load_embedder
from timewalk.encoders.files import (
    build_encoder,
    encoder_digest,
    from_spec,
    head_of_weights,
    load_encoder,
    load_head,
    save_encoder,
    save_head,
    seeded,
)

__all__ = [
    "Encoder",
    "Features",
    "build_encoder",
    "encoder_digest",
    "from_spec",
    "head_of_weights",
    "load_embedder",
    "load_encoder",
    "load_head",
    "save_encoder",
    "save_head",
    "seeded",
]
