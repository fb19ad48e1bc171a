"""The keys of the runs that learn from the phases of actions: `tcc`, `sal`, `tcn`, `tcc_sal_tcn`,
`classification`. Source: TCC's released code; after each key the name it was published under."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from timewalk.config import EncoderConfig, Positive, Probability, TrainingConfig
from timewalk.config.base import Strict
from timewalk.encoders.base import VIT_SHAPES, vit_shape
from timewalk.encoders.freezing import TrainBase
from timewalk.methods.base import TrainedRunConfig

Natural = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Range = tuple[Weight, Weight]
ConvLayer = tuple[Positive, Positive, bool]
DenseLayer = tuple[Positive, bool]


CONV_ONLY = {"flatten", "fc_layers", "base_dropout_spatial", "fc_dropout"}
"""keys of an embedder that one of kind `convgru` does not have"""


class FrameEncoder(EncoderConfig):
    """The base network, whose map of each frame is embedded; by default the published one."""

    name: str = "resnet50v2_conv4c"
    """`resnet50v2_conv4c` (published), `resnet50_conv4c`, `vgg_m`, or any other encoder
    (`MODEL.BASE_MODEL.NETWORK` and `.LAYER`)"""


class EmbedderKeys(Strict):
    """What makes a frame's embedding of the maps of the frame and its context: TCC's embedder."""

    kind: Literal["conv", "convgru"] = "conv"
    """`conv`: convolutions over space and context; `convgru`: over space, then a GRU over the
    frames of the video, without context (`MODEL.EMBEDDER_TYPE`)"""
    size: Positive = 128
    """length of an embedding (`EMBEDDING_SIZE`)"""
    layers: Annotated[list[ConvLayer], Field(min_length=1)] = [(512, 3, True), (512, 3, True)]
    """convolutions: channels, side of the kernel, whether a ReLU follows (`CONV_LAYERS`, their
    channels times `CAPACITY_SCALAR`)"""
    batch_norm: bool = True
    """batch normalisation after each convolution (`USE_BN`)"""
    flatten: Literal["max", "avg", "flatten"] = "max"
    """how a map becomes a vector: largest or mean value of each channel, or all values
    (`FLATTEN_METHOD`; `conv` only)"""
    fc_layers: list[DenseLayer] = [(512, True), (512, True)]
    """dense layers: outputs, whether a ReLU follows (`FC_LAYERS`, times `CAPACITY_SCALAR`; `conv`
    only)"""
    gru: list[Positive] = [128]
    """widths of the GRU's layers (`GRU_LAYERS`; `convgru` only)"""
    base_dropout: Rate = 0.0
    """share of the base network's values that are dropped (`BASE_DROPOUT_RATE`)"""
    base_dropout_spatial: bool = False
    """drop whole channels of a frame and its context (`BASE_DROPOUT_SPATIAL`; `conv` only)"""
    fc_dropout: Rate = 0.1
    """share of values that are dropped before each dense layer (`FC_DROPOUT_RATE`; `conv` only)"""
    normalise: bool = False
    """bring embeddings to length 1 (`L2_NORMALIZE`)"""


class TCCKeys(Strict):
    """The alignment loss (TCC, sections 3.2 and 3.3)."""

    loss_type: Literal[
        "classification", "regression_mse", "regression_mse_var", "regression_huber"
    ] = "regression_mse_var"
    """what is asked of the frame that a cycle ends at: its number as a class, or how far it is from
    the start: squared, squared over the variance, Huber's (`LOSS_TYPE`)"""
    similarity_type: Literal["l2", "cosine"] = "l2"
    """of embeddings: minus their squared distance, or their product (`SIMILARITY_TYPE`)"""
    temperature: Above = 0.1
    """temperature of both softmaxes (`SOFTMAX_TEMPERATURE`)"""
    label_smoothing: Probability = 0.1
    """share of the target that is spread over all frames (`loss_type: classification`;
    `LABEL_SMOOTHING`)"""
    variance_lambda: Weight = 0.001
    """weight of the log variance (`regression_mse_var`; `VARIANCE_LAMBDA`)"""
    huber_delta: Above = 0.1
    """difference from which on the loss is linear (`regression_huber`; `HUBER_DELTA`)"""
    normalize_indices: bool = True
    """count frames as shares of their videos' lengths (`NORMALIZE_INDICES`)"""
    normalize_embeddings: bool = False
    """bring embeddings to length 1 before they are compared (an argument of the library)"""
    stochastic_matching: bool = False
    """random cycles through `cycle_length` videos, instead of all pairs (`STOCHASTIC_MATCHING`)"""
    fraction: Above = 1.0
    """random cycles for each sampled frame (`FRACTION`)"""
    cycle_length: Annotated[int, Field(ge=2)] = 2
    """videos of a random cycle (`CYCLE_LENGTH`)"""


class SaLKeys(Strict):
    """Shuffle and learn (SaL), in the form of TCC's released code."""

    samples: Positive = 8
    """triplets of frames per video (`NUM_SAMPLES`)"""
    shuffle_fraction: Probability = 0.75
    """share of the triplets that are out of order (`SHUFFLE_FRACTION`)"""
    layers: list[DenseLayer] = [(128, True), (64, True), (2, False)]
    """dense layers: outputs, whether a ReLU follows; the last has 2 outputs (`FC_LAYERS`)"""
    dropout: Rate = 0.0
    """share of values that are dropped before each layer (`DROPOUT_RATE`)"""
    label_smoothing: Probability = 0.0
    """share of the target that is spread over both answers (`LABEL_SMOOTHING`)"""

    @model_validator(mode="after")
    def _answers(self) -> Self:
        if not self.layers or self.layers[-1] != (2, False):
            raise ValueError(
                "sal.layers must end with 2 outputs without ReLU, for in order and shuffled; make "
                "the last one [2, false]"
            )
        return self


class TCNKeys(Strict):
    """Time-contrastive networks (TCN), in the form of TCC's released code."""

    positive_window: Positive = 5
    """a frame's positive is 1 to this many frames before it (`POSITIVE_WINDOW`)"""
    reg_lambda: Weight = 0.002
    """weight of the embeddings' squared lengths (`REG_LAMBDA`)"""


class AugmentationKeys(Strict):
    """One draw for all frames of a clip, as in TCC's released code."""

    flip: bool = True
    """mirror half of the clips (`RANDOM_FLIP`)"""
    crop: bool = False
    """cut out a random square of 0.8 to 1 of the shorter side (`RANDOM_CROP`)"""
    brightness: Probability = 32 / 255
    """largest shift of brightness, of the range 0..1; 0: none (`BRIGHTNESS_MAX_DELTA`)"""
    contrast: Range | None = (0.5, 1.5)
    """range of the factor on the contrast; null: none (`CONTRAST_LOWER`, `_UPPER`)"""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """largest shift of the hue, in turns of the colour circle; 0: none; 0.2 is published where it
    is on (`HUE_MAX_DELTA`)"""
    saturation: Range | None = None
    """range of the factor on the saturation; null: none; [0.5, 1.5] is published where it is on
    (`SATURATION_LOWER`, `_UPPER`)"""


class PhaseTraining(TrainingConfig):
    """Training as published: Adam by number of steps, at a fixed learning rate."""

    epochs: Positive = 1_000_000
    """passes over the videos, each with one clip of every video; as many as it takes for
    `max_steps`"""
    max_steps: Positive | None = 150_000
    """stop after this many optimiser steps; null: no limit (`TRAIN.MAX_ITERS`)"""
    batch_size: Positive = 2
    """clips, each of a video, in one optimiser step, over all processes; the paper's is 4
    (`TRAIN.BATCH_SIZE`, there of each process)"""
    learning_rate: Above = 1e-4
    """learning rate (`OPTIMIZER.LR.INITIAL_LR`)"""
    scale_learning_rate: bool = False
    """scale it linearly with batch_size: times batch_size / 256"""
    schedule: Literal["cosine", "step", "exponential", "linear", "constant"] = "constant"
    """how the learning rate falls (`DECAY_TYPE`): not at all (`fixed`); by `gamma` each
    `decay_steps` (`exponential`: `exp_decay`); in steps (`step`: `manual`); linearly to 0 at the
    end (`linear`: `poly`); as a cosine"""
    milestone_steps: list[Positive] = []
    """optimiser steps at which the learning rate is multiplied by `gamma` (`schedule: step`); given
    neither these nor `milestones`: 5000 and 10000 (`MANUAL_LR_STEP_BOUNDARIES`)"""
    gamma: Share = 0.1
    """factor on the learning rate at each milestone (`step`: `MANUAL_LR_DECAY_RATE`), or each
    `decay_steps`; not given with `schedule: exponential`: 0.97 (`EXP_DECAY_RATE`)"""
    decay_steps: Positive = 1000
    """optimiser steps from one factor `gamma` to the next (`schedule: exponential`;
    `EXP_DECAY_STEPS`)"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """epochs of linear warm-up from 0"""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adam"
    """adam, adamw: betas 0.9, 0.999; sgd: momentum 0.9; lars: momentum 0.9, trust coefficient 0.001
    (`OPTIMIZER.TYPE`)"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-7
    """added to the denominator of adam and adamw"""
    epsilon_first: bool = True
    """add it before the denominator's bias correction, as TensorFlow does; false: after it, as
    torch does"""
    weight_decay: Weight = 0.0
    """weight decay at the start of its cosine; the published term is `l2_weight`"""
    weight_decay_end: Weight = 0.0
    """weight decay at the end of its cosine"""
    clip_grad: Weight = 0.0
    """largest norm of a gradient; 0: no clipping"""
    augment: Literal["device"] = "device"
    """colours are changed in batches on the device here"""

    @model_validator(mode="before")
    @classmethod
    def _published(cls, keys: Any) -> Any:
        published: dict[str, Any] = {}
        if isinstance(keys, dict) and keys.get("schedule") == "exponential":
            published = {"gamma": 0.97}
        if isinstance(keys, dict) and keys.get("schedule") == "step" and "milestones" not in keys:
            published = {"milestone_steps": [5000, 10000]}
        return published | keys if published else keys


class PhasesConfig(TrainedRunConfig):
    """Keys that the five methods share; the defaults are those of the published code."""

    encoder: FrameEncoder = FrameEncoder()
    """the base network; published weights are ImageNet's, so give its `weights`"""
    embedder: EmbedderKeys = EmbedderKeys()
    """from maps to embeddings"""
    training: PhaseTraining = PhaseTraining()
    """the training loop"""
    train_base: TrainBase = "only_bn"
    """what of the base network learns: nothing, its statistics held too; gain and offset of its
    normalisation layers; everything (`MODEL.TRAIN_BASE`)"""
    batch_norm_momentum: Share | None = None
    """share of a batch in the moving statistics of all batch normalisations, which evaluations use;
    short trainings need a large one. null: each network's own (0.01 in the published ones)"""
    l2_weight: Weight = 1e-5
    """weight of the squared kernels and biases of embedder, heads and `vgg_m`: of their sums the
    mean over tensors (`MODEL.L2_REG_WEIGHT`)"""
    image_size: Annotated[int, Field(ge=16)] = 224
    """side of a frame in pixels; frames are stretched to squares (`IMAGE_SIZE`)"""
    augmentation: AugmentationKeys = AugmentationKeys()
    """changes of the clips"""
    frames_per_clip: Annotated[int, Field(ge=2)] = 20
    """frames sampled of a video (`TRAIN.NUM_FRAMES`)"""
    sampling: Literal["offset_uniform", "stride"] = "offset_uniform"
    """which frames: any, in order, or `stride` frames apart from a random start
    (`DATA.SAMPLING_STRATEGY`)"""
    offset: Natural = 1
    """first frame that may be sampled (`offset_uniform`; `DATA.RANDOM_OFFSET`)"""
    stride: Positive = 16
    """frames of the data set from one sampled frame to the next (`stride`; `DATA.STRIDE`)"""
    context: Positive = 2
    """frames embedded jointly: the sampled one and those before it (`DATA.NUM_STEPS`)"""
    context_step: Positive = 15
    """frames of the data set from one of them to the next (`DATA.FRAME_STRIDE`); the paper's is 9
    for Pouring"""
    dataset_fraction: Share = 1.0
    """share of the training videos of each action that is used, from the first
    (`DATA.PER_DATASET_FRACTION`)"""
    one_action_a_batch: bool = True
    """all videos of a batch show the same action, each action as often; false: any videos"""
    compat: Literal["intended", "published"] = "intended"
    """`published` repeats the defects of the published code, see docs/deviations.md"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoder.name in VIT_SHAPES:
            self._check_vit()
        if self.embedder.kind == "convgru" and self.context != 1:
            raise ValueError(
                f"context is {self.context}, but an embedder of kind convgru takes the frame "
                "alone; set context to 1"
            )
        if self.embedder.kind == "convgru" and self.embedder.gru[-1:] != [self.embedder.size]:
            raise ValueError(
                f"embedder.gru is {self.embedder.gru}, but its last layer gives the embedding; end "
                f"it with embedder.size {self.embedder.size}"
            )
        if self.embedder.kind == "convgru":
            meaningless = sorted(CONV_ONLY & self.embedder.model_fields_set)
            if meaningless:
                raise ValueError(
                    f"embedder.{meaningless[0]} means nothing for an embedder of kind convgru; "
                    "leave it out"
                )
        if self.training.micro_batch_size is not None:
            raise ValueError(
                "training.micro_batch_size is set, but the videos of a batch are compared with "
                "each other; leave it out"
            )
        for key in ("contrast", "saturation"):
            span = getattr(self.augmentation, key)
            if span is not None and span[0] > span[1]:
                raise ValueError(
                    f"augmentation.{key} is {list(span)}; put the smaller number first"
                )
        return self

    def _check_vit(self) -> None:
        width, _, heads = vit_shape(self.encoder)
        if width % heads:
            raise ValueError(f"encoder.width {width} is no multiple of encoder.heads {heads}")
        if self.image_size % self.encoder.patch_size:
            raise ValueError(
                f"image_size is {self.image_size}; make it a multiple of encoder.patch_size "
                f"{self.encoder.patch_size}"
            )

    def objective(self) -> dict[str, Any]:
        """Return the spec of the run's objective (``ops.objectives.build_objective``)."""
        raise TypeError(f"{type(self).__name__} has no objective of its own")

    def positive_window(self) -> int | None:
        """Return within how many frames before a frame its positive lies; None: it has none."""
        return None

    def least_videos(self, least: int) -> None:
        """Refuse a batch that is too small for the objective."""
        if self.training.batch_size < least:
            raise ValueError(
                f"training.batch_size is {self.training.batch_size}, but {self.method} compares "
                f"{least} videos with each other; make it {least} or more"
            )

    def check_tcc(self, keys: TCCKeys) -> None:
        """Refuse a batch in which no cycle can be walked."""
        self.least_videos(keys.cycle_length if keys.stochastic_matching else 2)
        sampled = self.training.batch_size * self.frames_per_clip
        if keys.stochastic_matching and int(sampled * keys.fraction) < 1:
            raise ValueError(
                f"tcc.fraction is {keys.fraction:g}, which makes no cycle of the {sampled} sampled "
                f"frames of a batch; set it to {1 / sampled:.3g} or more"
            )

    def check_sal(self) -> None:
        """Refuse clips of which no triplet can be made."""
        if self.frames_per_clip < 5:
            raise ValueError(
                f"frames_per_clip is {self.frames_per_clip}, but a shuffled triplet is drawn from "
                "5 frames; set 5 or more"
            )

    def tcc_spec(self, keys: TCCKeys) -> dict[str, Any]:
        """Return the settings of the alignment loss."""
        return {**keys.model_dump(), "published_cycles": self.compat == "published"}

    def tcn_spec(self, keys: TCNKeys) -> dict[str, Any]:
        """Return the settings of the time-contrastive loss alone."""
        published = self.compat == "published"
        return {"reg_lambda": keys.reg_lambda, "published_order": published}


def miniature(method: str) -> dict[str, Any]:
    """Return the keys of a run that takes seconds on a CPU, for tests."""
    tiny = {"name": "vit_tiny", "width": 24, "depth": 1, "heads": 4, "patch_size": 8}
    embedder = {"size": 8, "layers": [[16, 3, True]], "fc_layers": [[16, True]]}
    return {
        "method": method,
        "dataset": "miniature",
        "encoder": {**tiny, "image_size": 32},
        "embedder": embedder,
        "training": {"batch_size": 2, "epochs": 2, "max_steps": None},
        "train_base": "train_all",
        "image_size": 32,
        "frames_per_clip": 6,
        "context_step": 1,
    }
