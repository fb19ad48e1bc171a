"""Test-time adaptation: CRW's training goes on on the test video, before its labels are propagated.

Source: CRW, of whose released code this is no part. Before a frame, and then again every few
frames, the encoder takes some steps of the random walk's loss on a window of frames around it; no
label is used. The features of the frames in context are computed anew.

Shapes: T frames, N patches, P side of a patch, C channels.
"""

import copy
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.config import Positive, Probability, Strict
from timewalk.data.patches import node_patches
from timewalk.data.seeds import generator
from timewalk.data.sequences import read_frame
from timewalk.data.views import normalise
from timewalk.encoders import load_encoder, load_head
from timewalk.errors import UserError
from timewalk.evaluation.label_propagation import BeforeFrame, FrameFeatures
from timewalk.ops.cycles import affinities, cycles, palindromes, transitions
from timewalk.ops.propagation import Propagator

MARKS = {
    "every": "every",
    "window": "window",
    "frames_per_clip": "f",
    "step_between_frames": "step",
    "clips": "clips",
    "learning_rate": "lr",
    "temperature": "t",
    "edge_dropout": "d",
    "seed": "seed",
}
"""what stands before a changed key's value in a protocol's name"""


class AdaptConfig(Strict):
    """Test-time adaptation: the walk's training on the test video itself."""

    steps: Positive = 100
    """updates by Adam at each place where the encoder is adapted"""
    every: Positive = 5
    """frames from one such place to the next"""
    window: Positive = 10
    """frames before and after the place that the walks may use"""
    walk: Literal["sub_clips", "window"] = "sub_clips"
    """walk along random clips of the window, or along all its frames at once"""
    frames_per_clip: Annotated[int, Field(ge=3)] = 4
    """frames of such a clip"""
    step_between_frames: Positive = 1
    """frames of the video from one frame of such a clip to the next"""
    clips: Positive = 1
    """clips in one update (`walk: sub_clips`)"""
    batch_norm: Literal["frozen", "adapted"] = "frozen"
    """whether batch norm keeps the statistics of training, or takes those of the walk's patches and
    goes on averaging them"""
    reset: bool = True
    """begin each video with the trained weights; false: with those of the video before it"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """of Adam"""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """temperature of the transitions: that of the encoder's training"""
    edge_dropout: Probability = 0.1
    """share of the edges between nodes that are dropped"""
    image_size: Annotated[int, Field(ge=8)] = 256
    """side in pixels to which a frame is brought"""
    patch_size: Annotated[int, Field(ge=8)] = 64
    """side in pixels of the patches that are walked"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of clips, crops and dropped edges"""

    @model_validator(mode="after")
    def _fits(self) -> "AdaptConfig":
        if self.patch_size + self.patch_size // 2 > self.image_size:
            raise ValueError(
                f"patch_size {self.patch_size} leaves one patch in an image_size of "
                f"{self.image_size}; make it two thirds of image_size or less"
            )
        return self

    def title(self) -> str:
        """Return the mark in a protocol's name: the steps, and what is not as the defaults say."""
        default = AdaptConfig(patch_size=self.patch_size, image_size=self.image_size)
        changed = {
            key: getattr(self, key) for key in MARKS if getattr(self, key) != getattr(default, key)
        }
        title = "".join(f"-{MARKS[key]}{value:g}" for key, value in changed.items())
        if (self.image_size, self.patch_size) != (256, 64):
            title += f"-{self.image_size}px{self.patch_size}"
        title += "-whole" if self.walk == "window" else ""
        title += "-bn" if self.batch_norm == "adapted" else ""
        return f"adapt{self.steps}{title}" + ("" if self.reset else "-carried")


class Adapter:
    """An encoder that learns from the video it is tested on.

    Args:
        run: the run's folder: encoder, and head if its method has one.
        config: settings.
        device: where to compute.

    Attributes:
        encoder: changed in place as frames come.
        seconds: spent on adaptation since :meth:`start`.
        updates: made since then.
    """

    def __init__(self, run: Path, config: AdaptConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.encoder = load_encoder(run).eval().to(device)
        if config.patch_size % self.encoder.multiple:
            raise UserError(
                f"adapt.patch_size is {config.patch_size}; make it a multiple of "
                f"{self.encoder.multiple}, the encoder's patch."
            )
        self.head = _head(load_head(run)).to(device)
        self._trained = copy.deepcopy(self._state())
        self._optimizer = self._fresh_optimizer()
        self.seconds, self.updates = 0.0, 0

    def start(self, name: str, frames: Sequence[Path], size: tuple[int, int]) -> BeforeFrame:
        """Begin a video; return what is to be called before each of its frames."""
        self.seconds, self.updates = 0.0, 0
        if self.config.reset:
            self.encoder.load_state_dict(self._trained["encoder"])
            self.head.load_state_dict(self._trained["head"])
            self._optimizer = self._fresh_optimizer()
        number = zlib.crc32(name.encode())

        def before(index: int, propagator: Propagator, features: FrameFeatures) -> None:
            if (index - 1) % self.config.every:
                return
            started = time.monotonic()
            self._adapt(index - 1, frames, size, generator(self.config.seed, number, index))
            context = propagator.frames_in_context()
            propagator.replace_features([features[place] for place in context])
            self.seconds += time.monotonic() - started

        return before

    def spent(self) -> dict[str, float]:
        """Return the cost of the video so far."""
        return {"seconds": self.seconds, "updates": self.updates}

    def _adapt(
        self, place: int, frames: Sequence[Path], size: tuple[int, int], rng: torch.Generator
    ) -> None:
        config = self.config
        window = range(max(0, place - config.window), min(len(frames), place + config.window + 1))
        if len(window) < 3:
            return  # the shortest walk that is learnt from takes three frames
        pictures = {n: Image.fromarray(read_frame(frames[n], size)) for n in window}
        self.encoder.train(config.batch_norm == "adapted")
        for _ in range(config.steps):
            clips = [self._clip(window, rng) for _ in range(self._clips())]
            images = [[self._patches(pictures[n], rng) for n in clip] for clip in clips]
            loss = self._loss(torch.stack([torch.stack(clip) for clip in images]), rng)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self.updates += 1
        self.encoder.eval()

    def _clips(self) -> int:
        return 1 if self.config.walk == "window" else self.config.clips

    def _clip(self, window: range, rng: torch.Generator) -> list[int]:
        """Return the frames of one walk; a short window makes the steps, then the clip shorter."""
        if self.config.walk == "window":
            return list(window)
        length = min(self.config.frames_per_clip, len(window))
        step = max(1, min(self.config.step_between_frames, (len(window) - 1) // (length - 1)))
        starts = len(window) - (length - 1) * step
        first = window[int(torch.randint(starts, (), generator=rng))]
        return [first + n * step for n in range(length)]

    def _patches(self, picture: Image.Image, rng: torch.Generator) -> Tensor:
        config = self.config
        return torch.from_numpy(node_patches(picture, config.image_size, config.patch_size, rng))

    def _loss(self, patches_BTN: Tensor, rng: torch.Generator) -> Tensor:
        """Return the walk's loss of patches, uint8 (B, T, N, 3, P, P)."""
        config, grid = self.config, patches_BTN.shape[:3]
        flat = patches_BTN.to(self.device).flatten(0, 2)
        images = normalise(flat, self.encoder.mean, self.encoder.std)
        cells_RC = self.encoder.deepest(images).float().mean(dim=(2, 3))
        nodes_BTNC = F.normalize(self.head(cells_RC), dim=-1).unflatten(0, grid)
        edges = affinities(nodes_BTNC)
        draws = torch.rand((len(edges), 2, *edges.shape[1:]), generator=rng).to(self.device)
        steps = transitions(edges, config.temperature, config.edge_dropout, draws)
        return cycles(palindromes(*steps)).loss

    def _state(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "head": self.head.state_dict()}

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        return torch.optim.Adam(parameters, lr=self.config.learning_rate)


def _head(tensors: dict[str, Tensor]) -> nn.Sequential:
    """Return the linear layers of a saved head, ReLU between; none: nodes are the features."""
    # CRW's keys begin with the layer's number; heads of other methods are not walked on.
    tensors = {key: x for key, x in tensors.items() if key.split(".")[0].isdigit()}
    places = sorted(int(key.split(".")[0]) for key in tensors if key.endswith(".weight"))
    layers: list[nn.Module] = []
    for place in places:
        outputs, inputs = tensors[f"{place}.weight"].shape
        layers += [nn.ReLU(), nn.Linear(inputs, outputs)]
    head = nn.Sequential(*layers[1:])
    head.load_state_dict(tensors)
    return head
