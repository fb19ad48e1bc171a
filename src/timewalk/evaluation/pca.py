"""Patch features as colours: their three principal components as red, green and blue.

One basis for all images of the figure, and one for each video, so that a colour means the same
everywhere in it. Components are those of the centred patch features of all images together; each is
stretched between its 1st and 99th percentile.

Shapes: N images, C channels of the patch map, h and w its rows and columns, P patches in all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from timewalk.artefacts import read_manifest
from timewalk.config import EvaluationConfig, Name, Positive
from timewalk.data.folder import frame_path, load_times
from timewalk.data.images import to_rgb
from timewalk.data.labelled import LabelledImages
from timewalk.encoders import Encoder, load_encoder
from timewalk.errors import UserError, reason
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.pictures import balanced, enlarge, grid, save_png

BATCH = 8
BASIS_FRAMES = 64
"""frames of a video that its basis is made of, spread evenly"""
COLUMNS = 3
"""pairs of image and map in a row of the figure"""


class Config(EvaluationConfig):
    """Patch features as colours, of test images and of videos."""

    kind: Literal["pca"] = "pca"
    images: Positive = 12
    """images of the test split, as many of each class"""
    size: Annotated[int, Field(ge=16)] = 448
    """shorter side in pixels to which images and frames are resized; cut to whole patches"""
    foreground: bool = False
    """split the patches in two by the first component, keep the part that touches the images'
    borders less, and make the components of that part alone; the rest is black"""
    frames: Name | None = None
    """name of a data set, of `datasets:`, whose videos are drawn too; null: no video"""
    max_frames: Positive = 300
    """frames of each video at most, from its beginning"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of the choice of images"""


@dataclass(frozen=True)
class Basis:
    """Three principal components and their stretch.

    Attributes:
        mean: (C,).
        components: (C, 3), of length 1.
        low: (3,) value that becomes 0.
        high: (3,) value that becomes 1.
        explained: (3,) share of the variance.
        split: mean and first component (C,) of all patches, where only foreground has colours.
        side: +1 or -1, on which side of the split foreground lies.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: list[float]
    split: tuple[Tensor, Tensor] | None = None
    side: float = 1.0


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Draw the figure, and a video of each video of the data set that ``frames`` names.

    Args:
        inputs: the run, the labelled set, and the frames' manifests.
        config: settings.
        output_dir: `figure.png`, `explained.csv` and `<video>.mp4` go here.

    Raises:
        UserError: an unreadable image or frame, or one smaller than a patch.
    """
    encoder = load_encoder(inputs.run).eval().to(inputs.device)
    extractor = Extractor(encoder, inputs.device, features=lambda x: encoder(x).patches)
    images = LabelledImages(inputs.dataset, "test")
    chosen = balanced(images.labels, config.images, config.seed)
    pictures = [fitted(to_rgb(images.open(n)), config.size, encoder.stride) for n in chosen]
    maps = patch_maps(extractor, pictures)
    basis = fit(maps, config.foreground)
    pairs = [
        picture_pair(image, colours(features, basis), encoder.stride)
        for image, features in zip(pictures, maps, strict=True)
    ]
    rows = [
        [picture for pair in pairs[n : n + COLUMNS] for picture in pair]
        for n in range(0, len(pairs), COLUMNS)
    ]
    output_dir.mkdir(parents=True, exist_ok=True)
    files = [save_png(output_dir / "figure.png", grid(rows))]
    explained = {"images": basis.explained}
    for manifest in inputs.frames:
        name, video_basis, path = draw_video(extractor, encoder, manifest, config, output_dir)
        explained[name] = video_basis.explained
        files.append(path)
    table = [[name, *(f"{100 * x:.4g}" for x in shares)] for name, shares in explained.items()]
    header = ["of", "component1", "component2", "component3"]
    files.append(write_csv(output_dir / "explained.csv", [header, *table]))
    metrics: dict[str, float | None] = {
        f"explained_percent_{n}": 100 * x for n, x in enumerate(basis.explained, start=1)
    }
    kind = "-foreground" if config.foreground else ""
    return Result(f"pca-s{config.size}{kind}", metrics, len(chosen), files)


def fitted(image: Image.Image, short_side: int, stride: int) -> np.ndarray:
    """Return an image resized by its short side, both sides then cut to multiples of the stride.

    Returns:
        uint8 (H, W, 3).
    """
    factor = short_side / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = height // stride * stride, width // stride * stride
    if not rows or not columns:
        raise UserError(
            f"size is {short_side} but a cell of the encoder's map is {stride} pixels wide; make "
            "size larger."
        )
    return np.asarray(resized)[:rows, :columns].copy()


def patch_maps(extractor: Extractor, pictures: Sequence[np.ndarray]) -> list[Tensor]:
    """Return the patch map (C, h, w) of each image, those of one size in batches together."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        sizes.setdefault(picture.shape, []).append(number)
    maps: dict[int, Tensor] = {}
    for numbers in sizes.values():
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            batch = torch.from_numpy(np.stack([pictures[n] for n in part])).permute(0, 3, 1, 2)
            maps |= dict(zip(part, extractor(batch).cpu(), strict=True))
    return [maps[number] for number in range(len(pictures))]


def fit(maps: Sequence[Tensor], foreground: bool = False) -> Basis:
    """Return the basis of some patch maps (C, h, w)."""
    patches_PC = torch.cat([features.flatten(1).T for features in maps]).double()
    if not foreground:
        return _basis(patches_PC)
    first = _basis(patches_PC)
    split = (first.mean, first.components[:, 0])
    score_P = (patches_PC - split[0]) @ split[1]
    border_P = torch.cat([_border(features).flatten() for features in maps])
    # What is seen rather than what surrounds it touches the borders less.
    above, below = border_P[score_P > 0], border_P[score_P <= 0]
    side = 1.0 if above.double().mean() <= below.double().mean() else -1.0
    inside = patches_PC[score_P * side > 0]
    basis = _basis(inside if len(inside) > COLUMNS else patches_PC)
    return Basis(basis.mean, basis.components, basis.low, basis.high, basis.explained, split, side)


def _basis(patches_PC: Tensor) -> Basis:
    mean = patches_PC.mean(dim=0)
    centred = patches_PC - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    components = vectors[:, -3:].flip(1)
    # A component's sign is arbitrary: its largest entry becomes positive.
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    total = values.clamp(min=0).sum().clamp(min=torch.finfo(values.dtype).tiny)
    explained = (values[-3:].flip(0).clamp(min=0) / total).tolist()
    projected = (centred @ components).numpy()
    low, high = (torch.from_numpy(np.percentile(projected, p, axis=0)) for p in (1, 99))
    return Basis(mean, components, low, high, explained)


def _border(features: Tensor) -> Tensor:
    """(h, w) bool: the outermost cells."""
    mask = torch.ones(features.shape[1:], dtype=torch.bool)
    mask[1:-1, 1:-1] = False
    return mask


def colours(features: Tensor, basis: Basis) -> np.ndarray:
    """Return a patch map (C, h, w) in the colours of a basis, uint8 (h, w, 3)."""
    patches_PC = features.flatten(1).T.double()
    span = (basis.high - basis.low).clamp(min=1e-12)
    shares = (((patches_PC - basis.mean) @ basis.components - basis.low) / span).clamp(0, 1)
    if basis.split is not None:
        mean, axis = basis.split
        shares[((patches_PC - mean) @ axis) * basis.side <= 0] = 0
    pixels = (shares * 255).round().to(torch.uint8).numpy()
    return pixels.reshape(*features.shape[1:], 3)


def picture_pair(image: np.ndarray, cells: np.ndarray, stride: int) -> list[np.ndarray]:
    """Return an image and its map at the image's size."""
    rows, columns = image.shape[:2]
    return [image, enlarge(cells, stride)[:rows, :columns]]


def draw_video(
    extractor: Extractor, encoder: Encoder, manifest: Path, config: Config, output_dir: Path
) -> tuple[str, Basis, Path]:
    """Write a video of a video's frames beside their maps; return its name, basis and file."""
    from timewalk.video.write import write_mp4

    about = read_manifest(manifest, "frames")
    folder = manifest.parent
    times = load_times(folder, about)[: config.max_frames]

    def frames(numbers: Sequence[int]) -> list[np.ndarray]:
        return [_frame(frame_path(folder, n), config.size, encoder.stride) for n in numbers]

    sample = np.linspace(0, len(times) - 1, min(BASIS_FRAMES, len(times))).round().astype(int)
    basis = fit(patch_maps(extractor, frames(sample.tolist())), config.foreground)

    def drawn() -> Iterator[np.ndarray]:
        for start in range(0, len(times), BATCH):
            part = frames(range(start, min(start + BATCH, len(times))))
            for image, features in zip(part, patch_maps(extractor, part), strict=True):
                yield np.concatenate(
                    picture_pair(image, colours(features, basis), encoder.stride), axis=1
                )

    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    path = output_dir / f"{folder.name}.mp4"
    write_mp4(path, drawn(), 1.0 / step)
    return folder.name, basis, path


def _frame(path: Path, size: int, stride: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return fitted(image.convert("RGB"), size, stride)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); run the frames stage again."
        ) from None
