"""Tracking on GOT-10k without training: the first frame's box carried on by label propagation.

Source: GOT-10k and its toolkit for files and scores, CRW and DINO for the propagation. The box
becomes soft labels of cells, an encoder's features carry these through the video, and each frame's
labels become a box (`got10k_boxes.py`). Written are the official toolkit's result files and their
zip for the authors' server; where boxes are public, AO, SR and their tables and pictures.
"""

import logging
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import Positive
from timewalk.config.base import Probability
from timewalk.data.sequences import why
from timewalk.data.tracks import LabelledTracks, Track
from timewalk.encoders import Encoder, encoder_digest, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result
from timewalk.evaluation.embed import Extractor, Precision
from timewalk.evaluation.got10k_boxes import BoxFinder, Shape, first_labels
from timewalk.evaluation.got10k_files import (
    Records,
    draw_curve,
    draw_track,
    read_overlaps,
    spread,
    write_tables,
)
from timewalk.evaluation.over_videos import each_video
from timewalk.evaluation.pictures import needed
from timewalk.evaluation.protocols import PropagationConfig, Protocol, make_protocol
from timewalk.metrics.tracking import class_balanced, frames_per_second, pooled, scores
from timewalk.ops.propagation import Propagation, Propagator, normalise_channels

log = logging.getLogger(__name__)

NOT_FOR_RESULTS = {"runs", "pictures", "frames_at_once"}
"""keys that change no video's boxes, or by rounding only"""
MOST_SIMILARITIES = 1 << 27
"""of a frame's cells with those of its context that a GPU compares at once: half a gigabyte"""
SERVER = "http://got-10k.aitestunion.com"
MARKS = {"threshold": "above", "smoothing": "smooth"}
"""what a changed key is called in a protocol's name"""


class Config(PropagationConfig):
    """Tracking by label propagation on a `got10k` set."""

    kind: Literal["got10k"] = "got10k"
    protocol: Literal["dino", "crw"] = "dino"
    """whose way to propagate: context, window and numbers; sizes and labels are the tracker's"""
    short_side: Positive | None = 480
    """pixels to which frames' shorter side is brought; null: native size. Both sides are rounded to
    multiples of what the network needs"""
    first_mask: Shape = "ellipse"
    """what of the first box is the object: the ellipse within it, or all"""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """label above which a cell speaks for being inside the box"""
    smoothing: Probability = 0.5
    """share of the previous box's size in a new one's"""
    precision: Precision = "fp32"
    """arithmetic of the network"""
    frames_at_once: Positive = 4
    """frames that pass through the network together; changes speed and memory, boxes only by
    rounding"""
    pictures: Annotated[int, Field(ge=0)] = 6
    """sequences of which a picture is drawn; 0: none, and no plot of the success curve"""


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Track every sequence, write the official files, and score them where that is possible.

    Args:
        inputs: the run and the prepared set.
        config: settings.
        output_dir: `GOT-10k/<run>/<sequence>/<sequence>_001.txt` and `..._time.txt`,
            `GOT-10k/<run>.zip`, `sequences.csv`, `success_curve.csv`, `success_curve.png` and
            `pictures/<sequence>.png` go here, and notes of what is done into `work/`.

    Returns:
        AO, SR and their class-balanced means in percent, None where boxes are withheld, and frames
        per second.

    Raises:
        UserError: a set of another kind, or sequences that failed; the others are kept.
    """
    tracks = LabelledTracks(inputs.dataset)
    if config.pictures:
        needed("matplotlib.figure")  # said before the work, not after it
    encoder = load_encoder(inputs.run).eval().requires_grad_(False).to(inputs.device)
    records = Records(output_dir / "GOT-10k" / inputs.run.name)

    def do(track: Track) -> dict[str, Any]:
        found = follow(track, encoder, config, inputs.device, inputs.workers)
        records.write(track.name, found.boxes, found.seconds)
        return {"lost": found.lost}

    key = {
        "encoder": encoder_digest(inputs.run),
        "dataset": tracks.about["digest"],
        "config": config.model_dump(mode="json", exclude=NOT_FOR_RESULTS),
    }
    kept = {track.name for track in tracks if records.complete(track.name)}
    notes = each_video(tracks, output_dir / "work", key, do, kept=kept)
    lost = {name: int(note["lost"]) for name, note in notes.items()}
    metrics, files = _scored(records, tracks, lost, output_dir, config)
    files.append(records.write_zip([track.name for track in tracks]))
    return Result(protocol(config, encoder, tracks.title), metrics, len(tracks), files)


def protocol(config: Config, encoder: Encoder, data_title: str) -> str:
    """Return the name under which results are compared: all that changes them but the encoder."""
    side = "native" if config.short_side is None else f"{config.short_side}px"
    title = f"{data_title}-labelprop-{propagation(config, encoder).title}-{side}"
    for key, mark in MARKS.items():
        value = getattr(config, key)
        if value != Config.model_fields[key].default:
            title += f"-{mark}{value:g}"
    for key in ("first_mask", "precision"):
        value = getattr(config, key)
        if value != Config.model_fields[key].default:
            title += f"-{value}"
    return title


@dataclass(frozen=True)
class Followed:
    """What a tracker says of a sequence of T frames.

    Attributes:
        boxes: float64 (T, 4), the given one first.
        seconds: float64 (T,) from file to box.
        lost: frames in which nothing was left of the object.
    """

    boxes: np.ndarray
    seconds: np.ndarray
    lost: int


def follow(
    track: Track, encoder: Encoder, config: Config, device: torch.device, workers: int = 0
) -> Followed:
    """Track one object; what is held grows with the context, not with the video.

    Args:
        track: frames and the first box.
        encoder: in eval mode, on the device.
        config: settings.
        device: where to compute.
        workers: threads that read frames ahead, at least one.

    Raises:
        UserError: a frame cannot be read or has another size, or features are not finite.
    """
    size = input_size(track.size, config.short_side, lcm(encoder.multiple, encoder.stride))
    extractor = Extractor(encoder, device, config.precision, encoder.dense)
    settings = propagation(config, encoder).propagation
    boxes, seconds = [np.array(track.boxes[0], float)], list[float]()
    propagator: Propagator | None = None
    started = time.perf_counter()
    for batch in read_ahead(track, size, config.frames_at_once, max(1, workers)):
        maps = extractor(batch)
        if not bool(maps.isfinite().all()):
            raise UserError(
                f"{track.frames[0].parent}: the encoder gives features that are not finite; train "
                "it again."
            )
        if config.upsample > 1:
            maps = F.interpolate(maps, scale_factor=config.upsample, mode="bilinear")
        if propagator is None:
            grid = (maps.shape[2], maps.shape[3])
            labels = first_labels(boxes[0], track.size, grid, config.first_mask)
            finder = BoxFinder(
                boxes[0], labels[1].numpy(), track.size, config.threshold, config.smoothing
            )
            tile = one_tile(settings, grid, device)
            # Background counts only against the object in the same cell.
            carried = labels if config.norm_mask else labels[1:]
            propagator = Propagator(settings, maps[0], carried.to(device), tile)
            maps = maps[1:]
        # One transfer a batch: on a GPU each waits for all that was asked of it before.
        found = [_shown(propagator.step(features), config) for features in maps]
        boxes += [finder(one) for one in torch.stack(found).cpu().numpy()] if found else []
        ended = time.perf_counter()
        seconds += [(ended - started) / len(batch)] * len(batch)
        started = ended
    return Followed(np.stack(boxes), np.array(seconds), finder.lost)


def _shown(labels: Tensor, config: Config) -> Tensor:
    """Return the object's labels (h, w) of which the box is made."""
    return (normalise_channels(labels, 0) if config.norm_mask else labels)[-1]


def one_tile(
    settings: Propagation, grid: tuple[int, int], device: torch.device
) -> tuple[int, int] | None:
    """Return the whole grid as the propagator's tile where a GPU's memory allows it; None: as fits
    the device. A small grid in tiles is all launches and waiting."""
    similarities = (settings.context + 1) * (grid[0] * grid[1]) ** 2
    return grid if device.type == "cuda" and similarities <= MOST_SIMILARITIES else None


def propagation(config: Config, encoder: Encoder) -> Protocol:
    """Return how labels are propagated; of the protocol's sizes and colours nothing is used."""
    return make_protocol(config.protocol, config, encoder)


def input_size(size: tuple[int, int], short_side: int | None, unit: int) -> tuple[int, int]:
    """Return (height, width) of what the network sees: in proportion, in multiples of ``unit``."""
    scale = 1.0 if short_side is None else short_side / min(size)
    height, width = (max(1, round(side * scale / unit)) * unit for side in size)
    return height, width


def read_ahead(
    track: Track, size: tuple[int, int], batch_size: int, threads: int
) -> Iterator[Tensor]:
    """Yield a sequence's frames, uint8 (B, 3, h, w), while threads read the next two batches."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Tensor]] = deque()
        waiting = iter(track.frames)

        def ask() -> None:
            if (path := next(waiting, None)) is not None:
                ahead.append(pool.submit(read_small, path, track.size, size))

        for _ in range(2 * batch_size):
            ask()
        while ahead:
            batch = []
            for _ in range(min(batch_size, len(ahead))):
                batch.append(ahead.popleft().result())
                ask()
            yield torch.stack(batch)


def read_small(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Return a frame of (height, width) ``size`` at the ``wanted`` one, uint8 (3, h, w).

    Large JPEGs are decoded at a half, a quarter or an eighth, never below what is wanted.

    Raises:
        UserError: unreadable, or of another size.
    """
    try:
        with Image.open(path) as image:
            found = (image.height, image.width)
            image.draft("RGB", (wanted[1], wanted[0]))
            image.load()
            small = image.convert("RGB").resize((wanted[1], wanted[0]), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({why(error)}); restore the published file."
        ) from None
    if found != size:
        raise UserError(
            f"{path} is {found[1]}x{found[0]} pixels, not {size[1]}x{size[0]} as its sequence; "
            "restore the published file."
        )
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _scored(
    records: Records,
    tracks: LabelledTracks,
    lost: dict[str, int],
    folder: Path,
    config: Config,
) -> tuple[dict[str, float | None], list[Path]]:
    """Return metrics, and the tables and pictures."""
    drawn = spread(list(tracks), config.pictures)
    shutil.rmtree(folder / "pictures", ignore_errors=True)  # perhaps of other settings
    files = [draw_track(folder / "pictures", records, track) for track in drawn]
    seconds = np.concatenate([records.seconds(track.name) for track in tracks])
    speed = {"fps": frames_per_second(seconds)}
    if not tracks.scored:
        log.warning(
            "the boxes of '%s' are withheld: for its scores bring %s to %s",
            tracks.subset,
            records.zip_path,
            SERVER,
        )
        names = ("ao", "sr50", "sr75", "mao", "msr50", "msr75")
        return {**dict.fromkeys(names), **speed}, files
    found = {track.name: read_overlaps(records, track) for track in tracks}
    classes = {track.name: track.object_class or "" for track in tracks}
    joint = pooled(found.values())
    shares = scores(joint)
    if all(classes.values()):
        shares |= class_balanced(found, classes)
    percent = {name: None if share is None else 100 * share for name, share in shares.items()}
    files = [*write_tables(folder, tracks, found, lost, records), *files]
    if config.pictures:
        files.append(draw_curve(folder / "success_curve.png", joint, records.tracker))
    return {**percent, **speed}, files
