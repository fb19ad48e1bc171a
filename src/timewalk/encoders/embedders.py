"""TCC's embedders: maps of a few frames to one vector, and the file in which a run keeps its own.

Source: TCC's released code. Whatever the encoder's precision, everything behind the pooling is
computed in float32 (float64 stays).

Shapes: N clips, S sampled frames a clip, C context frames of each (oldest first, the frame itself
last), c h w channels, rows and columns of a map, D embedding size.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.encoders import keras_init
from timewalk.encoders.files import HEAD, load_head, seeded
from timewalk.errors import UserError, reason
from timewalk.ops.distillation import full

Flatten = Literal["max", "avg", "flatten"]
Layers = Sequence[tuple[int, int, bool]]
"""of each convolution: channels, side of its kernel, whether a ReLU follows"""
State = list[Tensor] | None

EMBEDDER, OBJECTIVE, ABOUT = "embedder.", "objective.", "about"
REMEDY = "train the run again."
SIDE = 224
"""side in pixels of frames where neither run nor set says another"""


class ConvEmbedder(nn.Module):
    """Convolutions over the context and the map, pooling, fully connected layers.

    Args:
        inputs: c, channels of the maps.
        size: D.
        context: C; only `flatten` depends on it.
        layers: 3-D convolutions with as many taps over time as over space.
        batch_norm: behind each convolution.
        flatten: largest or mean value over context and map, or all values in a row.
        map_size: h and w, or one number for both; needed for `flatten` alone.
        fc: of each fully connected layer before the last: width, whether a ReLU follows.
        base_dropout: rate, on the maps.
        base_dropout_spatial: drop a channel of all context frames and pixels together.
        fc_dropout: rate, before each of `fc`.
        normalise: bring embeddings to length 1.
    """

    def __init__(
        self,
        inputs: int,
        *,
        size: int = 128,
        context: int = 2,
        layers: Layers = ((512, 3, True), (512, 3, True)),
        batch_norm: bool = True,
        flatten: Flatten = "max",
        map_size: int | Sequence[int] | None = None,
        fc: Sequence[tuple[int, bool]] = ((512, True), (512, True)),
        base_dropout: float = 0.0,
        base_dropout_spatial: bool = False,
        fc_dropout: float = 0.1,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.flatten, self.normalise = size, flatten, normalise
        self.base_dropout, self.base_dropout_spatial = base_dropout, base_dropout_spatial
        self.fc_dropout = fc_dropout
        self.spec: dict[str, Any] = {
            "kind": "conv",
            "inputs": inputs,
            "size": size,
            "context": context,
            "layers": [list(layer) for layer in layers],
            "batch_norm": batch_norm,
            "flatten": flatten,
            "map_size": list(map_size) if isinstance(map_size, Sequence) else map_size,
            "fc": [list(layer) for layer in fc],
            "base_dropout": base_dropout,
            "base_dropout_spatial": base_dropout_spatial,
            "fc_dropout": fc_dropout,
            "normalise": normalise,
        }
        self.convolutions = nn.ModuleList(_blocks(3, inputs, layers, batch_norm))
        width = layers[-1][0] if layers else inputs
        if flatten == "flatten":
            width *= context * _pixels(map_size)
        self.dense, self.relus = nn.ModuleList(), [relu for _, relu in fc]
        for outputs, _ in fc:
            self.dense.append(_dense(width, outputs))
            width = outputs
        self.embedding = _dense(width, size)
        # Maps come with their channels last; in another order they would be copied.
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, maps_NSCchw: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return embeddings (N, S, D).

        Args:
            maps_NSCchw: of the encoder.
            seeds: one a clip, from which its dropout is drawn, whatever else is in the batch;
                None: no dropout.
        """
        dropout = ClipDropout(seeds)
        x = maps_NSCchw.flatten(0, 1).transpose(1, 2)
        x = dropout(x, self.base_dropout, channels=self.base_dropout_spatial)
        x = self._convolved(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self._pooled(full(x))
            for layer, relu in zip(self.dense, self.relus, strict=True):
                x = layer(dropout(x, self.fc_dropout))
                x = F.relu(x) if relu else x
            x = self.embedding(x)
        x = _unit(x) if self.normalise else x
        return x.unflatten(0, maps_NSCchw.shape[:2])

    def stream(self, maps_SCchw: Tensor, state: State) -> tuple[Tensor, State]:
        """Return embeddings (S, D) of consecutive frames; there is no state."""
        embeddings: Tensor = self(maps_SCchw.unsqueeze(0))
        return embeddings.squeeze(0), state

    def regularised(self) -> list[nn.Parameter]:
        """Return kernels and biases of all convolutions and fully connected layers."""
        return _kernels_and_biases(self)

    def _convolved(self, x: Tensor) -> Tensor:
        # On some CPUs the gradients of 3-D kernels in bfloat16 are garbage with 2 context frames.
        exact = x.device.type == "cpu"
        x = full(x) if exact else x
        with torch.autocast("cpu", enabled=False) if exact else nullcontext():
            for convolution in self.convolutions:
                x = convolution(x)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.flatten == "flatten":
            return x.flatten(1)
        return x.amax(dim=(2, 3, 4)) if self.flatten == "max" else x.mean(dim=(2, 3, 4))


class ConvGRUEmbedder(nn.Module):
    """Convolutions over the map, its largest values, recurrent layers over the frames (C = 1).

    Args:
        inputs: c, channels of the maps.
        size: D, units of the last GRU.
        layers: 2-D convolutions.
        gru: units of each recurrent layer.
        dropout: rate, before each convolution.
        batch_norm: behind each convolution.
        normalise: bring embeddings to length 1.

    Raises:
        UserError: the last GRU has not `size` units.
    """

    def __init__(
        self,
        inputs: int,
        *,
        size: int = 128,
        layers: Layers = ((512, 3, True), (512, 3, True)),
        gru: Sequence[int] = (128,),
        dropout: float = 0.0,
        batch_norm: bool = True,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if not gru or gru[-1] != size:
            raise UserError(
                f"embedder: the last GRU gives the embedding, but of gru {list(gru)} it has not "
                f"{size} units; make both numbers equal."
            )
        self.size, self.dropout, self.normalise = size, dropout, normalise
        self.spec: dict[str, Any] = {
            "kind": "convgru",
            "inputs": inputs,
            "size": size,
            "layers": [list(layer) for layer in layers],
            "gru": list(gru),
            "dropout": dropout,
            "batch_norm": batch_norm,
            "normalise": normalise,
        }
        self.convolutions = nn.ModuleList(_blocks(2, inputs, layers, batch_norm))
        widths = [layers[-1][0] if layers else inputs, *gru]
        self.gru = nn.ModuleList(
            _gru(before, units) for before, units in zip(widths, gru, strict=False)
        )

    def forward(self, maps_NSChw: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return embeddings (N, S, D) of clips, each begun anew; arguments as of ConvEmbedder."""
        return self._embedded(maps_NSChw, ClipDropout(seeds), None)[0]

    def stream(self, maps_SChw: Tensor, state: State) -> tuple[Tensor, State]:
        """Return embeddings (S, D) of consecutive frames of one video, and where they end.

        Args:
            maps_SChw: (S, 1, c, h, w).
            state: what the frames before gave; None at the video's start.
        """
        embeddings, state = self._embedded(maps_SChw.unsqueeze(0), ClipDropout(None), state)
        return embeddings.squeeze(0), state

    def regularised(self) -> list[nn.Parameter]:
        """Return kernels and biases of the convolutions: the recurrent layers are not counted."""
        return _kernels_and_biases(self)

    def _embedded(
        self, maps_NSCchw: Tensor, dropout: "ClipDropout", state: State
    ) -> tuple[Tensor, State]:
        x = maps_NSCchw.flatten(0, 2)
        for convolution in self.convolutions:
            x = convolution(dropout(x, self.dropout))
        with torch.autocast(x.device.type, enabled=False):
            x = full(x).amax(dim=(2, 3)).unflatten(0, maps_NSCchw.shape[:2])
            ends = []
            for index, layer in enumerate(self.gru):
                x, end = layer(x, None if state is None else state[index])
                ends.append(end)
        return _unit(x) if self.normalise else x, ends


class ClipDropout:
    """Dropout whose draws for a clip come from the clip's own seed, on the CPU.

    Args:
        seeds: one a clip; None: inputs are returned as they are.
    """

    def __init__(self, seeds: Sequence[int] | None) -> None:
        seeds = [] if seeds is None else seeds
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __call__(self, x: Tensor, rate: float, *, channels: bool = False) -> Tensor:
        """Return ``x`` with parts set to 0 and the others scaled by 1 / (1 - rate).

        Args:
            x: (N S, channels, ...), clip after clip.
            rate: probability of 0.
            channels: draw once a channel, not once a number.
        """
        if not self.generators or rate == 0:
            return x
        clips = len(self.generators)
        shape = [len(x) // clips, *(x.shape[1:2] if channels else x.shape[1:])]
        draws = torch.cat([torch.rand(shape, generator=g) for g in self.generators])
        kept = (draws >= rate).to(x.device, x.dtype) / (1 - rate)
        return x * kept.reshape(*kept.shape, *[1] * (x.ndim - kept.ndim))


Embedder = ConvEmbedder | ConvGRUEmbedder
KINDS: dict[str, type[ConvEmbedder] | type[ConvGRUEmbedder]] = {
    "conv": ConvEmbedder,
    "convgru": ConvGRUEmbedder,
}


def build_embedder(spec: Mapping[str, Any], seed: int) -> Embedder:
    """Return a fresh embedder of what its ``spec`` describes."""
    keys = {key: value for key, value in spec.items() if key != "kind"}
    with seeded(seed):
        return KINDS[spec["kind"]](**keys)


@dataclass
class TrainedEmbedder:
    """What the head file of a run holds.

    Attributes:
        embedder: in eval mode, on the CPU.
        about: settings: `embedder`, `objective`, `image_size`, `context`, `context_step`,
            `sampling`.
        objective: state of what the run was trained by.
    """

    embedder: Embedder
    about: dict[str, Any]
    objective: dict[str, Tensor]


def embedder_tensors(
    embedder: Embedder, objective_state: Mapping[str, Tensor], about: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return what a run saves as its head; the embedder's spec is added to ``about``."""
    text = json.dumps({**about, "embedder": embedder.spec}).encode()
    return {
        **{EMBEDDER + key: value for key, value in embedder.state_dict().items()},
        **{OBJECTIVE + key: value for key, value in objective_state.items()},
        ABOUT: torch.tensor(list(text), dtype=torch.uint8),
    }


def load_embedder(run: Path) -> TrainedEmbedder | None:
    """Return the embedder of a run; None if its method has none.

    Args:
        run: the run's folder, or its encoder's file.

    Raises:
        UserError: there is no such run, the file is damaged, or its parts do not fit together.
    """
    if not Path(run).exists():
        raise UserError(f"{run} does not exist: train the run, or correct the path.")
    tensors = load_head(run)
    if not any(key.startswith(EMBEDDER) for key in tensors):
        return None
    try:
        about = json.loads(bytes(tensors[ABOUT].tolist()).decode())
        embedder = build_embedder(about["embedder"], seed=0)
        _load(embedder, _part(tensors, EMBEDDER))
    except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{HEAD} of {run} holds an embedder that cannot be built ({reason(error)}); {REMEDY}"
        ) from None
    return TrainedEmbedder(embedder.eval(), about, _part(tensors, OBJECTIVE))


def side_of_frames(trained: TrainedEmbedder | None, wanted: int | None) -> int:
    """Return the side in pixels of the frames to embed: as wanted, as the run was trained, or 224.

    Raises:
        UserError: the embedder takes maps of one size alone, and another is wanted.
    """
    own = int(trained.about["image_size"]) if trained else None
    if trained and trained.embedder.spec.get("map_size") and wanted not in (None, own):
        raise UserError(
            f"the run's embedder takes all values of a map, and so frames of {own} pixels alone, "
            f"but the set's image_size is {wanted}; set it to {own} or null."
        )
    return wanted or own or SIDE


def _load(embedder: Embedder, state: Mapping[str, Tensor]) -> None:
    own = embedder.state_dict()
    if different := sorted(own.keys() ^ state.keys()):
        raise ValueError(f"tensors missing or unknown: {', '.join(different[:8])}")
    if wrong := [key for key in own if own[key].shape != state[key].shape]:
        raise ValueError(f"tensors of another shape: {', '.join(wrong[:8])}")
    embedder.load_state_dict(state)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}


def _blocks(dimensions: int, inputs: int, layers: Layers, batch_norm: bool) -> list[nn.Sequential]:
    convolution: Callable[..., Any] = nn.Conv3d if dimensions == 3 else nn.Conv2d
    normalisation: Callable[..., Any] = nn.BatchNorm3d if dimensions == 3 else nn.BatchNorm2d
    blocks = []
    for outputs, kernel, relu in layers:
        first = convolution(inputs, outputs, kernel, padding="same")
        keras_init.convolution(first)
        block = nn.Sequential(first)
        if batch_norm:
            block.append(normalisation(outputs, eps=1e-3, momentum=0.01))
        if relu:
            block.append(nn.ReLU())
        blocks.append(block)
        inputs = outputs
    return blocks


def _gru(inputs: int, units: int) -> nn.GRU:
    layer = nn.GRU(inputs, units, batch_first=True)
    keras_init.gru(layer)
    return layer


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    keras_init.dense(layer)
    return layer


def _pixels(map_size: int | Sequence[int] | None) -> int:
    if map_size is None:
        raise ValueError("flatten 'flatten' needs map_size")
    return map_size**2 if isinstance(map_size, int) else math.prod(map_size)


def _kernels_and_biases(module: nn.Module) -> list[nn.Parameter]:
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    return [p for layer in module.modules() if isinstance(layer, kinds) for p in layer.parameters()]


def _unit(x: Tensor) -> Tensor:
    # The root of the originals' 1e-12 under the root.
    return F.normalize(x, dim=-1, eps=1e-6)
