"""The model card of a run: what its encoder is, learned from what, worth what, loaded how.

From the run's ``encoder.json`` and its results to ``card.md``, a page for people who get the
encoder without the experiment. Everything on it is read from files; what a method is and which
publication it follows comes from the docstring of its module. The same files give the same page.
"""

import inspect
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from safetensors import safe_open

from timewalk.artefacts import read_json, read_manifest, sha256_file, write_text
from timewalk.encoders.base import VIT_SHAPES
from timewalk.errors import UserError
from timewalk.methods import get_method
from timewalk.methods.base import Method
from timewalk.report.tables import long_table
from timewalk.training.loop import MACHINE_KEYS
from timewalk.video.sources import load_sources

PUBLICATION = re.compile(r'"([^"]+)" \(([^()]*\d{4})\)')
"""how the docstring of a method's module names its publication"""

ELSEWHERE = {"method", "dataset", "seed", "encoder"} | {
    key if inner is True else f"{key}.{name}"
    for key, inner in MACHINE_KEYS.items()
    for name in ((key,) if inner is True else inner)
}
"""keys of a run that stand elsewhere on the card, or change how it is computed but not what"""

RESULT_KEYS = frozenset(
    ("run", "method", "evaluation", "protocol", "dataset", "split", "metrics", "samples")
)

FIGURES = 4
"""pictures on the card at most"""


@dataclass
class Run:
    """What the card is made of.

    Attributes:
        folder: of the run.
        about: the content of ``encoder.json``.
        method: the class of the run's method.
        results: path and content of each result, in the order of the table.
    """

    folder: Path
    about: dict[str, Any]
    method: type[Method]
    results: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the encoder comes from."""
        return dict(self.about["provenance"])

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration with every default."""
        return dict(self.origin["config"])

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
        _loading(run),
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
    config = origin.get("config") if isinstance(origin, dict) else None
    if not isinstance(config, dict) or "method" not in config or about.get("kind") != "encoder":
        raise UserError(f"{path} does not say how its encoder was made; train the run again.")
    if not tensors.is_file():
        raise UserError(f"{tensors} is missing: run the stage that makes it.")
    if (found := sha256_file(tensors)) != about["sha256"]:
        raise UserError(
            f"{tensors} has SHA-256 {found} but encoder.json says {about['sha256']}; "
            "train the run again."
        )
    return Run(folder, about, get_method(config["method"]))


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
    spec = {key: value for key, value in about["architecture"].items() if key not in about}
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
    return f"## Architecture\n\n{table(('', ''), rows)}"


def _data(run: Run) -> str:
    if not run.method.trains:
        return "## Training data\n\nNone.\n"
    rows, total, known = [], 0, True
    for name, digest in run.origin.get("inputs", {}).items():
        path = Path(name)
        frames, size = "not here any more", "–"
        if path.is_file() and sha256_file(path) != digest:
            frames = "made again since, differently"
        elif path.is_file():
            counts = read_manifest(path, "shards")["counts"]
            frames, size = number(counts["frames"]), f"{counts['width']} x {counts['height']}"
            total += counts["frames"]
        known = known and size != "–"
        rows.append((code(path.stem), frames, size, code(name), code(digest)))
    count = f", {number(total)} frames" if known else ""
    return (
        f"## Training data\n\nData set `{run.config['dataset']}`: {len(rows)} "
        f"{'video' if len(rows) == 1 else 'videos'}{count}, without labels unless the method says "
        "otherwise. A manifest describes a video's frames as they were read, with their digest.\n\n"
        + table(("video", "frames", "pixels", "manifest", "SHA-256 of the manifest"), rows)
    )


def _training(run: Run) -> str:
    if not run.method.trains:
        return ""
    training, origin = run.config["training"], run.origin
    rows = [
        ("steps", number(origin.get("steps"))),
        ("clips", number(origin.get("clips"))),
        *((key.replace("_", " "), training[key]) for key in ("epochs", "batch_size", "precision")),
        ("learning rate", f"{training['learning_rate']} for 256 clips"),
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
        place = f"{row['dataset']} ({row['split']})"
        value = _score(row["value"])
        rows.append(
            (f"[{row['evaluation']}]({link})", code(row["protocol"]), place, row["metric"], value)
            + (number(row["samples"]),)
        )
    header = ("evaluation", "protocol", "data set", "metric", "value", "samples")
    return (
        f"## Results\n\n{table(header, rows, right=(4, 5))}\nNumbers under different protocols, or "
        "on different data sets, do not compare. A file holds settings and digests of all inputs.\n"
    )


def _score(value: float | None) -> str:
    """Return a metric as text: two decimals as in the summary, four below 1."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def _loading(run: Run) -> str:
    about, spec, folder = run.about, run.about["architecture"], run.folder.as_posix()
    stride, width = about["stride"], about["width"]
    ours = f"""
import timewalk
from torchvision.transforms.functional import normalize

encoder = timewalk.load_encoder({json.dumps(folder)})
features = encoder(normalize(images, encoder.mean, encoder.std))  # images: (B, 3, H, W) in 0..1
features.summary  # (B, {width})
features.patches  # (B, {about["patch_width"]}, H / {stride}, W / {stride})
"""
    hub = f"""
import torch

encoder = torch.hub.load(".", "encoder", {json.dumps(folder)}, source="local")
"""
    parts = [
        "## How to load it\n\nWith timewalk:\n",
        fenced(ours),
        "By torch.hub, from a checkout of timewalk (here the working directory):\n",
        fenced(hub),
    ]
    if spec["family"] == "vit":
        side = spec["image_size"]
        parts += [
            f"With timm alone, for images of {side} x {side} pixels, normalised as above; the result "
            "is `features.summary`:\n",
            fenced(_timm_lines(spec, folder)),
        ]
    else:
        parts.append(
            f"The tensors are those of timm's `{spec['name']}` with `body.` before each name.\n"
        )
    return "\n".join(parts)


def _timm_lines(spec: Mapping[str, Any], folder: str) -> str:
    shape = (spec["width"], spec["depth"], spec["heads"])
    patch, side = spec["patch_size"], spec["image_size"]
    named = [name for name, known in VIT_SHAPES.items() if known == shape]
    # timm has names for the usual sizes only; its class builds every size.
    if named and (patch, side) == (16, 224):
        first = "import timm"
        model = f'timm.create_model("{named[0]}_patch16_224", num_classes=0)'
    else:
        first = "from timm.models.vision_transformer import VisionTransformer"
        model = (
            f"VisionTransformer(\n    img_size={side}, patch_size={patch}, embed_dim={shape[0]}, "
            f"depth={shape[1]}, num_heads={shape[2]}, num_classes=0\n)"
        )
    return f"""
{first}
from safetensors.torch import load_file

model = {model}
model.load_state_dict(load_file({json.dumps(f"{folder}/encoder.safetensors")}))
summary = model.eval()(images)  # (B, {spec["width"]})
"""


def _use(run: Run) -> str:
    sides = ""
    if run.about["architecture"]["family"] == "vit":
        sides = f"- The sides of an image have to be multiples of {run.about['stride']} pixels.\n"
    seen = "- It has seen no data."
    if run.method.trains:
        seen = (
            f"- It has seen the data set `{run.config['dataset']}` and nothing else: what does not "
            "occur there, other places, seasons, cameras, it may not tell apart. It carries the "
            "biases of what was filmed."
        )
    elif run.config.get("encoder", {}).get("weights"):
        seen = "- What it has seen, and with which biases, those say who made its weights."
    return f"""## Intended use and limits

For research: frozen features for nearest neighbours, linear probes, clustering, matching of
patches and propagation of labels; a start for fine-tuning. Not for recognising or following
people, nor for decisions about them.

{seen}
{sides}- It is measured by the results above and no others; a single seed says nothing of the spread.
- Whether faces were blurred before training is in the suite's configuration under `blur:` and in
  the manifests of the frames. The blur covers faces only, no licence plates, and misses some.
"""


def _licence(run: Run) -> str:
    lines = []
    if weights := run.config.get("encoder", {}).get("weights"):
        lines.append(f"- The weights that it started from, {code(weights)}: see their source.")
    built_in = load_sources()
    for name in run.origin.get("inputs", {}) if run.method.trains else ():
        path = Path(name)
        video = path.stem
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
        "## Licences\n\ntimewalk itself is under the MIT licence. Whether and how the weights may be "
        "passed on also depends on what they were made from.\n" + (f"\n{rest}\n" if rest else "")
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


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """Return a Markdown table; None is a dash.

    Args:
        header: a title a column.
        rows: cells, whose texts may be Markdown.
        right: columns whose cells stand at the right.
    """
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [header, rule, *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "–" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def code(value: Any) -> str:
    """Return a value as code: a text as it is, anything else as JSON; None is a dash."""
    if value is None:
        return "–"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def fenced(text: str) -> str:
    """Return lines of Python as a block of code."""
    return f"```python\n{text.strip()}\n```\n"


def number(value: float | None) -> str:
    """Return a count with its thousands apart; None is a dash."""
    return "–" if value is None else f"{value:,}"
