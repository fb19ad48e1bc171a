"""The configuration as pydantic models: the one source of defaults, ranges, schema and docs.

A configuration file is a suite: videos, data sets made of them, labelled sets, runs and
evaluations, each under a name of the user's choice. A run's own keys belong to its method
(``Config`` in ``methods/<method>.py``), an evaluation's to its file in ``evaluation/``; what all
of them share is here. ``timewalk.suite`` puts the two together.
"""

from typing import Any

from timewalk.config.base import (
    Name,
    Names,
    Positive,
    Probability,
    Split,
    Strict,
    lookup,
    package_file,
)
from timewalk.config.datasets import DatasetConfig
from timewalk.config.dense import (
    ADE20K,
    COCO,
    ADE20KShapes,
    BoxVideos,
    COCOShapes,
    GOT10k,
    GOT10kShapes,
    ObjectImages,
)
from timewalk.config.kinds import Labelled
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
    MaskedImages,
    MovingPhases,
    MovingShapes,
    PennAction,
    PhaseFrames,
    PhaseLabels,
    PhaseRecords,
    Pouring,
    PublishedSet,
    PublishedVideos,
    SegmentationFolder,
    SegTrackV2,
    ShotLabels,
    VideoLabels,
    YouTubeVOS,
)
from timewalk.config.runs import (
    EncoderConfig,
    EvaluationConfig,
    RunConfig,
    TrainingConfig,
    Validation,
)
from timewalk.config.video import BlurConfig, DownloadConfig, FramesConfig, VideoConfig

__all__ = [
    "ADE20K",
    "COCO",
    "FBMS59",
    "JHMDB",
    "MOSE",
    "VIP",
    "VISOR",
    "VOC2012",
    "ADE20KShapes",
    "ArrayLabels",
    "BlurConfig",
    "BoxVideos",
    "COCOShapes",
    "Config",
    "DatasetConfig",
    "Davis2016",
    "Davis2017",
    "DownloadConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FolderLabels",
    "FramesConfig",
    "GOT10k",
    "GOT10kShapes",
    "Labelled",
    "MaskedImages",
    "MovingPhases",
    "MovingShapes",
    "Name",
    "Names",
    "ObjectImages",
    "PennAction",
    "PhaseFrames",
    "PhaseLabels",
    "PhaseRecords",
    "Positive",
    "Pouring",
    "Probability",
    "PublishedSet",
    "PublishedVideos",
    "RunConfig",
    "SegTrackV2",
    "SegmentationFolder",
    "ShotLabels",
    "Split",
    "Strict",
    "TrainingConfig",
    "Validation",
    "VideoConfig",
    "VideoLabels",
    "YouTubeVOS",
    "lookup",
    "package_file",
]


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
    finetuning: dict[Name, dict[str, Any]] = {}
    """networks that a run's encoder is fine-tuned to, for the evaluations that name them"""
    evaluations: dict[Name, dict[str, Any]] = {}
    """evaluations that every run goes through"""
