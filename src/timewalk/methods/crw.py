"""CRW: an encoder from videos, by walking along a clip's frames and finding the way back.

"Space-time correspondence as a contrastive random walk" (NeurIPS 2020). Each frame of a clip yields
nodes, unit vectors of its patches; their affinities with the next frame's nodes are the transitions
of a random walk. A walk some frames forward and the same way back has to end at its start. Source:
CRW, equations 1 to 4, and its released code; docs/deviations.md says where we differ; the walks:
ops/cycles.py.

Shapes: B clips, T frames, N nodes a frame, C channels, h and w rows and columns of a map, S side of
a frame, P side of a patch.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.config import EncoderConfig, Positive, Probability, TrainingConfig
from timewalk.data.clips import ClipShape
from timewalk.data.patches import frame_view, patch_grid, patch_view, square
from timewalk.data.seeds import seed_of
from timewalk.data.views import brightness, contrast, normalise, saturation
from timewalk.encoders import build_encoder, seeded
from timewalk.encoders.base import VIT_SHAPES
from timewalk.methods.base import Losses, Method, Step, TrainedRunConfig
from timewalk.methods.pictures import walks_picture
from timewalk.ops.cycles import affinities, cycles, palindromes, transitions
from timewalk.ops.distillation import full

JITTER = 0.1
NODE_WIDTH = 128
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CHANGES = (brightness, contrast, saturation)

Side = Annotated[int, Field(ge=8)]
Share = Annotated[float, Field(ge=0, lt=1)]


class WalkEncoder(EncoderConfig):
    """The encoder whose patches are walked; by default the published one."""

    name: str = "resnet18_s8"
    """`resnet18_s8`, `resnet50_s8` (ResNets whose maps have stride 8); `vit_tiny`, `vit_small`,
    `vit_base`; or the name of any model of timm"""
    drop_path: Probability = 0.0
    """stochastic depth of the last block (rises linearly from 0; ViT names only)"""


class CrwTraining(TrainingConfig):
    """Training as published: Adam, and a learning rate that falls in steps."""

    epochs: Positive = 25
    """passes over the videos, each with `clips_per_video` clips of every video"""
    batch_size: Positive = 8
    """clips in one optimiser step, over all processes"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """learning rate until the first milestone"""
    scale_learning_rate: bool = False
    """scale it linearly with batch_size: times batch_size / 256"""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adam"
    """adam, adamw: betas 0.9, 0.999; sgd: momentum 0.9; lars: momentum 0.9, trust coefficient
    0.001"""
    schedule: Literal["cosine", "step"] = "step"
    """how the learning rate falls: in steps at `milestones`, or as a cosine"""
    milestones: list[Positive] = [20, 30, 40]
    """epochs after which the learning rate is multiplied by `gamma`"""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.3
    """factor on the learning rate at each milestone"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """epochs of linear warm-up from 0"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """weight decay at the start of its cosine"""
    weight_decay_end: Annotated[float, Field(ge=0)] = 0.0
    """weight decay at the end of its cosine"""
    clip_grad: Annotated[float, Field(ge=0)] = 0.0
    """largest norm of a gradient; 0: no clipping"""
    augment: Literal["worker"] = "worker"
    """crops and colours are the loader's workers' matter here"""


class CrwConfig(TrainedRunConfig):
    """Keys of a run of `crw`; where published code and documentation differ, the defaults are the
    published run's."""

    encoder: WalkEncoder = WalkEncoder()
    """the image encoder"""
    training: CrwTraining = CrwTraining()
    """the training loop"""
    frames_per_clip: Positive = 8
    """frames in a clip, 3 or more: walks go up to the last one and back"""
    step_between_frames: Positive = 8
    """frames of the data set from one frame of a clip to the next; less in a video that is too
    short for it"""
    clips_per_video: Positive | None = 5
    """random clips of each video in an epoch, at most; null: every start once"""
    image_size: Side = 256
    """side in pixels to which a frame is brought"""
    walk_nodes: Literal["grid", "map"] = "grid"
    """what is walked: `grid`: patches, cut from the frame half a patch apart and encoded each by
    itself; `map`: the cells of the encoder's deepest map of the whole frame"""
    patch_size: Side = 64
    """side of a patch in pixels (`walk_nodes: grid`)"""
    crop: bool = True
    """a random crop of 0.8 to 0.95 of each frame's area; false: the whole frame"""
    frame_jitter: bool = False
    """change brightness, contrast and saturation of each frame by up to a tenth"""
    frame_flip: bool = False
    """mirror each frame with probability 0.5"""
    patch_jitter: bool = False
    """the same change of colours, for each patch (`walk_nodes: grid`)"""
    patch_flip: bool = False
    """mirror each patch with probability 0.5 (`walk_nodes: grid`)"""
    edge_dropout: Share = 0.1
    """share of the edges between nodes that are dropped, before the softmax"""
    feature_dropout: Share = 0.0
    """share of the deepest map's values that are dropped"""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """temperature of the transitions"""
    head_depth: Annotated[int, Field(ge=0)] = 0
    """hidden layers of the head, between the encoder and its last linear layer to 128 channels"""
    flip_walks: bool = False
    """multiply the transitions of a walk in reversed order, as old models were trained"""
    compat: Literal["intended", "published"] = "intended"
    """`published` repeats the defects of the published code, see docs/deviations.md"""

    @model_validator(mode="after")
    def _fits(self) -> "CrwConfig":
        if self.frames_per_clip < 3:
            raise ValueError(
                f"frames_per_clip is {self.frames_per_clip}, but the shortest walk that is learnt "
                "from takes 3 frames; set 3 or more"
            )
        sides = ["image_size"]
        if self.walk_nodes == "grid":
            sides = ["patch_size"]
            if self.patch_size + self.patch_size // 2 > self.image_size:
                raise ValueError(
                    f"patch_size {self.patch_size} leaves one patch in an image_size of "
                    f"{self.image_size}; make it two thirds of image_size or less"
                )
        elif self.patch_jitter or self.patch_flip:
            raise ValueError(
                "patch_jitter and patch_flip mean nothing for `walk_nodes: map`; leave them out"
            )
        if self.encoder.name in VIT_SHAPES:
            for key in sides:
                if getattr(self, key) % self.encoder.patch_size:
                    raise ValueError(
                        f"{key} is {getattr(self, key)}; make it a multiple of "
                        f"encoder.patch_size {self.encoder.patch_size}"
                    )
        return self

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests.

        A ViT: through the kinks of a ResNet's ReLU rounding comes out as a part in a hundred of the
        gradient.
        """
        tiny = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 4, "patch_size": 8}
        return {
            "method": "crw",
            "dataset": "miniature",
            "encoder": {**tiny, "image_size": 32},
            "training": {"batch_size": 2, "epochs": 2},
            "frames_per_clip": 3,
            "step_between_frames": 1,
            "clips_per_video": 8,
            "image_size": 32,
            "patch_size": 16,
        }


class CRW(Method):
    """Encoder, head and walks.

    Attributes:
        head: linear layers from the deepest map's channels to a node's.
    """

    Config = CrwConfig
    config: CrwConfig

    def __init__(self, config: CrwConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, config.seed)
        with seeded(config.seed + 1):
            self.head = _head(self.encoder.deepest_width, config.head_depth)
        # The clips of a batch meet in a batch norm's statistics.
        norm = nn.modules.batchnorm._BatchNorm
        self.splits = not any(isinstance(module, norm) for module in self.encoder.modules())
        # timm's networks may have layers behind the deepest map.
        self.unused_parameters = self.encoder.spec["family"] == "timm"
        published = config.compat == "published"
        self._mean = CIFAR_MEAN if published else self.encoder.mean
        self._std = CIFAR_STD if published else self.encoder.std

    def clip_shape(self) -> ClipShape:
        """Return the frames of a clip: some clips of each video, closer frames in a short one."""
        config = self.config
        return ClipShape(
            config.frames_per_clip, config.step_between_frames, config.clips_per_video, shrink=True
        )

    def heads(self) -> dict[str, Tensor]:
        """Return the head, `0.weight` and so on: test-time adaptation goes on with it."""
        return dict(self.head.state_dict())

    def views(self, clip: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return `images` and `seed`, from which the device draws what is dropped.

        Every frame and every patch has draws of its own. Images are uint8: with `walk_nodes: grid`
        patches (T, N, 3, P, P), else frames (T, 1, 3, S, S).
        """
        config = self.config
        seed = torch.randint(2**63 - 1, (), generator=rng)
        places = patch_grid(config.image_size, config.patch_size)
        images = []
        for pixels in clip.permute(0, 2, 3, 1).numpy():
            frame = self._frame(Image.fromarray(pixels), rng)
            if config.walk_nodes == "map":
                images.append([np.asarray(frame)])
            else:
                images.append([self._patch(frame, place, rng) for place in places])
        stacked = torch.from_numpy(np.array(images))
        return {"images": stacked.permute(0, 1, 4, 2, 3).contiguous(), "seed": seed}

    def _frame(self, image: Image.Image, rng: torch.Generator) -> Image.Image:
        config = self.config
        image = frame_view(image, config.image_size, config.crop, rng)
        return _changed(image, config.frame_jitter, config.frame_flip, rng)

    def _patch(
        self, frame: Image.Image, place: tuple[int, int], rng: torch.Generator
    ) -> np.ndarray:
        config = self.config
        patch = patch_view(frame, place, config.patch_size, rng)
        return np.asarray(_changed(patch, config.patch_jitter, config.patch_flip, rng))

    def loss(self, batch: dict[str, Tensor], step: Step) -> Losses:
        """Return the loss of views `images` (B, T, N, 3, P, P) with a `seed` (B,) each.

        uint8 images are normalised here; floats are taken as they are.
        """
        config = self.config
        images, seeds = batch["images"], batch["seed"].tolist()
        nodes_BTNC = self.nodes(images, seeds)
        edges = affinities(nodes_BTNC)
        draws = None
        if config.edge_dropout > 0:
            # Both directions, of every transition.
            draws = _uniforms(seeds, 0, (2, *edges.shape[1:]), edges.device)
        walks = palindromes(
            *transitions(
                edges,
                config.temperature,
                config.edge_dropout,
                draws,
                shared_drops=config.compat == "published",
            ),
            flip=config.flip_walks,
        )
        result = cycles(walks)
        terms: dict[str, Tensor | float] = {}
        for k, (xent, accuracy) in enumerate(zip(result.xent, result.accuracy, strict=True), 1):
            terms |= {f"xent_cycle_{k}": xent.detach(), f"accuracy_cycle_{k}": accuracy}
        return Losses(result.loss, terms)

    def nodes(self, images_BTNCSS: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return the unit nodes of frames or patches, (B, T, N, 128) in full precision.

        A patch is one node; of a frame alone, every cell of its map is one.

        Args:
            images_BTNCSS: (B, T, N, 3, P, P), uint8 or normalised floats.
            seeds: of the B clips, for the dropout of features; None: no dropout.
        """
        grid = images_BTNCSS.shape[:3]
        images = images_BTNCSS.flatten(0, 2)
        if images.dtype == torch.uint8:
            images = normalise(images, self._mean, self._std)
        maps_RChw = self.encoder.deepest(images)
        if seeds is not None and self.config.feature_dropout > 0:
            maps_RChw = self._dropped(maps_RChw, seeds)
        cells_RNC = full(maps_RChw).flatten(2).mT
        if self.config.walk_nodes == "grid":
            cells_RNC = cells_RNC.mean(dim=1, keepdim=True)
        with torch.autocast(images.device.type, enabled=False):
            nodes_RNC = F.normalize(self.head(cells_RNC), dim=-1)
        return nodes_RNC.unflatten(0, grid).flatten(2, 3)

    def _dropped(self, maps_RChw: Tensor, seeds: Sequence[int]) -> Tensor:
        """Drop features as torch does: what stays grows by what goes."""
        rate = self.config.feature_dropout
        per_clip = (len(maps_RChw) // len(seeds), *maps_RChw.shape[1:])
        draws = _uniforms(seeds, 1, per_clip, maps_RChw.device).flatten(0, 1)
        return maps_RChw * (draws >= rate) / (1 - rate)

    @torch.no_grad()
    def visualise(self, clip: Tensor) -> dict[str, np.ndarray]:
        """Return `walks`: the frames of a clip with the most probable walks from five nodes, and
        below them where a walker from the middle node is, in each frame."""
        config = self.config
        pixels_TSSC = np.stack(
            [
                np.asarray(square(Image.fromarray(pixels), config.image_size))
                for pixels in clip.permute(0, 2, 3, 1).cpu().numpy()
            ]
        )
        images = torch.from_numpy(pixels_TSSC).permute(0, 3, 1, 2).unsqueeze(1)
        if config.walk_nodes == "grid":
            side = config.patch_size
            patches = [
                images[..., y : y + side, x : x + side]
                for y, x in patch_grid(config.image_size, config.patch_size)
            ]
            images = torch.cat(patches, dim=1)
        training = self.encoder.training
        self.encoder.eval()
        nodes_BTNC = self.nodes(images.unsqueeze(0).to(clip.device))
        self.encoder.train(training)
        forward_BTNN, _ = transitions(affinities(nodes_BTNC), config.temperature)
        centres_N2 = self._centres(nodes_BTNC.shape[2])
        return {"walks": walks_picture(pixels_TSSC, centres_N2, forward_BTNN[0].cpu())}

    def _centres(self, nodes: int) -> np.ndarray:
        """Return where nodes lie in a frame: row and column in pixels, (N, 2)."""
        if self.config.walk_nodes == "grid":
            return (
                np.array(patch_grid(self.config.image_size, self.config.patch_size))
                + self.config.patch_size / 2
            )
        side = round(nodes**0.5)
        lines = (np.arange(side) + 0.5) * self.config.image_size / side
        return np.stack(np.meshgrid(lines, lines, indexing="ij"), axis=-1).reshape(-1, 2)


def _head(width: int, depth: int) -> nn.Sequential:
    """Hidden layers as wide as the map, then a node's width; ReLU between."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, NODE_WIDTH))


def _changed(image: Image.Image, jitter: bool, flip: bool, rng: torch.Generator) -> Image.Image:
    """Change colours in random order and mirror by chance, each if asked for."""
    if jitter:
        factors = (1 + JITTER * (2 * torch.rand(len(CHANGES), generator=rng) - 1)).tolist()
        for number in torch.randperm(len(CHANGES), generator=rng).tolist():
            image = CHANGES[number](image, factors[number])
    if flip and float(torch.rand((), generator=rng)) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _uniforms(
    seeds: Sequence[int], purpose: int, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Return numbers in 0..1, (B, *shape), each clip's from its own seed: the same whatever
    process or micro-batch it is in."""
    draws = []
    for seed in seeds:
        rng = torch.Generator(device).manual_seed(seed_of(seed, purpose))
        draws.append(torch.rand(shape, generator=rng, device=device))
    return torch.stack(draws)
