"""Keys of the labelled sets of dense transfer and tracking: masks of scenes, objects with boxes and
masks, videos of one box a frame."""

from typing import Annotated, Literal

from pydantic import Field

from timewalk.config.base import Positive, Strict
from timewalk.config.labelled import MaskedImages, PublishedSet


class ObjectImages(Strict):
    """Still images with a box, a mask and a class for every object."""


class BoxVideos(Strict):
    """Videos of one object with a box in every frame."""


class ADE20K(PublishedSet, MaskedImages):
    """ADE20K's scene parsing (`ADEChallengeData2016`): 150 classes; id 0 is no class."""

    kind: Literal["ade20k"]


class COCO(PublishedSet, ObjectImages):
    """COCO 2017's instances: 80 classes; `train2017` trains, `val2017` is scored."""

    kind: Literal["coco"]


class GOT10k(PublishedSet, BoxVideos):
    """GOT-10k: one object a video."""

    kind: Literal["got10k"]
    subset: Literal["val", "test", "train"] = "val"
    """which part; the boxes of `test` are withheld but for the first, its results are for the
    authors' server"""


class _Drawn(Strict):
    """Generated images of shapes: for trying the way from images to number. Scores say little."""

    height: Annotated[int, Field(ge=32)] = 96
    """pixels"""
    width: Annotated[int, Field(ge=32)] = 128
    """pixels"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of everything random"""


class _DrawnScenes(_Drawn):
    train: Positive = 64
    """images of the training split"""
    test: Positive = 16
    """images of the split that is scored"""
    objects: Annotated[int, Field(ge=1, le=8)] = 3
    """most shapes in an image"""
    classes: Annotated[int, Field(ge=1, le=6)] = 4
    """kinds of shapes"""


class ADE20KShapes(_DrawnScenes, MaskedImages):
    """Generated scenes of shapes in the layout of ADE20K; the background is the first class."""

    kind: Literal["ade20k_shapes"]


class COCOShapes(_DrawnScenes, ObjectImages):
    """Generated scenes of shapes in the layout of COCO."""

    kind: Literal["coco_shapes"]


class GOT10kShapes(_Drawn, BoxVideos):
    """Generated videos of one moving shape in the layout of GOT-10k."""

    kind: Literal["got10k_shapes"]
    sequences: Positive = 4
    """number of videos"""
    frames: Annotated[int, Field(ge=3)] = 16
    """frames of each"""
