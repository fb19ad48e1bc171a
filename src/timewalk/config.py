"""The configuration as pydantic models: the one source of defaults, ranges, schema and docs.

A configuration file is a suite: videos, data sets made of them, labelled sets, runs and
evaluations, each under a name of the user's choice. A run's own keys belong to its method
(``Config`` in ``methods/<method>.py``), an evaluation's to its file in ``evaluation/``; what all
of them share is here. ``timewalk.suite`` puts the two together.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from timewalk.errors import UserError, nearest

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Positive = Annotated[int, Field(ge=1)]
Names = list[Name]
"""a name of its own, since a key may be called `list`"""
Probability = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model without unknown keys and without NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class VideoConfig(Strict):
    """Where one video comes from and which part of it counts."""

    source: str
    """YouTube or other http(s) address, `package:<import name>/<file inside it>`, or a path"""
    mirror: str | None = None
    """address tried when the source cannot be reached"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of the file; a difference is an error"""
    duration_s: Annotated[float, Field(gt=0)] | None = None
    """expected duration in seconds; more than `download.duration_tolerance_s` off is an error"""
    licence: str = "unknown"
    """licence of the video, for the record"""
    start_s: Annotated[float, Field(ge=0)] = 0.0
    """first second of the content, for the frames stage"""
    end_s: Annotated[float, Field(gt=0)] | None = None
    """last second of the content, for the frames stage; null: to the end"""
    max_blank_share: Probability | None = None
    """largest allowed share of near-constant frames; null: `download.max_blank_share`"""


class DownloadConfig(Strict):
    """How videos are fetched and checked."""

    max_height: Positive = 2160
    """largest height in pixels that is asked of YouTube"""
    retries: Annotated[int, Field(ge=0)] = 20
    """how often a broken transfer is taken up again"""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """seconds without a byte after which a connection counts as broken"""
    cookies: str | None = None
    """path of a cookie file (Netscape format) for videos behind a sign-in; never logged"""
    duration_tolerance_s: Annotated[float, Field(ge=0)] = 1.0
    """allowed difference in seconds between the expected duration and the file's"""
    max_blank_share: Probability = 0.1
    """largest allowed share of near-constant (blank) frames among those sampled"""


class BlurConfig(Strict):
    """Face blurring. Faces only: no licence plates; misses happen."""

    what: Literal["faces", "off"] = "faces"
    """`faces`, or `off`"""
    where: Literal["video", "frames"] = "frames"
    """`video`: every frame of the video, kept as a blurred video; `frames`: only the frames that
    training reads, while they are extracted"""
    threshold: Probability = 0.2
    """detection score above which a box counts as a face"""
    mask_scale: Annotated[float, Field(ge=1)] = 1.3
    """the box grows by (mask_scale - 1) times its height (width) on each side"""
    shape: Literal["ellipse", "box"] = "ellipse"
    """what is covered: the ellipse inscribed in the enlarged box, or all of it"""
    method: Literal["blur", "solid", "mosaic"] = "blur"
    """a box filter of half the box's size, black, or tiles of `mosaic_size` pixels"""
    mosaic_size: Annotated[int, Field(ge=2)] = 20
    """side of a mosaic tile in pixels"""
    detection_width: Annotated[int, Field(ge=32)] = 640
    """width in pixels at which faces are looked for (rounded up to a multiple of 32)"""
    detection_height: Annotated[int, Field(ge=32)] = 360
    """height in pixels at which faces are looked for (rounded up to a multiple of 32)"""
    every: Positive = 1
    """detect on each n-th frame and hold the boxes between: more than 1 trades privacy for time"""
    crf: Annotated[int, Field(ge=0, le=51)] = 20
    """quality of the blurred video (x264's constant rate factor: smaller is better)"""
    preset: Literal["ultrafast", "veryfast", "fast", "medium", "slow"] = "veryfast"
    """speed of the blurred video's encoder"""
    keep_audio: bool = False
    """carry the audio streams over (off: training needs none, and voices are personal too)"""
    segment_s: Annotated[float, Field(gt=0)] = 60.0
    """length in seconds of the segments that workers share, cut at key frames"""
    backend: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """detector runtime; `auto`: ONNX Runtime, on a GPU where its CUDA provider is there; both find
    the same boxes"""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """Read `blur: off` and `blur: faces` (YAML turns a bare `off` into false)."""
        if value is False or value == "off":
            return {"what": "off"}
        if value is True or value == "faces":
            return {"what": "faces"}
        if isinstance(value, dict) and value.get("what") is False:
            return {**value, "what": "off"}
        return value


class FramesConfig(Strict):
    """Frame extraction."""

    fps: Annotated[float, Field(gt=0)] | None = None
    """frames a second; null: every frame of the video"""
    short_side: Annotated[int, Field(ge=16)] | None = 480
    """shorter side in pixels (never enlarged); null: as in the video"""
    quality: Annotated[int, Field(ge=2, le=31)] = 2
    """JPEG quality on ffmpeg's scale: 2 is best, 31 is worst"""


class DatasetConfig(Strict):
    """A training set: frames of some videos, the still images of a folder, or folders of images,
    each the frames of a video. Exactly one of `videos`, `images`, `folders` and `list`."""

    videos: Names = []
    """names of videos, of `videos:` or of the built-in table (`timewalk videos`)"""
    images: str | None = None
    """folder of images, sub-folders too, instead of videos: each image is a clip of one frame; the
    keys `frames` and `storage` have no meaning then, nor with `folders` or `list`"""
    folders: str | None = None
    """folder with folders of .jpg or .png images below it, at any depth: each is one video, its
    images are the frames"""
    list: str | None = None
    """text file with a line `<directory> <number of frames>` for each video; directories relative
    to the file's own folder, or absolute"""
    frames: FramesConfig = FramesConfig()
    """how frames are taken"""
    storage: Literal["tfrecord", "folder"] = "tfrecord"
    """how frames are kept for training"""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetConfig":
        given = [key for key in ("videos", "images", "folders", "list") if getattr(self, key)]
        if not given:
            raise ValueError(
                "name at least one of `videos`, or a folder of `images`, or one of `folders`, or a "
                "`list`"
            )
        if len(given) > 1:
            raise ValueError(
                f"has both `{given[0]}` and `{given[1]}`; keep one, make two data sets"
            )
        without = sorted({"frames", "storage"} & self.model_fields_set)
        if without and given != ["videos"]:
            raise ValueError(f"`{without[0]}` means nothing for `{given[0]}`; leave it out")
        return self


class _Labelled(Strict):
    resize: Positive = 256
    """shorter side in pixels before the crop (bicubic)"""
    crop: Positive = 224
    """side in pixels of the centre crop"""

    @model_validator(mode="after")
    def _crop_fits(self) -> "_Labelled":
        if self.crop > self.resize:
            raise ValueError(
                f"crop is {self.crop} but resize is {self.resize}; make resize >= crop"
            )
        return self


class FolderLabels(_Labelled):
    """Images as `<root>/<split>/<class>/*`; classes are numbered by sorted folder name."""

    kind: Literal["folder"]
    root: str
    """folder that holds the splits"""
    train: str = "train"
    """sub-folder of the split whose features are the neighbours"""
    test: str = "val"
    """sub-folder of the split that is scored"""


class ArrayLabels(_Labelled):
    """One `.npz` with `train_images`, `train_labels`, `test_images`, `test_labels`
    (N,H,W) or (N,H,W,3) uint8; or a folder of MNIST-style idx files, gzipped or not."""

    kind: Literal["arrays"]
    path: str
    """the `.npz` file, or the folder of idx files; `digits` is scikit-learn's own set"""


class ShotLabels(_Labelled):
    """Frames of a data set's videos, labelled by shot: the first half of each shot trains,
    the second tests. Near duplicates: a good score says little."""

    kind: Literal["shots"]
    dataset: Name
    """the data set whose frames are used"""
    cuts: dict[Name, list[Annotated[float, Field(gt=0)]]] = {}
    """per video the seconds at which a new shot begins; a video without an entry is one shot"""
    gap: Annotated[int, Field(ge=0)] = 0
    """frames left out between the two halves of a shot"""


class VideoLabels(Strict):
    """Videos with annotations, the other kind of labelled set beside images."""


class PublishedVideos(VideoLabels):
    """A published set of videos, in the layout that its authors give it."""

    root: str
    """folder of the published layout, or the folder above it; never written to but by `url`"""
    sequences: list[str] = []
    """only these sequences, in the order of the set's list; empty: all"""
    url: str | None = None
    """http(s) address of a zip or tar archive that is unpacked into `root` where the set is
    missing; `official`: its authors' address; null: nothing is fetched"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of the archive behind `url`; null: the known one of an `official` address, if any"""

    @model_validator(mode="after")
    def _digest_of_something(self) -> "PublishedVideos":
        if self.sha256 is not None and self.url is None:
            raise ValueError("has `sha256` but no `url` that it could belong to; leave it out")
        return self


class Davis2017(PublishedVideos):
    """DAVIS 2017: several objects a video, every frame annotated."""

    kind: Literal["davis2017"]
    subset: Literal["train", "val", "test-dev", "test-challenge"] = "val"
    """which list of `ImageSets/2017` (the unsupervised test sets: of `ImageSets/2019`)"""
    task: Literal["semi-supervised", "unsupervised"] = "semi-supervised"
    """masks of `Annotations`, or of `Annotations_unsupervised`"""
    resolution: Literal["480p", "Full-Resolution"] = "480p"
    """which size of frames and masks: the sub-folder's name"""


class Davis2016(PublishedVideos):
    """DAVIS 2016: one foreground a video; also read from the files of DAVIS 2017."""

    kind: Literal["davis2016"]
    subset: Literal["train", "val", "trainval"] = "val"
    """which list of `ImageSets/2016`, or of `ImageSets/<resolution>`"""
    resolution: Literal["480p", "1080p", "Full-Resolution"] = "480p"
    """which size of frames and masks: the sub-folder's name, 1080p in the set's own release"""


class YouTubeVOS(PublishedVideos):
    """YouTube-VOS: many objects with categories, each fifth frame annotated."""

    kind: Literal["youtube_vos"]
    subset: Literal["train", "valid", "test"] = "train"
    """sub-folder; `valid` and `test` have masks of first appearances only"""
    list_file: str | None = None
    """file with one sequence a line, for a split of one's own; null: all sequences of the subset"""


class SegTrackV2(PublishedVideos):
    """SegTrack v2: 14 short videos, one folder of masks an object; scored as one foreground."""

    kind: Literal["segtrack_v2"]


class FBMS59(PublishedVideos):
    """FBMS-59: videos with a few annotated frames each; scored as one foreground."""

    kind: Literal["fbms59"]
    subset: Literal["Trainingset", "Testset"] = "Testset"
    """which folder"""


class JHMDB(PublishedVideos):
    """JHMDB: people with 15 joints in every frame."""

    kind: Literal["jhmdb"]
    subset: Literal["train", "test"] = "test"
    """which side of the split"""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """which of the three published splits"""


class VIP(PublishedVideos):
    """VIP: people with 19 body parts and garments."""

    kind: Literal["vip"]
    subset: Literal["train", "val", "test"] = "val"
    """which list of `lists`"""


class MovingShapes(VideoLabels):
    """Generated videos of moving shapes over texture, in the layout of DAVIS 2017: for trying the
    way from video to number. Scores say little."""

    kind: Literal["moving_shapes"]
    sequences: Positive = 3
    """number of videos"""
    frames: Annotated[int, Field(ge=3)] = 8
    """frames of each"""
    height: Annotated[int, Field(ge=32)] = 96
    """pixels"""
    width: Annotated[int, Field(ge=32)] = 128
    """pixels"""
    objects: Annotated[int, Field(ge=1, le=4)] = 2
    """moving objects a video"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of shapes, textures and motion"""


_Images = FolderLabels | ArrayLabels | ShotLabels
_Published = Davis2017 | Davis2016 | YouTubeVOS | SegTrackV2 | FBMS59 | JHMDB | VIP
Labelled = Annotated[_Images | _Published | MovingShapes, Field(discriminator="kind")]


class EncoderConfig(Strict):
    """The image encoder."""

    name: str = "vit_small"
    """`vit_tiny`, `vit_small`, `vit_base`; `resnet18_s8`, `resnet50_s8` (ResNets whose maps have
    stride 8); or the name of any model of timm"""
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
    """a path, an http(s) address, `package:<import name>/<file inside it>` or `timm:<model name>`;
    published checkpoints of DINO, DoRA, TimeT, SMTC, CRW and torchvision's ResNets are read as they
    are; null: fresh weights"""
    weights_part: Literal["teacher", "student"] | None = None
    """which network of a checkpoint that holds two; null: as its authors do"""
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
    schedule: Literal["cosine", "step"] = "cosine"
    """how the learning rate falls from its peak: a cosine, or in steps at `milestones`"""
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    """learning rate at the end of the cosine, not scaled"""
    milestones: list[Positive] = []
    """epochs after which the learning rate is multiplied by `gamma` (`schedule: step`)"""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """factor on the learning rate at each milestone"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    """epochs of linear warm-up from 0"""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    """adamw, adam: betas 0.9, 0.999 (adam: the weight decay is part of the gradient); sgd: momentum
    0.9; lars: momentum 0.9, trust coefficient 0.001"""
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

    @model_validator(mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        """Read `compile: off`: YAML turns a bare `off` into false."""
        if not isinstance(value, dict):
            return value
        switches = ("compile", "activation_checkpointing")
        return {key: "off" if key in switches and x is False else x for key, x in value.items()}


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


class Config(Strict):
    """A suite of experiments."""

    data_dir: str = "data"
    """folder for videos, frames, shards and prepared sets, from the working directory"""
    results_dir: str = "results"
    """folder for runs, tables and the MLflow store, from the working directory"""
    download: DownloadConfig = DownloadConfig()
    """how videos are fetched"""
    blur: BlurConfig = BlurConfig()
    """how faces are blurred"""
    videos: dict[Name, VideoConfig] = {}
    """videos beside those of the built-in table"""
    datasets: dict[Name, DatasetConfig] = {}
    """training sets"""
    labelled: dict[Name, Labelled] = {}
    """labelled sets for evaluation"""
    runs: dict[Name, dict[str, Any]] = {}
    """runs: a method, an encoder, a data set, and what differs from the published defaults"""
    evaluations: dict[Name, dict[str, Any]] = {}
    """evaluations that every run goes through"""


def package_file(source: str, key: str) -> Path:
    """Return the path of `package:<import name>/<file>` without importing that package.

    Raises:
        UserError: the package is not installed, or holds no such file.
    """
    import importlib.util

    package, _, inside = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{key}: the Python package '{package}' is not installed; pip install it.")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise UserError(f"{key}: the Python package '{package}' holds no file '{inside}'.")
    return path


def lookup(kind: str, name: str, known: dict[str, Any]) -> Any:
    """Return ``known[name]``; an unknown name is a :class:`UserError` with the nearest one."""
    if name not in known:
        raise UserError(f"unknown {kind} '{name}'{nearest(name, known)}")
    return known[name]
