"""Per-frame embeddings of whole videos, computed once a run.

Source: TCC's released code. Every frame passes the encoder once; the maps of a frame's context come
from memory, where the last ones are kept. Context is counted in frames that are kept: with stride k
it reaches k times as far. A run without an embedder gives the encoder's summary of each frame.

Shapes: N frames of a chunk, C context frames, c h w channels, rows and columns of a map, D width.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from timewalk.artefacts import read_json, sha256_file, version
from timewalk.data.phase_views import still_window
from timewalk.data.phases import KIND, PhaseVideo, PhaseVideos
from timewalk.data.views import crop_resize
from timewalk.encoders import load_encoder
from timewalk.encoders.embedders import TrainedEmbedder, load_embedder, side_of_frames
from timewalk.encoders.files import HEAD
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, check_origin, check_split
from timewalk.evaluation.embed import Extractor, embed
from timewalk.evaluation.phase_sequences import (
    NPY,
    PhaseEmbeddings,
    PhaseSequence,
    check_widths,
    load_phase_embeddings,
    save_phase_embeddings,
    save_published,
)

__all__ = [
    "PhaseEmbeddings",
    "PhaseSequence",
    "embed_phases",
    "embed_split",
    "load_both",
    "load_phase_embeddings",
    "phase_names",
]

log = logging.getLogger(__name__)

Split = Literal["train", "test"]
Format = Literal["safetensors", "npy"]

ALIKE = (
    "encoder_sha256",
    "head_sha256",
    "dataset_sha256",
    "image_size",
    "crop",
    "stride",
    "max_videos",
)
"""what files of both splits say alike"""
FRAMES_PER_BATCH = 25


def embed_split(
    run: Path,
    manifest: Path,
    split: Split,
    output: Path,
    *,
    device: str | torch.device = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Compute what evaluations of a labelled set read, whatever the set is made of.

    Returns:
        counts: images or frames, width.

    Raises:
        UserError: see :func:`embed_phases` and :func:`timewalk.evaluation.embed.embed`.
    """
    if holds_phases(manifest):
        return embed_phases(run, manifest, split, output, device=device)
    return embed(run, manifest, split, output, workers=workers, device=device)


def holds_phases(manifest: Path) -> bool:
    """Return whether a labelled set is one of videos with phases."""
    return bool(read_json(manifest).get("kind") == KIND)


def embed_phases(
    run: Path,
    manifest: Path,
    split: Split,
    output: Path,
    *,
    frames_per_batch: int = FRAMES_PER_BATCH,
    max_videos: int = 0,
    keep_frames: bool = False,
    form: Format | None = None,
    device: str | torch.device = "auto",
) -> dict[str, Any]:
    """Compute the embedding of each frame of each video of a split and write them.

    Args:
        run: a run's folder.
        manifest: the set's ``manifest.json``.
        split: `train` or `test`.
        output: the file.
        frames_per_batch: frames at a time; changes speed and memory, results only by rounding.
        max_videos: only the first videos, which the name of every protocol then says; 0: all.
        keep_frames: keep the frames that the network saw beside their embeddings, `npy` alone.
        form: `npy` is the TCC tools' file; None: by the output's suffix.
        device: `auto` is the first GPU, or the CPU where there is none.

    Returns:
        counts: videos, frames, dropped, width, and the device.

    Raises:
        UserError: an unreadable frame or encoder, a size that does not fit the encoder, or a video
            none of whose embeddings is finite.
    """
    form = form or ("npy" if output.suffix == NPY else "safetensors")
    if keep_frames and form != "npy":
        raise UserError(f"{output}: frames are kept in the format npy alone; add --format npy.")
    videos = PhaseVideos(manifest, split)
    network = _Network(run, videos.settings, device, frames_per_batch)
    chosen = [videos[i] for i in range(len(videos))][: max_videos or None]
    found, dropped = [], 0
    with tqdm(total=len(chosen), unit="video", disable=not sys.stderr.isatty()) as bar:
        for video in chosen:
            sequence, lost = _embed_video(network, video, keep_frames)
            found.append(sequence)
            dropped += lost
            bar.update()
    about = _about(run, manifest, videos, split, network) | {"max_videos": max_videos}
    result = PhaseEmbeddings(found, videos.classes, about)
    (save_published if form == "npy" else save_phase_embeddings)(output, result)
    return {
        "videos": len(found),
        "frames": sum(len(x.steps) for x in found),
        "dropped": dropped,
        "width": found[0].embeddings.shape[1],
        "device": network.device.type,
    }


def _about(
    run: Path, manifest: Path, videos: PhaseVideos, split: Split, network: "_Network"
) -> dict[str, Any]:
    head = run / HEAD
    return {
        "encoder_sha256": sha256_file(run / "encoder.safetensors"),
        "head_sha256": sha256_file(head) if head.exists() else None,
        "dataset": videos.name,
        "dataset_sha256": sha256_file(manifest),
        "split": split,
        "precision": "fp32",
        "timewalk": version(),
        "image_size": network.size,
        "crop": network.crop,
        "stride": network.stride,
        "context": network.context,
        "context_step": network.context_step,
    }


@dataclass
class _Stream:
    """What is kept of a video from chunk to chunk: maps from frame ``first`` on, and a state."""

    first: int = 0
    maps: Tensor | None = None
    state: Any = None


class _Network:
    """Frames of a video to embeddings, chunk by chunk.

    Attributes:
        size: side in pixels of the square frames.
        stride: every how many-th frame is embedded.
        context: C.
        context_step: kept frames between those of the context.
        crop: whether a frame's largest central square is taken, not the whole frame.
    """

    def __init__(
        self, run: Path, settings: dict[str, Any], device: str | torch.device, batch: int
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device, self.batch = torch.device(device), batch
        encoder = load_encoder(run).eval().to(self.device)
        head: TrainedEmbedder | None = load_embedder(run)
        about = head.about if head else {}
        self.size = side_of_frames(head, settings.get("image_size"))
        self.stride = int(settings.get("stride") or 1)
        self.context = int(about.get("context", 1))
        self.context_step = int(about.get("context_step", 0))
        self.crop = bool(about.get("crop", False))
        self.embedder = head.embedder.to(self.device) if head else None
        if self.size % encoder.multiple:
            raise UserError(
                f"{run}: frames of {self.size} pixels do not fit its encoder; set the set's "
                f"image_size to a multiple of {encoder.multiple}."
            )
        features = encoder.dense if self.embedder else encoder.summary
        self._extract = Extractor(encoder, self.device, features=features)

    def resized(self, frames: Tensor) -> Tensor:
        """Return frames (N, 3, H, W), 0 to 255, as squares: bilinear, without antialias; of a run
        that learnt from random crops their largest central square."""
        window = still_window(frames.shape[-2], frames.shape[-1], self.crop)
        return crop_resize(frames.to(self.device, non_blocking=True), window, self.size)

    @torch.no_grad()
    def embed(self, squares: Tensor, start: int, stream: _Stream) -> Tensor:
        """Return the embeddings (N, D) of the frames from ``start`` on."""
        fresh = self._extract(squares)
        if self.embedder is None:
            return fresh
        reach = (self.context - 1) * self.context_step
        first = max(0, start - reach)
        if stream.maps is not None:
            fresh = torch.cat([stream.maps[first - stream.first :], fresh])
        stream.first, stream.maps = first, fresh
        frames = torch.arange(start, start + len(squares), device=self.device)
        ago = torch.arange(self.context - 1, -1, -1, device=self.device) * self.context_step
        places = (frames[:, None] - ago).clamp_min(0) - first
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            found, stream.state = self.embedder.stream(fresh[places], stream.state)
        return found


def _embed_video(
    network: _Network, video: PhaseVideo, keep_frames: bool
) -> tuple[PhaseSequence, int]:
    """Return a video's sequence, and how many frames were left out of it."""
    steps = np.arange(0, len(video), network.stride)
    stream, rows, pictures = _Stream(), [], []
    start = 0
    for frames in _chunks(video.frames, steps, network.batch):
        squares = network.resized(frames)
        rows.append(network.embed(squares, start, stream).float().cpu())
        start += len(squares)
        if keep_frames:
            pictures.append((squares / 127.5 - 1).permute(0, 2, 3, 1).cpu().numpy())
    embeddings = torch.cat(rows).numpy()
    good = np.isfinite(embeddings).all(1)
    if not good.any():
        raise UserError(
            f"none of the embeddings of the video '{video.name}' is finite; train the run again."
        )
    lost = int((~good).sum())
    if lost:
        log.warning("video %s: %d frames without finite embedding left out", video.name, lost)
    kept = steps[good]
    sequence = PhaseSequence(
        video.name,
        embeddings[good],
        None if video.labels is None else video.labels[kept].astype(np.int64),
        kept,
        video.action,
        np.concatenate(pictures)[good] if keep_frames else None,
    )
    return sequence, lost


def _chunks(read: Callable[[list[int]], Tensor], steps: np.ndarray, size: int) -> Iterator[Tensor]:
    """Yield frames in chunks; while one is computed on, the next is decoded."""
    parts = [steps[i : i + size].tolist() for i in range(0, len(steps), size)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, parts[0])
        for part in parts[1:]:
            frames = waiting.result()
            waiting = pool.submit(read, part)
            yield frames
        yield waiting.result()


def load_both(inputs: Inputs) -> tuple[PhaseEmbeddings, PhaseEmbeddings]:
    """Return the embeddings of the training and of the test split.

    Raises:
        UserError: the two files do not belong together, or not to the run, the set or the split
            that they are named for, or videos are of several actions.
    """
    assert inputs.train is not None
    assert inputs.test is not None
    train, test = load_phase_embeddings(inputs.train), load_phase_embeddings(inputs.test)
    for key in ALIKE:
        if train.about.get(key) != test.about.get(key):
            raise UserError(
                f"{inputs.train} and {inputs.test} differ in {key}: run the embed stage again for "
                "both."
            )
    for path, found, split in ((inputs.train, train, "train"), (inputs.test, test, "test")):
        check_split(path, found.about, split)
        check_origin(path, found.about, inputs)
    check_widths([(inputs.train, train.videos[0]), (inputs.test, test.videos[0])])
    if len({video.action for part in (train, test) for video in part.videos}) > 1:
        raise UserError(
            f"the set '{name_of(inputs, test)}' holds videos of several actions; name a set of one."
        )
    return train, test


def name_of(inputs: Inputs, found: PhaseEmbeddings) -> str:
    """Return the set's name for sentences."""
    return str(found.about.get("dataset", inputs.dataset))


def phase_names(inputs: Inputs, train: PhaseEmbeddings, test: PhaseEmbeddings) -> list[str]:
    """Return the names of the phases, numbers where the set gives no names.

    Raises:
        UserError: a frame has no label.
    """
    videos = [*train.videos, *test.videos]
    labels = [video.labels for video in videos if video.labels is not None]
    if len(labels) < len(videos) or min(int(y.min()) for y in labels) < 0:
        raise UserError(
            f"the set '{name_of(inputs, test)}' has frames without labels of phases; give it a "
            "label_file, or evaluate by kendalls_tau, which needs none."
        )
    count = 1 + max(int(y.max()) for y in labels)
    names = test.classes
    return names if len(names) >= count else [*names, *map(str, range(len(names), count))]
