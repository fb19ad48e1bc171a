"""The verb that plays videos in step by their embeddings."""

from pathlib import Path
from typing import Any

from timewalk.cli.common import Arguments, add_verb


def add_verbs(verbs: Any) -> None:
    """Add this verb to the command line."""
    verb = add_verb(verbs, "align", align)
    verb.add_argument(
        "embeddings",
        type=Path,
        nargs="+",
        help="embeddings of phase videos, …safetensors, or the original's .npy with frames in it",
    )
    verb.add_argument("-o", "--output", type=Path, required=True, help="…mp4 or …gif")
    verb.add_argument("--dataset", type=Path, help="manifest.json of the set that holds the frames")
    verb.add_argument(
        "--split", choices=("train", "test"), help="of that set (default: the embeddings' own)"
    )
    verb.add_argument("--reference", type=int, default=0, help="number of the video matched to")
    verb.add_argument(
        "--candidate", type=int, help="number of the video beside it, with `--mode pair`"
    )
    verb.add_argument("--dtw", action="store_true", help="dynamic time warping, not neighbours")
    verb.add_argument("--normalise", action="store_true", help="embeddings to length 1 first")
    verb.add_argument(
        "--mode",
        choices=("grid", "pair", "dynamic"),
        help="all at once (default), two, or the others in turn",
    )
    verb.add_argument("--switch", type=int, default=10, help="frames a video, if they take turns")
    verb.add_argument("--interval", type=int, default=50, help="milliseconds a frame")
    verb.add_argument("--videos", type=int, default=9, help="most videos drawn")
    verb.add_argument("--cell", type=int, default=400, help="pixels a picture")
    verb.add_argument("--scale", choices=("published", "none"), default="published")
    verb.add_argument("--numbers", action="store_true", help="write frame numbers")
    verb.add_argument(
        "--published-grid", action="store_true", help="a square grid without surplus videos"
    )
    verb.add_argument("--path", type=Path, help="…png: plot distances and paths")


def align(arguments: Arguments) -> None:
    """Play videos in step with one of them, matched by their embeddings."""
    from timewalk.check import check
    from timewalk.evaluation.alignment_video import Alignment
    from timewalk.evaluation.alignment_video import align as call

    usual = "grid" if arguments.candidate is None else "pair"
    keys = {
        "reference": arguments.reference,
        "candidate": arguments.candidate,
        "use_dtw": arguments.dtw,
        "normalise": arguments.normalise,
        "mode": arguments.mode or usual,
        "switch": arguments.switch,
        "interval_ms": arguments.interval,
        "videos": arguments.videos,
        "cell": arguments.cell,
        "scale": arguments.scale,
        "numbers": arguments.numbers,
        "published_grid": arguments.published_grid,
    }
    scores = call(
        arguments.embeddings,
        arguments.output,
        check(Alignment, keys, "align"),
        manifest=arguments.dataset,
        split=arguments.split,
        path_plot=arguments.path,
    )
    for name, value in scores.items():
        if value is not None:
            print(f"{name} {value:.4g}")
