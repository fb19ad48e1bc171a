"""All kinds of labelled sets: a model each, told apart by the key `kind`."""

from typing import Annotated

from pydantic import Field

from timewalk.config.dense import (
    ADE20K,
    COCO,
    ADE20KShapes,
    COCOShapes,
    GOT10k,
    GOT10kShapes,
)
from timewalk.config.labelled import (
    FBMS59,
    JHMDB,
    MOSE,
    VIP,
    VISOR,
    VOC2012,
    ArrayLabels,
    Davis2016,
    Davis2017,
    FolderLabels,
    MovingPhases,
    MovingShapes,
    PennAction,
    PhaseFrames,
    PhaseRecords,
    Pouring,
    SegmentationFolder,
    SegTrackV2,
    ShotLabels,
    YouTubeVOS,
)

_Images = FolderLabels | ArrayLabels | ShotLabels
_Masked = VOC2012 | SegmentationFolder | ADE20K | ADE20KShapes
_Objects = COCO | COCOShapes
_Published = Davis2017 | Davis2016 | YouTubeVOS | MOSE | VISOR | SegTrackV2 | FBMS59 | JHMDB | VIP
_Tracks = GOT10k | GOT10kShapes
_Phases = PhaseRecords | Pouring | PennAction | PhaseFrames | MovingPhases
Labelled = Annotated[
    _Images | _Masked | _Objects | _Published | MovingShapes | _Tracks | _Phases,
    Field(discriminator="kind"),
]
