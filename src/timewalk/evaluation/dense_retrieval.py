"""Semantic segmentation without training, by looking up the nearest training patches.

Source: Hummingbird, in the form of TimeT's second release. A memory holds patch features of the
training images, each with the shares of the classes among its pixels. A patch of a test image takes
the shares of its nearest ones, weighted by a softmax of the cosines; they are enlarged bilinearly,
and the largest decides a pixel. The search is exact: products of a part of the memory at a time, of
which the best so far are kept (published: ScaNN, which approximates).

Shapes: B images, R patches of the memory, Q patches that look up, K neighbours, C classes, D width,
h and w cells, S side of an image in pixels, M side of the maps.
"""

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import tqdm

from timewalk.artefacts import atomic_path, read_json, sha256_json, write_json
from timewalk.config import Positive
from timewalk.data.seeds import generator, seed_of
from timewalk.data.segmented import SegmentedSet
from timewalk.data.sequences import VOID
from timewalk.encoders import encoder_digest, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.feature_file import GPU_SHARE, PART, check_finite
from timewalk.evaluation.segmentation_config import (
    SegmentationConfig,
    Side,
    WithTraining,
    scored_set,
    training_set,
)
from timewalk.evaluation.segmentation_heads import enlarged
from timewalk.evaluation.segmentation_pairs import (
    Frame,
    RandomPairs,
    SquarePairs,
    check_classes,
    check_side,
    class_counts,
    class_names,
    in_batches,
    runs_of,
    targets_of,
    title,
)
from timewalk.evaluation.segmentation_scores import class_table, percent, save_sheet, spread
from timewalk.metrics.matching import Contingency, add, contingency, matched_scores, renamed
from timewalk.ops.retrieval import Memory, cell_shares, looked_up, sampled

log = logging.getLogger(__name__)

CROPS, SAMPLES = 0, 1
"""what is drawn from the seed: crops, and the patches that stay"""
FOR_SCORES = ("map_size", "neighbours", "temperature")
"""keys that change the scores and not the memory"""
NOT_FOR_RESULTS = {"runs", "pictures", "matching"}
"""keys that change neither; matching is done anew on the counts"""
ENLARGED = 1 << 26
"""numbers that the enlarged shares of some images may be at a time: 268 MB"""


class Config(SegmentationConfig, WithTraining):
    """Segmentation by the nearest training patches."""

    kind: Literal["dense_retrieval"] = "dense_retrieval"
    image_size: Side = 512
    """side in pixels of the square to which images are resized for the encoder"""
    map_size: Side = 512
    """side in pixels of the square on which classes are compared; training masks are compared with
    the encoder's cells at image_size"""
    memory_size: Positive = 10_240_000
    """most patches that the memory holds: as many of each training image, those that show its rarer
    classes rather than others"""
    augmentation_passes: Annotated[int, Field(ge=0)] = 2
    """passes over the training images, each with crops and flips of its own; 0: one pass over the
    images as they are"""
    neighbours: Positive = 30
    """patches of the memory that a patch takes its classes from"""
    temperature: Annotated[float, Field(gt=0)] = 0.02
    """of the softmax over the neighbours' cosines"""
    matching: Literal["none", "hungarian"] = "none"
    """`hungarian`: predicted classes are matched to true ones, as the published code does though
    they are classes already"""
    features: Literal["float32", "float16"] = "float32"
    """numbers of the memory: float16 halves it and is faster on a GPU"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of crops and of the patches that stay in the memory"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Segment the images of a set by a memory of training patches, and score them.

    Args:
        inputs: the run and the sets.
        config: settings.
        output_dir: `classes.csv` and `sheet.png` go here; `work/` holds the memory's parts and the
            counts of the images that are done until the end, for an interrupted evaluation to go
            on.

    Raises:
        UserError: sets without classes or training images, masks of void alone, classes that
            training does not show, an image size or memory size that does not fit.
    """
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    check_side(encoder, config.image_size)
    scored = scored_set(inputs.dataset, config)
    names = class_names(scored, config)
    train = training_set(inputs.dataset, inputs.train_dataset, config)
    extractor = Extractor(encoder, inputs.device, config.precision, encoder.dense)
    settings = config.model_dump(mode="json", exclude=NOT_FOR_RESULTS)
    own = [settings.pop(name) for name in FOR_SCORES]
    key = sha256_json([settings, encoder_digest(inputs.run), train.digest])
    work = output_dir / "work"
    parts = write_memory(train, len(names), extractor, config, work, key, inputs.workers)
    memory = placed(read_memory(parts, getattr(torch, config.features)), inputs.device)
    size, merge = config.map_size, config.foreground_only
    pixels = class_counts(targets_of(scored.frames, size, merge, inputs.workers), len(names))
    check_classes(memory.shares.sum(0).cpu(), pixels, names, (train, scored))
    key = sha256_json([key, own, scored.digest])
    table = add(scored_parts(scored.frames, memory, extractor, config, work, key, inputs.workers))
    found = matched_scores(table, config.matching)
    files = [write_csv(output_dir / "classes.csv", class_table(found, names))]
    if places := spread(len(scored.frames), config.pictures):
        pairs = SquarePairs(scored.frames, config.image_size, size, merge)
        shown = [pairs[0, place] for place in places]
        maps = np.concatenate([segmented(x[None], memory, extractor, config) for x, _ in shown])
        if config.matching == "hungarian":
            maps = renamed(maps, found.cluster_to_class)
        truth = np.stack([classes.numpy() for _, classes in shown])
        files.append(save_sheet(output_dir, scored, places, truth, maps, names))
    shutil.rmtree(work, ignore_errors=True)
    metrics = percent(found, len(names), scored.background) | {
        "memory_patches": float(len(memory.features))
    }
    return Result(protocol(config, scored, train), metrics, len(scored.frames), files)


def protocol(config: Config, scored: SegmentedSet, train: SegmentedSet) -> str:
    """Return the protocol's name; what differs from the published one is part of it."""
    marks = {
        "memory_size": f"mem{config.memory_size}",
        "augmentation_passes": f"aug{config.augmentation_passes}",
        "neighbours": f"k{config.neighbours}",
        "temperature": f"t{config.temperature:g}",
        "features": config.features,
        "seed": f"seed{config.seed}",
    }
    fields = type(config).model_fields
    own = [mark for key, mark in marks.items() if getattr(config, key) != fields[key].default]
    matching = "" if config.matching == "none" else f"-{config.matching}"
    return "-".join([f"dense_retrieval{matching}-{title(config, scored, train)}", *own])


def write_memory(
    train: SegmentedSet,
    classes: int,
    extractor: Extractor,
    config: Config,
    work: Path,
    key: str,
    workers: int,
) -> list[Path]:
    """Write the memory in parts of a few images; those of an earlier job with this key stay.

    Raises:
        UserError: a memory smaller than the images, or cells that do not divide the image.
    """
    frames, size = train.frames, config.image_size
    passes = max(1, config.augmentation_passes)
    most = config.memory_size // (len(frames) * passes)
    if not most:
        raise UserError(
            f"memory_size is {config.memory_size} but {passes} passes over {len(frames)} training "
            f"images need {passes * len(frames)} at least; make it larger."
        )
    pairs: Dataset[tuple[Tensor, Tensor]] = SquarePairs(frames, size, size, config.foreground_only)
    if config.augmentation_passes:
        crops = seed_of(config.seed, CROPS)
        pairs = RandomPairs(frames, size, size, config.foreground_only, crops)
    runs = [[(p, i) for i in run] for p in range(passes) for run in runs_of(0, len(frames), PART)]
    paths = [work / "memory" / f"{run[0][0]}-{run[0][1]:06d}.safetensors" for run in runs]
    left = [(run, path) for run, path in zip(runs, paths, strict=True) if not _has(path, key)]
    batches = in_batches(pairs, [run for run, _ in left], workers)
    for (run, path), (images, targets) in zip(_bar(left), batches, strict=True):
        cells = unit_cells(extractor, images, train.name)
        shares = cell_shares(targets, (cells.shape[1], cells.shape[2]), classes, VOID)
        features, labels = [], []
        for (number, index), of_cells, of_classes in zip(run, cells, shares, strict=True):
            rng = generator(config.seed, SAMPLES, number, index)
            chosen = sampled(of_classes, most, rng)
            features.append(of_cells.flatten(0, 1)[chosen.to(of_cells.device)].cpu())
            labels.append(of_classes[chosen])
        kept = torch.cat(features).to(getattr(torch, config.features))
        with atomic_path(path) as temporary:
            content = {"features": kept, "shares": torch.cat(labels)}
            save_file(content, temporary, metadata={"key": key})
    return paths


def unit_cells(extractor: Extractor, images: Tensor, what: str) -> Tensor:
    """Return the features of each cell, (B, h, w, D) of unit length, on the device.

    Raises:
        UserError: features that are not finite, or cells that do not divide the image.
    """
    found = extractor(images)
    check_finite(found, f"images of '{what}'")
    size, grid = images.shape[-1], found.shape[2:]
    if any(size % cells for cells in grid):
        raise UserError(
            f"image_size is {size}, which the encoder's {grid[0]}x{grid[1]} cells do not divide; "
            "set it to a multiple of the encoder's stride."
        )
    return F.normalize(found, dim=1).permute(0, 2, 3, 1)


def read_memory(parts: Sequence[Path], numbers: torch.dtype) -> Memory:
    """Return the memory of all parts, on the CPU."""
    rows, shapes = [], [(0, 0), (0, 0)]
    for path in parts:
        with safe_open(path, "pt") as file:
            shapes = [tuple(file.get_slice(name).get_shape()) for name in ("features", "shares")]
        rows.append(shapes[0][0])
    memory = Memory(
        torch.empty(sum(rows), shapes[0][1], dtype=numbers), torch.empty(sum(rows), shapes[1][1])
    )
    places = zip(memory.features.split(rows), memory.shares.split(rows), parts, strict=True)
    for features, shares, path in places:
        with safe_open(path, "pt") as file:
            features.copy_(file.get_tensor("features"))
            shares.copy_(file.get_tensor("shares"))
    size = memory.features.nbytes + memory.shares.nbytes
    log.info("memory of %d patches: %.2f GB", sum(rows), size / 1e9)
    return memory


def placed(memory: Memory, device: torch.device) -> Memory:
    """Return the memory on the device, or on the CPU where it would take too much of a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if memory.features.nbytes + memory.shares.nbytes > GPU_SHARE * free:
            log.warning("the memory does not fit on the GPU and is copied there in parts: slow")
            return memory
    return Memory(memory.features.to(device), memory.shares.to(device))


def segmented(images: Tensor, memory: Memory, extractor: Extractor, config: Config) -> np.ndarray:
    """Return the classes of images (B, 3, S, S) in bytes, uint8 (B, M, M)."""
    cells = unit_cells(extractor, images, "the test images")
    queries = cells.flatten(0, 2)
    shares = looked_up(queries, memory, config.neighbours, config.temperature)
    maps = shares.reshape(*cells.shape[:3], -1).permute(0, 3, 1, 2)
    few = max(1, ENLARGED // (maps.shape[1] * config.map_size**2))
    found = [enlarged(part, config.map_size).argmax(1).byte() for part in maps.split(few)]
    return torch.cat(found).cpu().numpy()


def scored_parts(
    frames: Sequence[Frame],
    memory: Memory,
    extractor: Extractor,
    config: Config,
    work: Path,
    key: str,
    workers: int,
) -> list[Contingency]:
    """Return the pixels of each class in each predicted one, for a few images at a time; what an
    earlier job with this key has counted is not counted again."""
    pairs = SquarePairs(frames, config.image_size, config.map_size, config.foreground_only)
    runs = runs_of(0, len(frames), PART)
    paths = {run: work / "scores" / f"{run.start:06d}.json" for run in runs}
    notes = {run: read_json(path) for run, path in paths.items() if path.is_file()}
    notes = {run: note for run, note in notes.items() if note["key"] == key}
    left = [run for run in runs if run not in notes]
    batches = in_batches(pairs, [[(0, i) for i in run] for run in left], workers)
    for run, (images, truth) in zip(_bar(left), batches, strict=True):
        maps = segmented(images, memory, extractor, config)
        table = contingency(truth.numpy(), maps, void=VOID)
        lists = {name: value.tolist() for name, value in vars(table).items()}
        notes[run] = {"key": key, **lists}
        write_json(paths[run], notes[run])
    return [_table(notes[run]) for run in runs]


def _table(note: dict[str, Any]) -> Contingency:
    classes, clusters = (np.array(note[name], np.int64) for name in ("classes", "clusters"))
    counts = np.array(note["counts"], np.int64).reshape(len(classes), len(clusters))
    return Contingency(classes, clusters, counts)


def _has(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return bool((file.metadata() or {}).get("key") == key)


def _bar(items: Sequence[Any]) -> Any:
    return tqdm(items, unit="batch", disable=not sys.stderr.isatty())
