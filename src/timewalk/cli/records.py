"""Verbs of TFRecords: `shards`, which writes them, and `inspect`, which says what they hold."""

import argparse
import json
from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_verb
from timewalk.errors import UserError

SETTINGS = {
    "per_shard": "per_shard",
    "rotate": "rotate",
    "resize": "resize",
    "width": "width",
    "height": "height",
    "frame_labels": "class_names",
    "action_label": "action_label",
    "label_file": "label_file",
    "expected_segments": "expected_segments",
    "shuffle_seed": "shuffle_seed",
}
"""options of both converters, and the settings that they are"""
ONLY_VIDEOS, ONLY_IMAGES = ("pattern",), ("list", "extension")
CONVERTERS = (*SETTINGS, *ONLY_VIDEOS, *ONLY_IMAGES, "fps")


def add_verbs(verbs: Any) -> None:
    """Add these verbs to the command line."""
    verb = add_verb(verbs, "shards", shards)
    verb.add_argument(
        "source", type=Path, help="manifest.json of a folder of frames; with --name a folder"
    )
    verb.add_argument(
        "output", type=Path, help="…/<video>.json to write; with --name the folder of the files"
    )
    verb.add_argument(
        "--storage", choices=("tfrecord", "folder"), help="of frames (default: tfrecord)"
    )
    _add_converters(verb.add_argument_group("with --name: videos or folders of images"))

    verb = add_verb(verbs, "inspect", inspect)
    verb.add_argument("file", type=Path, help="a TFRecord of SequenceExamples or Examples")
    verb.add_argument("--json", action="store_true", help="for programs: one JSON object")


def _add_converters(group: Any) -> None:
    add = group.add_argument
    add("--name", help="prefix of the files, by convention <data set>_<split>")
    add("--pattern", action="append", help="videos to take; may be repeated (default: *.mp4)")
    add(
        "--list",
        type=Path,
        help="text file: a folder of images on each line, relative to SOURCE (default: all)",
    )
    add("--extension", help="of the images (default: jpg)")
    add("--fps", type=float, help="videos: thin to this rate (0: all frames); images: their rate")
    add(
        "--label-file",
        type=Path,
        help="JSON of each phase's start and end in microseconds; looked up at each frame's time: "
        "the container's clock from the first frame, or number of the image / fps",
    )
    add("--expected-segments", type=int, help="number of phases in the label file")
    add("--frame-labels", type=_names, help="names of the phases, joined by commas")
    add("--action-label", type=int, help="label of all videos (default: -1)")
    add("--per-shard", type=int, help="videos in a file (default: 1)")
    add(
        "--resize",
        action=argparse.BooleanOptionalAction,
        help="to --width x --height, bilinear, whatever the aspect (default: --resize)",
    )
    add("--width", type=int, help="pixels (default: 224)")
    add("--height", type=int, help="pixels (default: 224)")
    add(
        "--rotate",
        action="store_true",
        default=None,
        help="turn by 90 degrees clockwise, after resizing",
    )
    add("--shuffle-seed", type=int, help="shuffle the videos by this seed (default: in order)")
    add("--workers", type=int, default=1, help="threads")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def shards(arguments: Arguments) -> None:
    """Pack frames into a TFRecord with an index, or index the folder itself.

    With --name: convert a folder of videos, or of folders of images, to TFRecords of the schema
    that the TCC tools read and write. See docs/stages/shards.md.
    """
    if arguments.name is not None:
        _convert(arguments)
        return
    if given := _given(arguments, CONVERTERS):
        raise UserError(f"{_option(given[0])} goes with --name, the prefix of the files to write.")
    if arguments.source.is_dir():
        raise UserError(
            f"{arguments.source} is a folder: name its manifest.json, or give --name to convert "
            "the videos or the folders of images in it."
        )
    from timewalk.data.record_sets import make_folder
    from timewalk.data.shards import write_shards

    make_folder(arguments.output.parent)
    write_shards(arguments.source, arguments.output, arguments.storage or "tfrecord")


def _convert(arguments: Arguments) -> None:
    from timewalk.data.record_writer import RecordSettings
    from timewalk.data.records import convert_folders
    from timewalk.video.records import convert_videos

    if arguments.storage is not None:
        raise UserError("--storage is for the frames of one video; leave it out with --name.")
    if arguments.output.is_file():
        raise UserError(f"{arguments.output} is a file; with --name give a folder to write into.")
    images = _holds_images(arguments)
    settings = RecordSettings(
        **{SETTINGS[key]: getattr(arguments, key) for key in _given(arguments, SETTINGS)}
    )
    own: dict[str, Any] = {} if arguments.fps is None else {"fps": arguments.fps}
    if images:
        own |= {} if arguments.list is None else {"listing": arguments.list}
        own |= {} if arguments.extension is None else {"extension": arguments.extension}
    elif arguments.pattern is not None:
        own["patterns"] = arguments.pattern
    call = convert_folders if images else convert_videos
    about = call(
        arguments.source,
        arguments.output,
        arguments.name,
        settings,
        workers=arguments.workers,
        **own,
    )
    counts = about["counts"]
    print(f"{counts['videos']} videos, {counts['frames']} frames in {counts['shards']} files")
    for warning in about["warnings"]:
        print(f"warning: {warning}")


def _holds_images(arguments: Arguments) -> bool:
    """Return whether the source is a folder of folders of images, and no folder of videos."""
    from timewalk.data.records import folders_of_images
    from timewalk.video.records import find_videos

    videos, images = (_given(arguments, options) for options in (ONLY_VIDEOS, ONLY_IMAGES))
    if videos and images:
        raise UserError(
            f"{_option(videos[0])} is for videos, {_option(images[0])} for folders of images; "
            "leave one of them out."
        )
    if videos or images:
        return bool(images)
    source = arguments.source
    folders, files = folders_of_images(source, ".jpg"), find_videos(source, ["*.mp4"])
    if bool(folders) == bool(files):
        what = "both" if folders else "neither"
        raise UserError(
            f"{source} holds {what} .mp4 videos {'and' if folders else 'nor'} folders of .jpg "
            "images; say which to take by --pattern, --list or --extension."
        )
    return bool(folders)


def _given(arguments: Arguments, options: Any) -> list[str]:
    return [option for option in options if getattr(arguments, option) is not None]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def inspect(arguments: Arguments) -> None:
    """Print what a TFRecord holds: videos, names, sizes, labels, offsets; verify its checksums."""
    from timewalk.data.record_summary import beside, in_words, summarise

    records: list[dict[str, Any]] = []
    fault: UserError | None = None
    try:
        for record in summarise(arguments.file):
            records.append(record)
            if not arguments.json:
                print(in_words(record))
    except UserError as error:  # what could be read is of use, too
        fault = error
    manifests = [] if fault else beside(arguments.file)
    faults = [about["fault"] for about in manifests if about["fault"] is not None]
    if arguments.json:
        report = {"file": str(arguments.file), "records": records, "manifests": manifests}
        print(json.dumps({**report, "fault": fault and str(fault)}, indent=2))
    else:
        frames = sum(record.get("frames", 0) for record in records)
        print(f"{len(records)} records, {frames} frames")
        for about in manifests:
            print(f"{about['manifest']} {'disagrees' if about['fault'] else 'agrees'}")
    if fault is not None:
        raise fault
    if faults:
        raise UserError(faults[0])
    broken = [record for record in records if "fault" in record and record["kind"] != "unknown"]
    if broken:
        raise UserError(
            f"{arguments.file}: the record at byte {broken[0]['offset']} is not a video of the "
            f"schema: {broken[0]['fault']}; make the file again."
        )
