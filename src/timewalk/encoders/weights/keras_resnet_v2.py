"""Keras's ResNet50V2 in an `.h5` file, with or without its classifier.

Groups by layer, each with the attribute `weight_names`; kernels are (H, W, in, out). Source: TCC's
released code, which starts from this file. Layers behind `conv4_block3_out` are not used.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timewalk.encoders.weights import general
from timewalk.encoders.weights.general import State
from timewalk.errors import UserError

NAME = "Keras ResNet50V2"
FITTING = "resnet50v2_conv4c"
SUFFIXES = (".h5", ".hdf5")
# ResNet50V2's fourth stage has six blocks.
DEEPER = "conv4_block7_1_conv/kernel"
FIRST, OUR_FIRST = "conv1_conv/kernel", "conv2.0.preact_bn.weight"
# torch's name of a normalisation's tensor and Keras's.
NORMALISATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
CONVOLUTION = {"weight": "kernel", "bias": "bias"}
BLOCK = re.compile(r"(conv\d)\.(\d+)\.(.+)")
# Where timm's ResNets of the second version differ from all others.
OF_TIMM = ("stem.conv.weight", "stages.0.blocks.0.norm1.weight")


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an `.h5` file by `<layer>/<tensor>`, as Keras shapes them.

    Raises:
        UserError: h5py is missing, or the file has not the layout of Keras's published weights.
        FileNotFoundError: there is no file.
        OSError: it is damaged.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path} is a file of Keras, and h5py is missing: pip install 'timewalk[keras]'."
        ) from None
    with h5py.File(path, "r") as file:
        layers = file.get("model_weights", file)
        groups = [group for group in layers.values() if "weight_names" in group.attrs]
        if not groups:
            raise UserError(
                f"{path} has no layers with the attribute 'weight_names'; save it with Keras 2's "
                "save_weights(), or name the published file."
            )
        return {
            _short(name): torch.from_numpy(np.asarray(group[name]))
            for group in groups
            for name in map(_text, group.attrs["weight_names"])
        }


def recognises(checkpoint: Any) -> bool:
    """Return whether a checkpoint has the first kernel under Keras's name."""
    return isinstance(checkpoint, Mapping) and FIRST in checkpoint


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return the layers up to `conv4_block3_out`, kernels (out, in, H, W).

    Raises:
        UserError: another encoder than `resnet50v2_conv4c`, or tensors are missing.
    """
    general.refuse_part(part)
    if OUR_FIRST not in own:
        raise UserError(f"holds a ResNet of Keras, which fits encoder.name: {FITTING} alone.")
    if DEEPER in checkpoint:
        raise UserError(
            "holds Keras's ResNet101V2 or ResNet152V2, whose strides stand elsewhere; name the "
            "file of ResNet50V2."
        )
    names = {key: keras_name(key) for key in own if not key.endswith(general.COUNTER)}
    state = {
        key: _transposed(checkpoint[name], 3, 2, 0, 1)
        for key, name in names.items()
        if name in checkpoint
    }
    return general.under(state, "", own)


def from_ours(own: State) -> dict[str, Tensor]:
    """Return the layers under Keras's names, kernels (H, W, in, out)."""
    return {
        keras_name(key): _transposed(value, 2, 3, 1, 0)
        for key, value in own.items()
        if not key.endswith(general.COUNTER)
    }


def refuse_timm(checkpoint: Any, own: State) -> None:
    """Refuse weights of timm's ResNets of the second version for Keras's network."""
    if OUR_FIRST in own and all(_has(checkpoint, name) for name in OF_TIMM):
        raise UserError(
            "holds a ResNet-V2 of PyTorch, whose strides stand elsewhere than Keras's; name "
            "Keras's own .h5 file as encoder.weights, or the file's network as encoder.name."
        )


def keras_name(key: str) -> str:
    """Return `<layer>/<tensor>` of one of our tensors: `conv2_block1_0_conv/kernel`."""
    module, tensor = key.rsplit(".", 1)
    block = BLOCK.fullmatch(module)
    if block is None:
        return f"{module}_conv/{CONVOLUTION[tensor]}"
    stack, index, layer = block.groups()
    before = f"{stack}_block{int(index) + 1}"
    if layer == "preact_bn":
        return f"{before}_preact_bn/{NORMALISATION[tensor]}"
    kind, number = layer[:-1], layer[-1]
    tensors = NORMALISATION if kind == "bn" else CONVOLUTION
    return f"{before}_{number}_{kind}/{tensors[tensor]}"


def _has(checkpoint: Any, end: str) -> bool:
    state = general.flat_state(checkpoint)
    return any(key == end or key.endswith(f".{end}") for key in state)


def _transposed(value: Tensor, *order: int) -> Tensor:
    return value.permute(order) if value.ndim == 4 else value


def _short(name: str) -> str:
    """Return the last two parts of a name: of `conv1_conv/kernel:0` all but the `:0`."""
    return "/".join(name.removesuffix(":0").split("/")[-2:])


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
