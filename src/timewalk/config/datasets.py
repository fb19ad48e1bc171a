"""Keys of training sets."""

from typing import Literal

from pydantic import model_validator

from timewalk.config.base import Name, Names, Split, Strict
from timewalk.config.video import FramesConfig


class DatasetConfig(Strict):
    """A training set: frames of some videos, the still images of a folder, or folders of images,
    each the frames of a video. Exactly one of `videos`, `images`, `folders`, `list`, `labelled`."""

    videos: Names = []
    """names of videos, of `videos:` or of the built-in table (`timewalk videos`)"""
    images: str | None = None
    """folder of images, sub-folders too, instead of videos: each image is a clip of one frame; the
    keys `frames` and `storage` have no meaning then, nor with `folders`, `list` or `labelled`"""
    folders: str | None = None
    """folder with folders of .jpg or .png images below it, at any depth: each is one video, its
    images are the frames"""
    split: Split | None = None
    """only one part of the videos of `folders`, by the folders' paths below it; null: all"""
    list: str | None = None
    """text file with a line `<directory> <number of frames>` for each video; directories relative
    to the file's own folder, or absolute"""
    labelled: Name | None = None
    """a labelled set of videos, of `labelled:`, whose frames are trained on; its annotations are
    not read. Of a set with phases it is the training split, and labels go to methods that use
    them"""
    frames: FramesConfig = FramesConfig()
    """how frames are taken"""
    storage: Literal["tfrecord", "folder"] = "tfrecord"
    """how frames are kept for training"""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetConfig":
        sources = ("videos", "images", "folders", "list", "labelled")
        given = [key for key in sources if getattr(self, key)]
        if not given:
            raise ValueError(
                "name at least one of `videos`, or a folder of `images`, or one of `folders`, or a "
                "`list`, or a `labelled` set"
            )
        if len(given) > 1:
            raise ValueError(
                f"has both `{given[0]}` and `{given[1]}`; keep one, make two data sets"
            )
        without = sorted({"frames", "storage"} & self.model_fields_set)
        if without and given != ["videos"]:
            raise ValueError(f"`{without[0]}` means nothing for `{given[0]}`; leave it out")
        if self.split is not None and given != ["folders"]:
            raise ValueError(f"`split` means nothing for `{given[0]}`; leave it out")
        return self
