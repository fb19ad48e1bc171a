"""The contract of a fine-tuning task: a method of the training loop over labelled images.

Source: iBOT's fine-tuning, to which DoRA refers. The encoder of a run gets a head, and both learn
(or the head alone) from the training split of a labelled set; the learning rate falls from the head
towards the image, layer by layer.
"""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from timewalk.config import Name, Positive, Probability, Strict, TrainingConfig
from timewalk.encoders import Encoder, from_spec, seeded
from timewalk.methods.base import Method, ParameterGroup

ENCODER = "encoder."
"""what stands before the encoder's names in a network"""
ALWAYS_DECAYED = {"pos_embed", "cls_token"}
"""parameters whose weight decay was meant to be 0 and was not"""
NO_RESULT = {
    "dataset",
    "nodes",
    "seed",
    "task",
    "training.activation_checkpointing",
    "training.checkpoint_minutes",
    "training.compile",
    "training.keep_checkpoints",
    "training.micro_batch_size",
}
"""keys that are no part of a protocol: how it is computed, or named there already. What the size of
micro-batches and the number of processes do to batch normalisations, the training itself names
(:attr:`Finetuning.batch_statistics`)"""
LEAST_SIDE = 128
"""pixels; no smaller an image tells which parameters an encoder's maps depend on"""


class FinetuneTraining(TrainingConfig):
    """The training loop, with what the tasks share as their default."""

    scale_learning_rate: bool = False
    """scale the peak learning rate linearly with batch_size: times batch_size / 256"""
    schedule: Literal["cosine", "step", "exponential", "linear", "constant"] = "linear"
    """how the learning rate falls from its peak: `linear` is the published polynomial of power 1"""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = 1e-6
    """share of the learning rate with which the warm-up begins, as a factor on the schedule, which
    falls under it; null: a warm-up from 0 to the peak, then the schedule"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """weight decay at the start of its cosine"""
    weight_decay_end: Annotated[float, Field(ge=0)] = 0.05
    """weight decay at the end of its cosine; left out or null: the same as at the start"""
    clip_grad: Annotated[float, Field(ge=0)] = 0.0
    """largest norm of a gradient; 0: no clipping"""
    micro_batch_size: Positive | None = None
    """most images that one process computes at once; the rest of its share of the batch follows by
    gradient accumulation; null: all at once. Batch normalisations that learn see only these, of all
    processes together: the protocol's name says how many where they are less than `batch_size`
    (`-bn4`)"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    """arithmetic of the networks, fp16 with a scaled loss; losses are always in fp32"""

    @model_validator(mode="before")
    @classmethod
    def _constant_decay(cls, values: Any) -> Any:
        """Fill in the weight decay's end, so that a resolved configuration shows the number."""
        if not isinstance(values, dict) or values.get("weight_decay_end") is not None:
            return values
        start = values.get("weight_decay", cls.model_fields["weight_decay"].default)
        return {**values, "weight_decay_end": start}


class FinetuningConfig(Strict):
    """What every fine-tuning has; its task's own keys stand beside these."""

    task: str
    """what is learnt: `semantic_segmentation` or `detection`"""
    dataset: Name
    """name of the labelled set whose training split is learnt from, of `labelled:`"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of the head's weights, order, augmentation and everything else drawn"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """factor on the learning rate from one of the encoder's layers to the one before it; null:
    none"""
    drop_path: Probability = 0.1
    """stochastic depth of a ViT's last block while it learns (rises linearly from 0)"""
    compat: Literal["intended", "published"] = "intended"
    """`published`: weight decay also on a ViT's positions and class token, as in the published
    runs, whose exception for them never applied"""
    training: FinetuneTraining = FinetuneTraining()
    """the training loop"""
    nodes: Positive = 1
    """machines that train together, each with the GPUs that the rule asks for (Slurm); changes
    speed, and results only by what each process draws (drop path, dropout, regions) and, where
    `micro_batch_size` is given, by how many images batch normalisations see at once"""

    @property
    def validation(self) -> None:
        """Nothing is evaluated between epochs."""
        return None


class Source(Protocol):
    """Labelled images by number. Safe in forked loader workers."""

    def __len__(self) -> int:
        """Return the number of images."""

    def clip(self, index: int, rng: torch.Generator | None = None) -> Any:
        """Return one image with its labels, as the task's ``sample`` takes it."""


class Finetuning(Method):
    """Base class of all tasks.

    Args:
        config: the fine-tuning.
        encoder: of the run, with its weights.
        about: manifest of the labelled set.

    Attributes:
        Config: pydantic model of the fine-tuning's keys.
        labels: what the labelled set has to hold.
        network: encoder and head: what is saved. The encoder is its child ``encoder``.
    """

    Config: ClassVar[type[FinetuningConfig]]  # type: ignore[assignment]
    labels: ClassVar[Literal["masks", "objects"]]
    network: nn.Module

    def __init__(
        self, config: FinetuningConfig, encoder: Encoder, about: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.config = config
        learning = rebuilt(encoder, config.drop_path, self.image_size())
        with seeded(config.seed):
            self.network = self.build(learning, about)
        self.batch_statistics = any(
            parameter.requires_grad
            for module in self.network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters()
        )

    def image_size(self) -> int | None:
        """Return the side in pixels of the squares that are learnt from, to whose grid a ViT's
        positions are brought before they learn; None: they stay on their own."""
        return None

    @abstractmethod
    def build(self, encoder: Encoder, about: Mapping[str, Any]) -> nn.Module:
        """Return the network, its head drawn from torch's generator."""

    @abstractmethod
    def open(self, manifest: Path) -> Source:
        """Return the training split of a labelled set.

        Raises:
            UserError: it holds no image to learn from.
        """

    @abstractmethod
    def title(self) -> str:
        """Return what of the protocol's name the fine-tuning decides: head, schedule, and every
        key that is not as published (:func:`marks`)."""

    def sizes(self) -> dict[str, int]:
        """Return the sizes in pixels with which an evaluation tests unless told otherwise."""
        return {}

    @abstractmethod
    def sample(self, clip: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Return one image's augmented tensors; called in the loader's worker."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameters that learn, grouped by the factor on their learning rate and by
        whether they are decayed."""
        from timewalk.encoders.dense.layers import layer_numbers

        encoder: Any = self.network.encoder
        numbers, layers = layer_numbers(encoder)
        rate = self.config.layer_decay or 1.0
        groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            inside = name.removeprefix(ENCODER)
            layer = numbers[inside] if name.startswith(ENCODER) else layers - 1
            decayed = parameter.ndim > 1 and not name.endswith(".bias")
            if self.config.compat == "intended" and inside in ALWAYS_DECAYED:
                decayed = False
            groups[rate ** (layers - 1 - layer), decayed].append(parameter)
        return [
            ParameterGroup(parameters, decayed, scale)
            for (scale, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]


def rebuilt(encoder: Encoder, drop_path: float, image_size: int | None) -> Encoder:
    """Return a saved encoder as it learns; networks other than ViTs stay what they are.

    Args:
        encoder: with its weights.
        drop_path: stochastic depth of the last block.
        image_size: side in pixels to whose grid the position embeddings are interpolated, once.
    """
    if encoder.spec["family"] != "vit":
        return encoder
    vit: Any = encoder
    side = image_size or encoder.spec["image_size"]
    spec = {**encoder.spec, "drop_path": drop_path, "image_size": side}
    other = from_spec(spec)
    cells = side // encoder.stride
    positions = vit.positions((cells, cells)).detach()
    other.load_state_dict(encoder.state_dict() | {"pos_embed": positions})
    return other


def freeze_unread(encoder: Encoder, norm: bool) -> None:
    """Take from learning what none of an encoder's maps depends on: a final norm that is not
    applied, layers that only the summary needs. It has no gradient, and processes that wait for
    each other's gradients would have to look for it in every step.

    Args:
        encoder: changed in place.
        norm: as of :meth:`~timewalk.encoders.Encoder.taps`.
    """
    step = math.lcm(encoder.multiple, *encoder.tap_strides)
    side = step * math.ceil(LEAST_SIDE / step)
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    mode = encoder.training
    maps = encoder.eval().taps(torch.zeros(1, 3, side, side), norm=norm)
    encoder.train(mode)
    total = torch.stack([x.sum() for x in maps]).sum()
    gradients = torch.autograd.grad(total, learning, allow_unused=True)
    for parameter, gradient in zip(learning, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def marks(config: FinetuningConfig, published: FinetuningConfig, names: Mapping[str, str]) -> str:
    """Return what of a fine-tuning is not as published, for the protocol's name.

    Args:
        config: the fine-tuning.
        published: the same with all keys at the defaults of its head.
        names: what stands before a key's value, by dotted key; others: the key's last part.

    Returns:
        `-<name><value>` of every changed key that changes results.
    """
    own, usual = (_keys(x) for x in (config, published))
    changed = [k for k in own if k not in NO_RESULT and own[k] != usual.get(k)]
    parts = [f"{names.get(key, key.rpartition('.')[2])}{_short(own[key])}" for key in changed]
    seed = [f"seed{config.seed}"] if config.seed != published.seed else []
    return "".join(f"-{part}" for part in [*parts, *seed])


def _keys(config: FinetuningConfig) -> dict[str, Any]:
    """Return the dotted keys; a weight decay that does not change is one number."""
    keys = dict(_flat(config.model_dump(mode="json")))
    if keys["training.weight_decay_end"] == keys["training.weight_decay"]:
        keys["training.weight_decay_end"] = None
    return keys


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inside = isinstance(value, Mapping)
        found += _flat(value, f"{prefix}{key}.") if inside else [(f"{prefix}{key}", value)]
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(_short(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
