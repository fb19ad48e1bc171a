"""Keys of labelled sets, of images and of videos: a model for each kind."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from timewalk.config.base import Name, Names, Positive, Probability, Split, Strict


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("name a folder below `root`, neither absolute nor with `..`")
    return path


def _one_folder(name: str) -> str:
    if not name or name.startswith(".") or PurePosixPath(name).name != name:
        raise ValueError("write the plain name of one folder")
    return name


def _distinct(names: list[str]) -> list[str]:
    if not all(name.strip() for name in names):
        raise ValueError("has an empty name; name every phase")
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"names '{twice[0]}' twice; give each phase a name of its own")
    return names


PhaseNames = Annotated[list[str], AfterValidator(_distinct)]
Below = Annotated[str, AfterValidator(_below)]
FolderName = Annotated[str, AfterValidator(_one_folder)]


PennActionName = Literal[
    "all",
    "baseball_pitch",
    "baseball_swing",
    "bench_press",
    "bowling",
    "clean_and_jerk",
    "golf_swing",
    "jumping_jacks",
    "pullups",
    "pushups",
    "situp",
    "squats",
    "tennis_forehand",
    "tennis_serve",
]


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


class MaskedImages(Strict):
    """Still images with masks of class ids, a further kind of labelled set."""


class VideoLabels(Strict):
    """Videos with annotations, the other kind of labelled set beside images."""


class PublishedSet(Strict):
    """A published set, in the layout that its authors give it."""

    root: str
    """folder of the published layout, or the folder above it; never written to but by `url`"""
    url: str | None = None
    """http(s) address of a zip or tar archive that is unpacked into `root` where the set is
    missing; `official`: its authors' address; null: nothing is fetched"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of the archive behind `url`; null: the known one of an `official` address, if any"""

    @model_validator(mode="after")
    def _digest_of_something(self) -> "PublishedSet":
        if self.sha256 is not None and self.url is None:
            raise ValueError("has `sha256` but no `url` that it could belong to; leave it out")
        return self


class PublishedVideos(PublishedSet, VideoLabels):
    """A published set of videos."""

    sequences: list[str] = []
    """only these sequences, in the order of the set's list; empty: all"""


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
    split: Split | None = None
    """only one part of the subset's sequences, drawn by a seed; null: all. Not with `list_file`"""

    @model_validator(mode="after")
    def _one_choice(self) -> "YouTubeVOS":
        if self.split is not None and self.list_file is not None:
            raise ValueError("has both `split` and `list_file`; keep one")
        return self


class MOSE(PublishedVideos):
    """MOSE: several objects a video in crowded scenes, every frame annotated; its training part,
    since masks of the others are not given out."""

    kind: Literal["mose"]
    split: Split | None = None
    """only one part of the sequences, drawn by a seed; null: all"""


class VISOR(PublishedVideos):
    """VISOR: hands and objects in kitchens, in the structure of DAVIS that its own converter, or
    `timewalk visor`, makes."""

    kind: Literal["visor"]
    subset: Literal["train", "val", "test"] | None = None
    """which list of `ImageSets/2022`; null: every folder of frames, whatever the lists say"""
    level: FolderName = "480p"
    """name of the sub-folder of `JPEGImages` and `Annotations` that holds the sequences"""


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
    clutter: Annotated[float, Field(ge=0, le=1)] = 1.0
    """contrast of the background, as a share of the objects'"""
    shade: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the light that is lost at the darkest moments of a video; it falls and rises"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of shapes, textures and motion"""


class VOC2012(PublishedSet, MaskedImages):
    """Pascal VOC 2012's segmentation: 21 classes with the background, 255 at objects' borders."""

    kind: Literal["voc2012"]
    train: Literal["train", "trainaug"] = "trainaug"
    """list of the training split; `trainaug` (10582 images) needs the masks of
    `SegmentationClassAug`, which the official archive does not hold"""
    test: Literal["val"] = "val"
    """list of the split that is scored"""


class SegmentationFolder(MaskedImages):
    """Folders of images and of palette or gray masks of class ids, paired by name; the defaults are
    those of ADE20K's scene parsing."""

    kind: Literal["segmentation_folder"]
    root: str
    """folder that holds the images' and the masks' folder"""
    train: Below = "training"
    """sub-folder of both that is the training split"""
    test: Below = "validation"
    """sub-folder of both that is scored"""
    images: Below = "images"
    """folder of the images, below `root`"""
    masks: Below = "annotations"
    """folder of the masks, below `root`"""
    zero_is_void: bool = True
    """whether id 0 is no class, as in ADE20K: it becomes void, and ids from 1 on become classes
    from 0 on. 255 is void in either case"""
    classes: Annotated[int, Field(ge=1, le=253, strict=True)] | str | None = None
    """number of classes, or a text file with the name of one a line, in the order of their ids;
    null: as many as the masks' greatest id needs"""


class PhaseLabels(Strict):
    """Videos of one action, each frame with the phase that it belongs to. The keys here say how an
    evaluation embeds the set; they stand in its manifest, so that a change prepares it anew, and
    trains nothing anew."""

    image_size: Positive | None = None
    """side in pixels of the square frame; null: as the run was trained, 224 for runs without an
    embedder"""
    stride: Positive = 1
    """every how many-th frame is embedded"""


class PhaseRecords(PhaseLabels):
    """TFRecords of the TCC tools (`timewalk shards` writes them), a video a record, read where they
    are."""

    kind: Literal["phase_records"]
    root: str
    """folder of the files"""
    train: Annotated[Below, Field(min_length=1)] = "*_train-*.tfrecord"
    """pattern of the training split's files, below `root`"""
    test: Annotated[Below, Field(min_length=1)] = "*_val-*.tfrecord"
    """pattern of the files of the split that is scored, below `root`"""
    classes: PhaseNames | None = None
    """names of the phases in the order of their labels; null: as the records say themselves"""


class Pouring(PhaseLabels):
    """Pouring, as the authors of TCC publish it: three TFRecords."""

    kind: Literal["pouring"]
    root: str
    """folder of the three files; never written to but by `url`"""
    url: Annotated[str, Field(pattern=r"^(official|https?://.+)$")] | None = None
    """http(s) address of the folder that the missing files are fetched from; `official`: its
    authors' address; null: nothing is fetched"""


class PennAction(PublishedSet, PhaseLabels):
    """Penn Action: frames and annotations as published. Labels of phases are no part of it."""

    kind: Literal["penn_action"]
    action: PennActionName
    """which action; `all`: each of the thirteen with a number of its own. Strumming a guitar and
    jumping rope have no phases and are left out"""
    label_file: str | None = None
    """JSON file with start and end in microseconds of each video's phases, in the form of the TCC
    tools; null: videos without labels, for training"""


class PhaseFrames(PhaseLabels):
    """Videos of a data set, through the frames stage (and blurred as all others)."""

    kind: Literal["phase_frames"]
    dataset: Name
    """the data set whose frames are used"""
    label_file: str
    """JSON file with start and end in microseconds of each video's phases, in the form of the TCC
    tools"""
    classes: Annotated[PhaseNames, Field(min_length=1)]
    """names of the phases in the order of their numbers"""
    test: Annotated[Names, Field(min_length=1)]
    """videos that are scored; the others train"""


class MovingPhases(PhaseLabels):
    """Generated videos of one action, a hand that pours, at a speed of its own each: for trying the
    way from video to number. Scores say little."""

    kind: Literal["moving_phases"]
    train: Positive = 16
    """videos of the training split"""
    test: Positive = 8
    """videos of the split that is scored"""
    shortest: Annotated[int, Field(ge=10)] = 30
    """fewest frames of a video"""
    longest: Annotated[int, Field(ge=10)] = 60
    """most frames of a video"""
    height: Annotated[int, Field(ge=32)] = 96
    """pixels"""
    width: Annotated[int, Field(ge=32)] = 96
    """pixels"""
    clutter: Annotated[float, Field(ge=0, le=1)] = 0.35
    """contrast of the background, as a share of the objects'"""
    distractors: Annotated[int, Field(ge=0)] = 3
    """shapes that move behind the action"""
    variety: Probability = 0.1
    """of the actors' colours: 0, the same in all videos; 1, any"""
    shade: Probability = 0.0
    """share of the light that is lost at the darkest moments of a video; it falls and rises"""
    sides: Literal[1, 2] = 2
    """from how many sides the hand comes. From two, a network may learn to run backwards in the
    videos of one of them: cycles close in either direction of time"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of everything random"""

    @model_validator(mode="after")
    def _range(self) -> "MovingPhases":
        if self.longest < self.shortest:
            raise ValueError(
                f"longest is {self.longest} but shortest is {self.shortest}; make longest >= "
                "shortest"
            )
        return self
