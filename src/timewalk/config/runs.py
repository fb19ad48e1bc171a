"""Keys that all runs share, and those that all evaluations share."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from timewalk.config.base import Name, Names, Positive, Probability, Strict


class EncoderConfig(Strict):
    """The image encoder."""

    name: str = "vit_small"
    """`vit_tiny`, `vit_small`, `vit_base`; `resnet18_s8`, `resnet50_s8` (ResNets whose maps have
    stride 8); `resnet50v2_conv4c`, `resnet50_conv4c`, `vgg_m` (TCC's base networks, stride 16: the
    first as Keras builds it, the second as torchvision does); or the name of any model of timm"""
    patch_size: Annotated[int, Field(ge=2)] = 16
    """side of a ViT's patch in pixels (ViT names only)"""
    image_size: Annotated[int, Field(ge=16)] = 224
    """side in pixels for which a ViT's position embeddings are made (ViT names only)"""
    depth: Positive | None = None
    """number of a ViT's blocks; null: as the name says"""
    width: Positive | None = None
    """a ViT's embedding width; null: as the name says"""
    heads: Positive | None = None
    """a ViT's attention heads; null: as the name says"""
    drop_path: Probability = 0.0
    """stochastic depth of the last block (rises linearly from 0)"""
    padding: Literal["reflect", "zeros"] = "reflect"
    """what lies around the maps of `resnet18_s8` and `resnet50_s8`: their reflection, or zeros, as
    in torchvision (these names only)"""
    weights: str | None = None
    """a path, an http(s) address, `package:<import name>/<file inside it>`, `timm:<model name>`, or
    `run:<name>` for the encoder of another run of this configuration;
    published checkpoints of DINO, DoRA, TimeT, SMTC, CRW, torchvision's ResNets and Keras's
    ResNet50V2 (`.h5`) are read as they are; null: fresh weights"""
    weights_part: str | None = None
    """which network of a checkpoint that holds several: `teacher`, `student`, or another word of
    the names above its tensors, such as `momentum_encoder`; null: as its authors do"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of the weights file"""
    position_interpolation: Literal["dino", "timm"] = "dino"
    """how a ViT's position embeddings reach other image sizes: as DINO does (scale factors with 0.1
    added), or as timm does (exact size, antialiased)"""


class TrainingConfig(Strict):
    """What the training loop does; a method gives its own defaults by a subclass."""

    epochs: Positive = 100
    """passes over all clips"""
    max_steps: Positive | None = None
    """stop after this many optimiser steps, schedules laid over them; null: no limit"""
    batch_size: Positive = 64
    """clips in one optimiser step, over all processes"""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """peak learning rate; for a batch of 256 clips where `scale_learning_rate` is on"""
    scale_learning_rate: bool = True
    """scale the peak learning rate linearly with batch_size: times batch_size / 256"""
    schedule: Literal["cosine", "step", "exponential", "linear", "constant"] = "cosine"
    """how the learning rate falls from its peak: as a cosine; in steps at `milestones` and
    `milestone_steps`; by `gamma` each `decay_steps` (`exponential`); linearly to 0 at the end; or
    not at all (`constant`)"""
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    """learning rate at the end of the cosine, not scaled"""
    milestones: list[Positive] = []
    """epochs after which the learning rate is multiplied by `gamma` (`schedule: step`)"""
    milestone_steps: list[Positive] = []
    """the same in optimiser steps, besides the epochs"""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """factor on the learning rate at each milestone (`step`), or each `decay_steps`
    (`exponential`)"""
    decay_steps: Positive = 1000
    """optimiser steps from one factor `gamma` to the next (`schedule: exponential`)"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    """epochs of linear warm-up from 0"""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """optimiser steps of the warm-up, instead of `warmup_epochs`; null: those epochs"""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """share of the learning rate with which the warm-up begins, as a factor on the schedule, which
    falls under it (`step` and `linear` only); null: a warm-up from 0 to the peak, then the
    schedule"""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    """adamw, adam: betas 0.9, 0.999 (adam: the weight decay is part of the gradient); sgd: momentum
    0.9; lars: momentum 0.9, trust coefficient 0.001"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """added to the denominator of adam and adamw"""
    epsilon_first: bool = False
    """add it before the denominator's bias correction, as TensorFlow does; false: after it, as
    torch does"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.04
    """weight decay at the start of the cosine"""
    weight_decay_end: Annotated[float, Field(ge=0)] = 0.4
    """weight decay at the end of the cosine"""
    clip_grad: Annotated[float, Field(ge=0)] = 3.0
    """largest norm of a gradient; 0: no clipping"""
    clip_mode: Literal["parameter", "global"] = "parameter"
    """the norm of each parameter tensor alone, or of all together"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """arithmetic of the networks, fp16 with a scaled loss; losses are always in fp32"""
    compile: Literal["off", "default"] = "off"
    """`default`: the networks' repeated blocks go through torch.compile (needs a C++ compiler)"""
    activation_checkpointing: Literal["off", "cheap", "full"] = "off"
    """what of the networks' blocks the backward pass computes again: `cheap`: all but products and
    attention (a third less memory for a twentieth more time), `full`: everything (least memory, a
    third more time)"""
    micro_batch_size: Positive | None = None
    """most clips that one process computes at once; the rest of its share of the batch follows by
    gradient accumulation; null: all at once"""
    augment: Literal["worker", "device"] = "worker"
    """where colours are changed: by the loader's workers with PIL, or in batches on the device"""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 15.0
    """minutes between checkpoints, besides one at each epoch's end"""
    keep_checkpoints: Positive = 2
    """how many of the newest checkpoints stay"""

    @model_validator(mode="after")
    def _factor_of_something(self) -> "TrainingConfig":
        if self.warmup_ratio is not None and self.schedule not in ("step", "linear"):
            raise ValueError(
                f"has a `warmup_ratio`, which the schedule `{self.schedule}` does not know; set "
                "it to null, or take `step` or `linear`"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        """Read `compile: off`: YAML turns a bare `off` into false."""
        if not isinstance(value, dict):
            return value
        switches = ("compile", "activation_checkpointing")
        return {key: "off" if key in switches and x is False else x for key, x in value.items()}


class Validation(Strict):
    """An evaluation between epochs; changes nothing of the training."""

    evaluation: Name
    """name of an evaluation of `evaluations:`; one that reads embeddings has them computed first"""
    every: Positive = 4
    """epochs from one to the next; the first is before the training, the last after it"""
    every_steps: Positive | None = None
    """optimiser steps from one to the next, instead of `every`; null: those epochs"""
    metric: str | None = None
    """metric whose best value decides which encoder is kept as `<run>/best`: the largest, but of
    losses, errors, costs and decays the smallest; null: none is"""


class RunConfig(Strict):
    """What every run has; the method's own keys stand beside these."""

    method: str
    """name of a method (`timewalk methods`)"""
    dataset: Name | None = None
    """name of the training set, of `datasets:`; null only for methods that do not train"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of weights, order, augmentation and everything else drawn"""
    encoder: EncoderConfig = EncoderConfig()
    """the image encoder"""


class EvaluationConfig(Strict):
    """What every evaluation has; its own keys stand beside these."""

    kind: str
    """name of an evaluation (`timewalk evaluations`)"""
    dataset: Name
    """name of the labelled set, of `labelled:`"""
    runs: Names | None = None
    """only these runs are evaluated when all results are asked for; null: every run"""
