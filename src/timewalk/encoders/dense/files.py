"""Fine-tuned networks in files.

A saved network is ``network.safetensors`` and beside it ``network.json``: architecture, the images'
mean and standard deviation, digest of the tensors, and what its fine-tuning says of it.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import nn

from timewalk import encoders
from timewalk.artefacts import FORMAT, atomic_path, read_json, sha256_file, write_json
from timewalk.encoders.files import load_exactly, read_tensors
from timewalk.errors import UserError

Kind = Literal["segmenter", "detector"]
KINDS = {"segmenter": ("segmenter", "Segmenter"), "detector": ("detector", "Detector")}
"""file and class of each kind of network, imported when one is built"""

TENSORS, CARD = "network.safetensors", "network.json"
REMEDY = "run its fine-tuning again"


def from_spec(spec: Mapping[str, Any]) -> nn.Module:
    """Return a fresh network of the architecture that its ``spec`` describes."""
    file, name = KINDS[spec["kind"]]
    keys = {key: value for key, value in spec.items() if key not in ("kind", "encoder")}
    module = importlib.import_module(f"timewalk.encoders.dense.{file}")
    network: nn.Module = getattr(module, name)(encoders.from_spec(spec["encoder"]), **keys)
    return network


def save_network(network: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``network.safetensors`` and then ``network.json``, each atomically.

    Args:
        network: with its ``encoder`` and its ``spec``.
        folder: where to.
        about: plain data that the card holds too: ``title``, ``classes``, provenance.
    """
    encoder: Any = network.encoder
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
    }
    with atomic_path(folder / TENSORS) as temporary:
        save_file(tensors, temporary)
    card = {
        "kind": "network",
        "format": FORMAT,
        "architecture": network.spec,
        "mean": encoder.mean,
        "std": encoder.std,
        "sha256": sha256_file(folder / TENSORS),
    }
    if shared := card.keys() & about.keys():
        raise ValueError(f"about must not hold {sorted(shared)}")
    write_json(folder / CARD, {**card, **about})


def load_network(folder: Path | str, kind: Kind) -> tuple[Any, dict[str, Any]]:
    """Return a saved network, in eval mode on the CPU, and its card.

    Args:
        folder: that :func:`save_network` wrote.
        kind: of network that is needed.

    Raises:
        UserError: a file is missing, damaged, of another kind, or does not fit the one beside it.
    """
    folder = Path(folder)
    card = read_json(folder / CARD)
    if not isinstance(card, dict) or card.get("kind") != "network" or "architecture" not in card:
        raise UserError(f"{folder / CARD} does not describe a fine-tuned network; {REMEDY}.")
    try:
        found = card["architecture"]["kind"]
        network = from_spec(card["architecture"]) if found == kind else None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CARD} names an architecture that cannot be built ({error}); {REMEDY}."
        ) from None
    if network is None:
        raise UserError(
            f"{folder / CARD} describes a {found}, but a {kind} is needed here; name a fine-tuning "
            "of the right task."
        )
    tensors = read_tensors(folder / TENSORS)
    if sha256_file(folder / TENSORS) != card.get("sha256"):
        raise UserError(f"{folder / TENSORS} is not the file that {CARD} describes; {REMEDY}.")
    load_exactly(network, tensors, str(folder / TENSORS), "network")
    return network.eval(), card


def finetuned_title(about: Mapping[str, Any]) -> str:
    """Return what of a protocol's name the fine-tuning decides, from a network's card."""
    return str(about["title"])
