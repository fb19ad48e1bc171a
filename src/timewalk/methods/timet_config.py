"""The keys of a run of TimeT. Source: TimeT and its released code."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from timewalk.config import EncoderConfig, Positive, Probability, TrainingConfig
from timewalk.encoders.base import VIT_SHAPES, vit_shape
from timewalk.methods.base import TrainedRunConfig

Temperature = Annotated[float, Field(gt=0)]
Natural = Annotated[int, Field(ge=0, strict=True)]

SMALLEST_MASK = 4
"""rows and columns of patches that the blur of an attention mask needs"""


class TimeTTraining(TrainingConfig):
    """Training as published: AdamW at a rate that falls to 0, without warm-up and clipping."""

    epochs: Positive = 100
    """passes over the videos, each with `clips_per_video` clips of every video"""
    batch_size: Positive = 128
    """clips in one optimiser step, over all processes; their patches are assigned together"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """learning rate of prototypes and head at the start; the encoder's is `backbone_lr_scale`
    times it"""
    scale_learning_rate: bool = False
    """scale it linearly with batch_size: times batch_size / 256"""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """learning rate at the end of the cosine"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """epochs of linear warm-up from 0"""
    clip_grad: Annotated[float, Field(ge=0)] = 0.0
    """largest norm of a gradient; 0: no clipping"""
    augment: Literal["worker"] = "worker"
    """crops and colours are the loader's workers' matter here"""


class TimeTConfig(TrainedRunConfig):
    """Keys of a run of `timet`; where published code and paper differ, the defaults are the
    paper's."""

    encoder: EncoderConfig = EncoderConfig()
    """the image encoder; TimeT tunes a pretrained one, so give its `weights`"""
    training: TimeTTraining = TimeTTraining()
    """the training loop"""
    image_size: Annotated[int, Field(ge=16)] = 224
    """side of a view in pixels, a multiple of a ViT's patch"""
    frames_per_clip: Annotated[int, Field(ge=2)] = 4
    """frames in a clip, 2 or more; labels go from the first to the last"""
    sampling: Literal["uniform", "dense", "regular", "full"] = "uniform"
    """which frames of a video make a clip, drawn anew each time: `uniform`: any, in order;
    `dense`: one after the other; `regular`: `step_between_frames` apart; `full`: all (batches of
    one clip only)"""
    step_between_frames: Positive = 3
    """frames of the data set from one frame of a clip to the next; less in a video that is too
    short for it (`sampling: regular` only)"""
    clips_per_video: Positive = 1
    """clips of each video in an epoch"""
    prototypes: Annotated[int, Field(ge=2)] = 200
    """number of prototypes: clusters of patches"""
    use_head: bool = True
    """cluster the output of a head; false: that of the encoder, which then does not learn"""
    head_widths: Annotated[list[Positive], Field(min_length=1)] = [1024, 1024, 512, 256]
    """widths of the head's linear layers, GELU between; the last is that of the prototypes"""
    trainable_blocks: Natural | Literal["all"] = 2
    """last blocks of a ViT that learn; `all`: the whole encoder (any network), 0: nothing of it"""
    backbone_lr_scale: Annotated[float, Field(ge=0)] = 0.1
    """factor on the learning rate for the encoder"""
    context: Natural = 7
    """earlier frames that labels are forwarded from, beside the first"""
    radius: Natural = 6
    """largest difference of rows and of columns, in patches, between a patch and those it takes
    labels from; 0: no limit"""
    top_k: Positive = 5
    """patches that a patch takes labels from"""
    forward_temperature: Temperature = 0.1
    """temperature of the softmax over their similarities"""
    epsilon: Temperature = 0.05
    """entropic regularisation of the assignment; smaller: sharper"""
    sinkhorn_iterations: Positive = 10
    """iterations of Sinkhorn's algorithm"""
    sinkhorn_scope: Literal["first_frame", "all_frames"] = "first_frame"
    """whose patches the assignment balances: those of the clips' first frames, or of all frames"""
    score_temperature: Temperature = 0.1
    """temperature of the scores that learn"""
    queue: bool = False
    """balance the assignment over patches of earlier batches too, once the queue is full"""
    queue_size: Positive = 16384
    """patches in the queue, over all processes (`queue: true`); each clip brings ten"""
    teacher: bool = False
    """assign by a moving average of blocks, head and prototypes instead of themselves"""
    ema_momentum: Probability = 0.995
    """momentum of that average at the start; a cosine takes it to 1 (`teacher: true`)"""
    attention_mask: bool = False
    """leave out patches that the class token does not look at (ViTs)"""
    compat: Literal["intended", "published"] = "intended"
    """`published` repeats the defects of the published code, see docs/deviations.md"""

    @model_validator(mode="after")
    def _fits(self) -> "TimeTConfig":
        name, blocks = self.encoder.name, self.trainable_blocks
        if self.encoder.drop_path > 0:
            raise ValueError(
                f"encoder.drop_path is {self.encoder.drop_path}, but timet compares the features "
                "of whole networks; leave it out"
            )
        if self.queue and self.attention_mask:
            raise ValueError(
                "queue and attention_mask do not go together: patches that are left out would "
                "stand in the queue as zeros; drop one of them"
            )
        if self.sampling == "full" and self.training.batch_size > 1:
            raise ValueError(
                "`sampling: full` takes clips of different lengths, which make no batch; set "
                "training.batch_size to 1"
            )
        if name in VIT_SHAPES:
            self._check_vit()
        elif blocks not in (0, "all"):
            raise ValueError(
                f"trainable_blocks is {blocks}, but '{name}' is no ViT of this project and has "
                "none; set it to all or 0"
            )
        elif self.attention_mask:
            raise ValueError(
                f"attention_mask needs a class token, and '{name}' has none; leave it out"
            )
        return self

    def _check_vit(self) -> None:
        patch, depth = self.encoder.patch_size, vit_shape(self.encoder)[1]
        if self.image_size % patch:
            raise ValueError(
                f"image_size is {self.image_size}; make it a multiple of encoder.patch_size {patch}"
            )
        if isinstance(self.trainable_blocks, int) and self.trainable_blocks > depth:
            raise ValueError(
                f"trainable_blocks is {self.trainable_blocks}, but the encoder has {depth} blocks; "
                "lower it"
            )
        if self.attention_mask and self.image_size // patch < SMALLEST_MASK:
            raise ValueError(
                f"attention_mask needs {SMALLEST_MASK} x {SMALLEST_MASK} patches; raise image_size "
                f"to {SMALLEST_MASK * patch} or more"
            )

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        tiny = {"name": "vit_tiny", "width": 24, "depth": 3, "heads": 4, "patch_size": 8}
        return {
            "method": "timet",
            "dataset": "miniature",
            "encoder": {**tiny, "image_size": 32},
            "training": {"batch_size": 2, "epochs": 2},
            "image_size": 32,
            "frames_per_clip": 3,
            "clips_per_video": 8,
            "prototypes": 12,
            "head_widths": [32, 16],
            "radius": 2,
            "queue": True,
            "queue_size": 64,
            "teacher": True,
        }
