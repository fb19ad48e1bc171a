"""The keys of a run of SMTC. Source: SMTC's released code."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from timewalk.config import Positive, Probability, TrainingConfig
from timewalk.encoders.base import VIT_SHAPES, vit_shape
from timewalk.methods.base import TrainedRunConfig
from timewalk.methods.distillation import StudentEncoder

Natural = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class SMTCTraining(TrainingConfig):
    """Training as published: AdamW by number of steps, without warm-up and clipping."""

    epochs: Positive = 10_000
    """passes over the videos, each with `clips_per_video` clips of every video; as many as it takes
    for `max_steps`"""
    max_steps: Positive | None = 10_000
    """stop after this many optimiser steps, schedules laid over them; null: no limit"""
    batch_size: Positive = 128
    """clips in one optimiser step, over all processes"""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """learning rate of the slots at the start; the encoder's is `backbone_lr_scale` times it"""
    scale_learning_rate: bool = False
    """scale it linearly with batch_size: times batch_size / 256"""
    min_learning_rate: Annotated[float, Field(ge=0)] = 2e-6
    """learning rate at the end of the cosine; published is a tenth of `learning_rate`, so change
    both together"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """epochs of linear warm-up from 0"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """weight decay at the start of the cosine"""
    weight_decay_end: Annotated[float, Field(ge=0)] = 0.1
    """weight decay at the end of the cosine"""
    clip_grad: Annotated[float, Field(ge=0)] = 0.0
    """largest norm of a gradient; 0: no clipping"""
    augment: Literal["worker"] = "worker"
    """colours are the loader's workers' matter here"""


class SMTCConfig(TrainedRunConfig):
    """Keys of a run of `smtc`; the defaults are those of the published command line and, in
    `training`, of the released script."""

    encoder: StudentEncoder = StudentEncoder()
    """the image encoder, one of the ViTs; SMTC slowly tunes a pretrained one, so give its
    `weights`"""
    training: SMTCTraining = SMTCTraining()
    """the training loop"""
    image_size: Annotated[int, Field(ge=16)] = 256
    """side of a view in pixels, a multiple of the ViT's patch; frames are stretched to squares"""
    frames_per_clip: Annotated[int, Field(ge=2)] = 4
    """frames in a clip, 2 or more"""
    step_between_frames: Positive = 4
    """frames of the data set from one frame of a clip to the next; less in a video that is too
    short for it"""
    clips_per_video: Positive = 4
    """clips of each video in an epoch"""
    slots: Annotated[int, Field(ge=2)] = 16
    """semantics: slots that a frame's patches are divided among"""
    instances: Positive = 4
    """instances of each semantic: slots that its area is divided among"""
    iterations: Positive = 3
    """iterations of slot attention, in both stages; the last one is differentiated"""
    frozen_steps: Natural = 0
    """optimiser steps at the start in which the encoder does not learn"""
    backbone_lr_scale: Annotated[float, Field(ge=0)] = 0.01
    """factor on the learning rate for the encoder after them"""
    second_stage_mask: Literal["logit", "prob", "soft"] = "logit"
    """a semantic's area, where its instances are looked for: `logit`: patches whose score for it is
    above `mask_threshold`; `prob`: whose probability is; `soft`: all, weighted by the
    probability"""
    mask_threshold: float = 0.3
    """threshold of `second_stage_mask`: of a score, or of a probability (`soft` has none)"""
    area_probability: Probability = 0.3
    """probability above which a patch counts to a semantic's area when instances are selected"""
    min_area: Probability = 0.2
    """share of a frame's patches that an instance's semantic must cover more of"""
    min_similarity: Cosine = 0.5
    """cosine with its semantic that an instance must have more of"""
    consistency_weight: Weight = 1.0
    """weight of the semantics' consistency in time"""
    separation_weight: Weight = 1.0
    """weight of the semantics' separation within a frame"""
    instance_weight: Weight = 1.0
    """weight of the instances' consistency in time"""
    teacher_momentum: Probability = 0.999
    """momentum of the teacher's moving average, constant"""
    teacher_backbone: Literal["frozen", "averaged"] = "frozen"
    """the teacher's encoder: as at the start of the training for ever, or a moving average too"""
    compat: Literal["intended", "published"] = "intended"
    """`published` repeats the defects of the published code, see docs/deviations.md"""

    @model_validator(mode="after")
    def _fits(self) -> "SMTCConfig":
        if self.encoder.name not in VIT_SHAPES:
            raise ValueError(
                f"encoder.name is '{self.encoder.name}', but smtc reads the keys of a ViT's last "
                f"block; take one of {', '.join(VIT_SHAPES)}"
            )
        width, depth, heads = vit_shape(self.encoder)
        if depth < 2:
            raise ValueError(
                "encoder.depth is 1, but of the last block smtc uses the keys alone; take 2 or more"
            )
        if width % heads:
            raise ValueError(f"encoder.width {width} is no multiple of encoder.heads {heads}")
        patch = self.encoder.patch_size
        if self.image_size % patch:
            raise ValueError(
                f"image_size is {self.image_size}; make it a multiple of encoder.patch_size {patch}"
            )
        if self.second_stage_mask == "prob" and not 0 <= self.mask_threshold < 1:
            raise ValueError(
                f"mask_threshold is {self.mask_threshold}, but with `second_stage_mask: prob` it "
                "is compared with probabilities; take 0 or more and less than 1"
            )
        self._check_rates()
        return self

    def _check_rates(self) -> None:
        training = self.training
        if training.schedule != "cosine" or training.scale_learning_rate:
            return
        if training.min_learning_rate > training.learning_rate:
            raise ValueError(
                f"training.min_learning_rate {training.min_learning_rate} is above "
                f"training.learning_rate {training.learning_rate}; lower it, say to a tenth of that"
            )

    @classmethod
    def miniature(cls) -> dict[str, Any]:
        """Return the keys of a run that takes seconds on a CPU, for tests."""
        tiny = {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 4, "patch_size": 8}
        return {
            "method": "smtc",
            "dataset": "miniature",
            "encoder": {**tiny, "image_size": 32},
            "training": {"batch_size": 2, "epochs": 2},
            "image_size": 32,
            "frames_per_clip": 3,
            "step_between_frames": 2,
            "clips_per_video": 8,
            "slots": 3,
            "instances": 2,
            "teacher_backbone": "averaged",
        }
