"""The model card of a run: what its encoder is, learned from what, worth what, loaded how.

From the run's ``encoder.json`` and its results to ``card.md``, a page for people who get the
encoder without the experiment. Everything on it is read from files; what a method is and which
publication it follows comes from the docstring of its module. The same files give the same page.
"""

import inspect
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from safetensors import safe_open

from timewalk.addresses import public_settings
from timewalk.artefacts import read_json, read_manifest, sha256_file, write_text
from timewalk.config.changes import RESUMABLE
from timewalk.encoders.files import HEAD
from timewalk.errors import UserError
from timewalk.methods import get_method
from timewalk.methods.base import Method
from timewalk.report.loading import loading, loading_head
from timewalk.report.page import code, number, table
from timewalk.report.sources import Source, data_counts, read_source
from timewalk.report.tables import long_table
from timewalk.video.sources import load_sources

PUBLICATION = re.compile(r'"([^"]+)" \(([^()]*\d{4})\)')
"""how the docstring of a method's module names its publication"""

ELSEWHERE = {"method", "dataset", "seed"} | {
    key if inner is True else f"{key}.{name}"
    for key, inner in RESUMABLE.items()
    for name in ((key,) if inner is True else inner)
}
"""keys of a run that stand elsewhere on the card, or change how it is computed but not what"""

RESULT_KEYS = frozenset(
    ("run", "method", "evaluation", "protocol", "dataset", "split", "metrics", "samples")
)

SHOWN = ("epochs", "max_steps", "batch_size", "precision")
"""settings of the training loop that stand above the whole list"""

FIGURES = 4
"""pictures on the card at most"""


@dataclass
class Run:
    """What the card is made of.

    Attributes:
        folder: of the run.
        about: the content of ``encoder.json``.
        method: the class of the run's method.
        sources: manifests of what it was trained on; none if it was not.
        results: path and content of each result, in the order of the table.
    """

    folder: Path
    about: dict[str, Any]
    method: type[Method]
    sources: list[Source] = field(default_factory=list)
    results: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the encoder comes from."""
        return dict(self.about["provenance"])

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration with every default, addresses without secrets."""
        return dict(public_settings(self.origin["config"]))

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.origin.get("run", self.folder.name))


def write_card(folder: Path, results: Sequence[Path]) -> Path:
    """Write ``card.md`` into a run's folder.

    Args:
        folder: of the run, with ``encoder.json`` and ``encoder.safetensors``.
        results: JSON files of the run's evaluations; may be empty.

    Returns:
        The card's path.

    Raises:
        UserError: a file is missing or damaged, or a result is of another encoder.
    """
    run = _read_run(folder)
    run.results = {path: _read_result(path, run) for path in results}
    sections = (
        _front_matter(run),
        _what(run),
        _architecture(run),
        _data(run),
        _training(run),
        _results(run),
        loading(run.about, folder.as_posix()),
        loading_head(folder),
        _use(run),
        _licence(run),
        _environment(run),
        _pictures(run),
    )
    card = folder / "card.md"
    write_text(card, "\n".join(section for section in sections if section))
    return card


def _read_run(folder: Path) -> Run:
    path, tensors = folder / "encoder.json", folder / "encoder.safetensors"
    about = read_json(path)
    origin = about.get("provenance") if isinstance(about, dict) else None
    origin = origin if isinstance(origin, dict) else {}
    config = origin.get("config")
    if not isinstance(config, dict) or "method" not in config or about.get("kind") != "encoder":
        raise UserError(f"{path} does not say how its encoder was made; train the run again.")
    if not tensors.is_file():
        raise UserError(f"{tensors} is missing: run the stage that makes it.")
    if (found := sha256_file(tensors)) != about["sha256"]:
        raise UserError(
            f"{tensors} has SHA-256 {found} but encoder.json says {about['sha256']}; "
            "train the run again."
        )
    method = get_method(config["method"])
    inputs = origin.get("inputs", {}) if method.trains else {}
    sources = [read_source(Path(name), digest) for name, digest in inputs.items()]
    return Run(folder, about, method, sources)


def _read_result(path: Path, run: Run) -> dict[str, Any]:
    result = read_json(path)
    known = isinstance(result, dict) and result.keys() >= RESULT_KEYS
    origin = result.get("provenance") if known else None
    if not isinstance(origin, dict) or not isinstance(origin.get("training"), dict):
        raise UserError(f"{path} is no result of an evaluation; leave it out, or make it again.")
    if origin.get("encoder_sha256") != run.about["sha256"]:
        raise UserError(
            f"{path} was measured with another encoder than that of {run.folder}; evaluate again."
        )
    return dict(result)


def _front_matter(run: Run) -> str:
    tags = ["timewalk", run.config["method"], "image-feature-extraction"]
    if run.method.trains:
        tags.append("learned-from-video")
    about = {"tags": tags, "library_name": "timewalk", "pipeline_tag": "image-feature-extraction"}
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n"


def _what(run: Run) -> str:
    text = inspect.getdoc(sys.modules[run.method.__module__]) or run.config["method"]
    first = " ".join(text.split("\n\n")[0].split())
    paper = PUBLICATION.search(" ".join(text.split()))
    lines = [f"# {run.name}", "", first, ""]
    if paper:
        lines += [f"Publication of the method: *{paper[1]}* ({paper[2]}).", ""]
    if run.method.trains:
        steps, clips = run.origin.get("steps"), run.origin.get("clips")
        lines += [
            f"An image encoder trained with timewalk by the method `{run.config['method']}` on the "
            f"data set `{run.config['dataset']}`: {number(steps)} steps on {number(clips)} clips.",
            "",
        ]
    else:
        lines += ["Nothing was trained here: a row for other encoders to be compared with.", ""]
    return "\n".join(lines)


def _architecture(run: Run) -> str:
    about = run.about
    with safe_open(run.folder / "encoder.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    numbers = sum(math.prod(shape) for shape in shapes)
    spec = {
        key: value for key, value in about["architecture"].items() if key not in ("mean", "std")
    }
    rows = [
        *((key.replace("_", " "), value) for key, value in spec.items()),
        ("summary of an image", f"{about['width']} numbers"),
        ("map of patches", f"{about['patch_width']} channels, a cell every {about['stride']} px"),
        ("mean of images in 0..1", about["mean"]),
        ("standard deviation of images in 0..1", about["std"]),
        ("tensors", f"{len(shapes)}, {number(numbers)} numbers in all"),
        ("`encoder.safetensors`, SHA-256", code(about["sha256"])),
    ]
    if run.config.get("encoder", {}).get("weights"):
        rows.append(("started from", code(run.config["encoder"]["weights"])))
        rows.append(("its SHA-256 as configured", code(run.config["encoder"].get("sha256"))))
    if (head := run.folder / HEAD).is_file():
        rows.append((f"`{HEAD}`, SHA-256", code(sha256_file(head))))
    return f"## Architecture\n\n{table(('', ''), rows)}"


def _data(run: Run) -> str:
    if not run.method.trains:
        return "## Training data\n\nNone: timewalk trained nothing here.\n"
    sources = run.sources
    rows = [(s.title, s.state, s.size, code(s.path.as_posix()), code(s.digest)) for s in sources]
    return (
        f"## Training data\n\nData set `{run.config['dataset']}`: {data_counts(sources)}. A "
        "manifest describes frames as they were read, with their digest.\n\n"
        + table(("frames of", "frames", "pixels", "manifest", "SHA-256 of the manifest"), rows)
    )


def _training(run: Run) -> str:
    if not run.method.trains:
        return ""
    training, origin = run.config["training"], run.origin
    scaled = " for 256 clips" if training.get("scale_learning_rate", True) else ""
    rows = [
        ("steps", number(origin.get("steps"))),
        ("clips", number(origin.get("clips"))),
        *((key.replace("_", " "), training[key]) for key in SHOWN),
        ("learning rate", f"{training['learning_rate']}{scaled}"),
        ("processes", origin.get("processes")),
        ("seed", origin.get("seed")),
    ]
    settings = table(("key", "value", "meaning"), _settings(run.config, run.method.Config))
    return (
        f"## Training\n\n{table(('', ''), rows)}\n<details>\n<summary>Every setting that changes "
        f"the result</summary>\n\n{settings}\n</details>\n"
    )


def _settings(
    config: Mapping[str, Any], model: type[BaseModel], prefix: str = ""
) -> list[tuple[str, str, str]]:
    """Return key, value and meaning of each setting, in the order of the model's keys."""
    order, rows = list(model.model_fields), []
    for key in sorted(config, key=lambda key: order.index(key) if key in order else len(order)):
        name, value, info = f"{prefix}{key}", config[key], model.model_fields.get(key)
        if name in ELSEWHERE:
            continue
        inner = info.annotation if info else None
        if isinstance(value, Mapping) and inspect.isclass(inner) and issubclass(inner, BaseModel):
            rows += _settings(value, inner, f"{name}.")
        else:
            meaning = (info.description or "") if info else ""
            rows.append((code(name), code(value), meaning))
    return rows


def _results(run: Run) -> str:
    if not run.results:
        return "## Results\n\nNo evaluation yet.\n"
    long = long_table(list(run.results))
    rows = []
    for row in long.to_dict("records"):
        link = os.path.relpath(row["source"], run.folder)
        rows.append(
            (
                f"[{row['evaluation']}]({link})",
                code(row["protocol"]),
                f"{row['dataset']} ({row['split']})",
                row["metric"],
                _score(row["value"]),
                number(row["samples"]),
            )
        )
    header = ("evaluation", "protocol", "data set", "metric", "value", "samples")
    return (
        f"## Results\n\n{table(header, rows, right=(4, 5))}\nNumbers under different protocols "
        "or data sets do not compare. Each file holds settings and digests of its inputs.\n"
    )


def _score(value: float | None) -> str:
    """Return a metric as text: two decimals as in the summary, four below 1."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def _use(run: Run) -> str:
    sides = ""
    if run.about["architecture"]["family"] == "vit":
        sides = f"- The sides of an image have to be multiples of {run.about['stride']} pixels.\n"
    weights = run.config.get("encoder", {}).get("weights")
    seen = "- It has seen no data: what it tells apart, chance has put there."
    if run.method.trains:
        before = "nothing else" if not weights else "what its first weights had seen"
        seen = (
            f"- It has seen the data set `{run.config['dataset']}` and {before}: what does not "
            "occur there, other places,\n  seasons or cameras, it may not tell apart. It carries "
            f"the biases of what was filmed.\n{_blur(run)}"
        )
    elif weights:
        seen = "- What it has seen, and with which biases, those say who made its weights."
    return f"""## Intended use and limits

For research: frozen features for nearest neighbours, linear probes, clustering, matching of
patches and propagation of labels; a start for fine-tuning. Not for recognising or following
people, nor for decisions about them.

{seen}
{sides}- The results above are all that is known of it; one seed says nothing of the spread.
"""


def _blur(run: Run) -> str:
    if run.sources and all(source.files for source in run.sources):
        return "- Its images were read as they lay on disk: timewalk blurred no faces in them."
    return (
        "- Whether faces were blurred before training is in the suite's configuration under "
        "`blur:` and in\n  the manifests of the frames. The blur covers faces only, no licence "
        "plates, and misses some."
    )


def _licence(run: Run) -> str:
    lines = []
    if weights := run.config.get("encoder", {}).get("weights"):
        lines.append(f"- The weights that it started from, {code(weights)}: see their source.")
    built_in = load_sources()
    files = f"Files of `{run.config['dataset']}`: see where they come from."
    lines += [f"- {source.origin or files}" for source in run.sources if source.files]
    for path, video in ((source.path, video) for source in run.sources for video in source.names):
        manifest = path.parent.parent.parent / "videos" / f"{video}.json"
        if manifest.is_file():
            licence = read_manifest(manifest, "video").get("licence", "unknown")
            lines.append(f"- Video `{video}`: {licence} (`{manifest.as_posix()}`).")
        elif video in built_in:
            lines.append(
                f"- Video `{video}`: {built_in[video].licence} by the built-in table (`timewalk "
                f"videos`), unless `videos.{video}` of the suite's configuration names another."
            )
        else:
            lines.append(
                f"- Video `{video}`: see `videos.{video}.licence` of the suite's configuration."
            )
    rest = "\n".join(lines)
    return (
        "## Licences\n\ntimewalk itself is under the MIT licence. Whether and how the weights may "
        "be passed on also depends on what they were made from.\n" + (f"\n{rest}\n" if rest else "")
    )


def _environment(run: Run) -> str:
    origins = {"train": run.origin}
    origins |= {result["evaluation"]: result["provenance"] for result in run.results.values()}
    packages = sorted({name for origin in origins.values() for name in origin.get("packages", {})})
    rows = [
        (
            step,
            *(origin.get(key) for key in ("timewalk", "device", "python")),
            *(origin.get("packages", {}).get(package) for package in packages),
            code(origin.get("git_commit")),
        )
        for step, origin in origins.items()
    ]
    header = ("step", "timewalk", "device", "python", *packages, "commit")
    seed, digest = run.origin.get("seed"), run.origin.get("config_sha256")
    return (
        f"## Environment\n\n{table(header, rows)}\nSeed {seed}; SHA-256 of the configuration "
        f"{code(digest)}. A commit with `+changes` is one with edits beside it.\n"
    )


def _pictures(run: Run) -> str:
    figures = sorted(run.folder.glob("figures/*.png"))[:FIGURES]
    if not figures:
        return ""
    lines = (f"![{path.stem}](figures/{path.name})\n" for path in figures)
    return "## What it sees in clips of its training data\n\n" + "\n".join(lines)
