"""Verbs of the stages from frames and published sets to what training and evaluation read."""

from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_manifests, add_settings, add_verb, manifests
from timewalk.errors import UserError


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "images", images)
    verb.add_argument("folder", type=Path, help="folder of images")
    verb.add_argument("manifest", type=Path, help="…/<data set>/images.json to write")
    verb.add_argument("--workers", type=int, default=1, help="threads")

    verb = add_verb(verbs, "folders", folders)
    verb.add_argument(
        "source",
        type=Path,
        help="folder of folders of images, a list of them, or the manifest of a set of videos",
    )
    verb.add_argument("manifest", type=Path, help="…/<data set>/folders.json to write")
    verb.add_argument("--workers", type=int, default=1, help="threads")
    add_settings(verb, "split", "only one part of the folders (keys of a data set's `split:`)")

    verb = add_verb(verbs, "visor", visor)
    verb.add_argument("archives", type=Path, help="folder of VISOR's archives, one a video")
    verb.add_argument("output", type=Path, help="folder to write: cache/ and VISOR_2022/")
    verb.add_argument("--level", default="480p", help="folder above the videos (default: 480p)")

    verb = add_verb(verbs, "prepare", prepare)
    verb.add_argument("name", help="the labelled set's name")
    verb.add_argument("manifest", type=Path, help="manifest.json to write")
    add_settings(verb, "settings", "keys of an entry of `labelled:`")
    add_manifests(verb, "frames", "manifests of frames, for some kinds")
    verb.add_argument(
        "--root", help="instead of settings, where the name is a kind such as davis2017: its folder"
    )
    verb.add_argument("--subset", help="with --root: which part, such as val, or golf_swing")


def images(arguments: Arguments) -> None:
    """Check and index a folder of still images for training."""
    from timewalk.data.images import index_images

    index_images(arguments.folder, arguments.manifest, arguments.workers)


def folders(arguments: Arguments) -> None:
    """Check and index folders of images, each the frames of a video, for training."""
    from timewalk.check import check
    from timewalk.config import Split
    from timewalk.data.frame_folders import index_frame_folders

    split = check(Split, arguments.split, "split") if arguments.split else None
    index_frame_folders(arguments.source, arguments.manifest, arguments.workers, split)


def visor(arguments: Arguments) -> None:
    """Unpack VISOR's archives and link their files into the structure of DAVIS."""
    from timewalk.data.prepare.visor import convert_visor

    convert_visor(arguments.archives, arguments.output, arguments.level)


def prepare(arguments: Arguments) -> None:
    """Check and index a labelled set of images or videos in place."""
    from pydantic import BaseModel

    from timewalk.check import check
    from timewalk.config import Labelled
    from timewalk.data.prepare import prepare as call

    class Entry(BaseModel):
        labelled: Labelled

    entry = check(Entry, {"labelled": _labelled_settings(arguments)}).labelled
    by_video = {path.parent.name: path for path in manifests(arguments.frames)}
    call(arguments.name, entry, arguments.manifest, by_video)


def _labelled_settings(arguments: Arguments) -> Any:
    """Return the settings, or those that `--root` and `--subset` say of the kind of that name."""
    if arguments.root is None and arguments.subset is None:
        return arguments.settings
    if arguments.settings or arguments.root is None:
        raise UserError("--subset goes with --root, and --root stands instead of --settings.")
    key = "action" if arguments.name == "penn_action" else "subset"
    subset = {} if arguments.subset is None else {key: arguments.subset}
    return {"kind": arguments.name, "root": arguments.root, **subset}
