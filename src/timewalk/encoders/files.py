"""Encoders in files: building from a configuration, saving, loading.

A saved encoder is ``encoder.safetensors`` and beside it ``encoder.json``: architecture, mean and
standard deviation, stride, width, and where it comes from. timm is imported only when a network
is built: it takes seconds.
"""

import argparse
import importlib
import logging
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from timewalk.artefacts import (
    FORMAT,
    atomic_path,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)
from timewalk.config import EncoderConfig, package_file
from timewalk.encoders import weights
from timewalk.encoders.base import BASE_NETWORKS, RESNETS, Encoder, is_vit, vit_shape
from timewalk.encoders.fetch import fetch
from timewalk.encoders.weights import efficientnet_lite, keras_resnet_v2
from timewalk.errors import UserError, reason

log = logging.getLogger(__name__)

BODY = "body."
"""what stands before timm's names in a :class:`~timewalk.encoders.cnn.TimmEncoder`"""
LITE = "tf_efficientnet_lite0"
FAMILIES = {
    "vit": ("vit", "ViT"),
    "resnet": ("resnet", "ResNet"),
    "timm": ("cnn", "TimmEncoder"),
    "resnet50v2_conv4c": ("resnet_v2", "ResNet50V2"),
    "resnet50_conv4c": ("resnet_conv4c", "ResNet50Conv4c"),
    "vgg_m": ("vgg_m", "VGGM"),
}
"""file and class of each kind of encoder, imported when one is built"""

TENSORS, CARD = "encoder.safetensors", "encoder.json"
HEAD = "head.safetensors"
"""beside them, of a method whose head evaluations may use"""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """Return the encoder that a configuration asks for, with fresh or given weights.

    Raises:
        UserError: an unknown name, or weights that do not fit.
    """
    with seeded(seed):
        if is_vit(config):
            width, depth, heads = vit_shape(config)
            keys = {"patch_size": config.patch_size, "image_size": config.image_size}
            shape = {"width": width, "depth": depth, "heads": heads}
            rule = {"position_interpolation": config.position_interpolation}
            drop_path = {"drop_path": config.drop_path}
            encoder = from_spec({"family": "vit", **shape, **keys, **rule, **drop_path})
        elif config.name in RESNETS:
            spec = {"family": "resnet", "name": config.name, "padding": config.padding}
            encoder = from_spec(spec)
        elif config.name in BASE_NETWORKS:
            encoder = from_spec({"family": config.name})
        else:
            encoder = from_spec({"family": "timm", "name": config.name})
    if config.weights is None:
        return encoder
    if config.weights.startswith("timm:"):
        _load_from_timm(encoder, config.weights.removeprefix("timm:"))
        return encoder
    path = weights_path(config.weights)
    _check_digest(path, config.sha256)
    _load_weights(encoder, path, config.weights_part)
    return encoder


def from_spec(spec: Mapping[str, Any]) -> Encoder:
    """Return a fresh encoder of the architecture that ``Encoder.spec`` describes."""
    keys = {key: value for key, value in spec.items() if key != "family"}
    file, name = FAMILIES[spec["family"]]
    encoder: Encoder = getattr(importlib.import_module(f"timewalk.encoders.{file}"), name)(**keys)
    return encoder


def save_encoder(encoder: Encoder, folder: Path, provenance: dict[str, Any]) -> None:
    """Write ``encoder.safetensors`` and then ``encoder.json``, each atomically."""
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()
    }
    with atomic_path(folder / TENSORS) as temporary:
        save_file(tensors, temporary)
    write_json(
        folder / CARD,
        {
            "kind": "encoder",
            "format": FORMAT,
            "architecture": encoder.spec,
            "mean": encoder.mean,
            "std": encoder.std,
            "stride": encoder.stride,
            "width": encoder.width,
            "patch_width": encoder.patch_width,
            "sha256": sha256_file(folder / TENSORS),
            "provenance": provenance,
        },
    )


def save_head(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``head.safetensors``; without tensors, remove the one of an earlier run."""
    if not tensors:
        (folder / HEAD).unlink(missing_ok=True)
        return
    with atomic_path(folder / HEAD) as temporary:
        save_file({k: x.detach().cpu().contiguous() for k, x in tensors.items()}, temporary)


def load_head(folder: Path | str) -> dict[str, Tensor]:
    """Return the head's tensors beside a saved encoder; none if its method has no head.

    Args:
        folder: a run's folder, or the encoder's file in it.

    Raises:
        UserError: the file is damaged.
    """
    folder = Path(folder)
    path = (folder if folder.is_dir() else folder.parent) / HEAD
    return read_tensors(path) if path.exists() else {}


def head_of_weights(config: EncoderConfig) -> dict[str, Tensor]:
    """Return what `encoder.weights` holds for evaluations beside the encoder.

    Returns:
        Of a published checkpoint tensors under their published names, of an encoder of ours the
        head beside it; none where there are none.

    Raises:
        UserError: the file is missing or damaged.
    """
    if config.weights is None or config.weights.startswith("timm:"):
        return {}
    path = weights_path(config.weights)
    return load_head(path) if (path.parent / CARD).exists() else weights.head(read_checkpoint(path))


def load_encoder(folder: Path | str) -> Encoder:
    """Return a saved encoder, in eval mode on the CPU.

    Args:
        folder: a run's folder, or one of the two files in it.

    Raises:
        UserError: a file is missing, damaged, or does not fit the architecture beside it.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name in (TENSORS, CARD) else folder
    card = read_json(folder / CARD)
    if not isinstance(card, dict) or card.get("kind") != "encoder" or "architecture" not in card:
        raise UserError(f"{folder / CARD} does not describe an encoder; train the run again.")
    tensors = read_tensors(folder / TENSORS)
    try:
        encoder = from_spec(card["architecture"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CARD} names an architecture that cannot be built ({error}); "
            "train the run again."
        ) from None
    load_exactly(encoder, tensors, str(folder / TENSORS))
    return encoder.eval()


def encoder_digest(folder: Path) -> str:
    """Return the digest of a saved encoder: of its tensors, of how they are used (heads,
    interpolation of positions, padding, mean and standard deviation are in no tensor), and of the
    head beside it, which some evaluations read too.

    Raises:
        UserError: a file is missing or damaged.
    """
    card = read_json(folder / CARD)
    about = [card.get(key) for key in ("architecture", "mean", "std")]
    head = [sha256_file(folder / HEAD)] if (folder / HEAD).exists() else []
    return sha256_json([sha256_file(folder / TENSORS), *about, *head])


def weights_path(source: str) -> Path:
    """Return the path of ``encoder.weights``: inside a package, fetched, or as it is."""
    if source.startswith("package:"):
        return package_file(source, "encoder.weights")
    if source.startswith(("http://", "https://")):
        return fetch(source)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"encoder.weights: {path} is missing; correct the path.")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a flat state dict from a safetensors file or a checkpoint of plain tensors.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors.
    """
    state = read_checkpoint(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} is no flat state dict of tensors; extract the network's weights.")
    return state


def read_checkpoint(path: Path) -> Any:
    """Read a safetensors file, Keras's `.h5` or a checkpoint of plain data; no code is ever run.

    Raises:
        UserError: the file is missing, damaged, or holds code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in keras_resnet_v2.SUFFIXES:
            return keras_resnet_v2.read(path)
        # Trainers of the field keep their command line's options in their checkpoints.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that makes it.") from None
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "GLOBAL" not in str(error):
            raise UserError(
                f"{path} cannot be read as weights ({reason(error)}); make it anew."
            ) from None
        raise UserError(
            f"{path} holds objects besides tensors and plain data, and code in a file is never "
            "run; save the network's state_dict() alone and name that file."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({reason(error)}); make it anew."
        ) from None


def _check_digest(path: Path, expected: str | None) -> None:
    if expected is not None and (found := sha256_file(path)) != expected:
        raise UserError(
            f"{path} has SHA-256 {found} but encoder.sha256 is {expected}; fetch the right file."
        )


def _load_weights(encoder: Encoder, path: Path, part: str | None) -> None:
    checkpoint, own = read_checkpoint(path), _timm_state(encoder)
    if efficientnet_lite.recognises(checkpoint) and encoder.spec.get("name") == LITE:
        _check_digest(path, efficientnet_lite.SHA256)
        state = efficientnet_lite.to_timm(checkpoint, own)
        encoder.normalise_by(efficientnet_lite.MEAN, efficientnet_lite.STD)
    else:
        try:
            state = weights.to_ours(checkpoint, own, part)
        except UserError as error:
            raise UserError(f"{path} {error}") from None
    _take(encoder, state, str(path))


def _load_from_timm(encoder: Encoder, name: str) -> None:
    """Load timm's own weights, with the mean and standard deviation that they expect."""
    import timm

    try:
        network: Any = timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"encoder.weights: timm gives no weights '{name}' ({reason(error)}); correct the name "
            "(timm.list_pretrained()), or fetch the file elsewhere and name its path."
        ) from None
    try:
        state = weights.to_ours(network.state_dict(), _timm_state(encoder))
    except UserError as error:
        raise UserError(f"timm's '{name}' {error}") from None
    encoder.normalise_by(network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    _take(encoder, state, f"timm's '{name}'")


def _timm_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return an encoder's state under timm's names."""
    return {key.removeprefix(BODY): value for key, value in encoder.state_dict().items()}


def _take(encoder: Encoder, state: dict[str, Tensor], source: str) -> None:
    """Load a state under timm's names, its position embeddings brought to the encoder's size."""
    own = encoder.state_dict()
    if encoder.spec["family"] == "vit":
        state = {**state, "pos_embed": _positions(encoder, state["pos_embed"])}
    names = {key.removeprefix(BODY): key for key in own}
    load_exactly(encoder, {names[key]: value for key, value in state.items()}, source)


def _positions(encoder: Any, positions: Tensor) -> Tensor:
    side = math.isqrt(encoder.pos_embed.shape[1] - 1)
    square = math.isqrt(max(positions.shape[1] - 1, 0)) ** 2 + 1 == positions.shape[1]
    if positions.shape == encoder.pos_embed.shape or positions.ndim != 3 or not square:
        return positions
    from timewalk.encoders.vit import interpolate_positions

    rule = encoder.position_interpolation
    log.info("position embeddings %s brought to %d x %d", tuple(positions.shape), side, side)
    return interpolate_positions(positions.float(), (side, side), rule)


def load_exactly(
    module: nn.Module, state: dict[str, Tensor], source: str, name: str = "encoder"
) -> None:
    """Load all tensors and none else, or say in a :class:`UserError` which are wrong."""
    own = module.state_dict()
    what = f"{source} does not fit the {name}"
    if missing := sorted(own.keys() - state.keys()):
        raise UserError(f"{what}: {len(missing)} tensors are missing: {_some(missing)}.")
    if unknown := sorted(state.keys() - own.keys()):
        raise UserError(f"{what}: {len(unknown)} tensors are unknown to it: {_some(unknown)}.")
    wrong = [
        f"'{key}' is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if state[key].shape != own[key].shape
    ]
    if wrong:
        raise UserError(f"{what}: {_some(wrong)}.")
    module.load_state_dict(state)


def _some(names: list[str], shown: int = 8) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
