"""Where a ViT's class token looks in the last block: a picture a head, and its largest mass.

Source: DINO (ICCV 2021), its figures of the heads and the tool released with them. For each image
one sheet: above, the image and every head's attention as a heat map; below, the smallest set of
patches that holds a share of each head's attention, coloured over the image with its outline.

Shapes: B images, H heads, h and w rows and columns of patches, S side of the image in pixels.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from timewalk.artefacts import write_text
from timewalk.config import EvaluationConfig, Positive
from timewalk.data.images import to_rgb
from timewalk.data.labelled import LabelledImages
from timewalk.encoders import Encoder, load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs, Result, write_csv
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.pictures import balanced, enlarge, grid, heat, save_png
from timewalk.ops.attention import keep_mass

BATCH = 8
ALPHA = 0.5
OUTLINE = 2
"""width in pixels of the line around the kept patches"""
OVERVIEW_SIDE = 160
"""pixels of a picture on the overview sheet"""
COLOURS = ((230, 60, 60), (60, 120, 240), (250, 200, 40), (60, 190, 100), (180, 80, 220))


class Config(EvaluationConfig):
    """Pictures of the last block's attention heads."""

    kind: Literal["attention"] = "attention"
    images: Positive = 8
    """images of the test split, as many of each class"""
    size: Annotated[int, Field(ge=16)] = 480
    """side in pixels to which images are resized, whatever their shape; cut to whole patches"""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """share of a head's attention that the kept patches hold"""
    separate: bool = False
    """also write each head's heat map as a file of its own"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """seed of the choice of images"""


@dataclass(frozen=True)
class Seen:
    """What is drawn of one image.

    Attributes:
        place: its number in the split.
        pixels: uint8 (S, S, 3).
        attention: (H, h, w) float32.
        kept: (H, h, w) bool, the patches that hold the share.
    """

    place: int
    pixels: np.ndarray
    attention: np.ndarray
    kept: np.ndarray


def evaluate(inputs: Inputs, config: Config, output_dir: Path) -> Result:
    """Draw the attention heads of some test images.

    Args:
        inputs: the run and the labelled set.
        config: settings.
        output_dir: `overview.png`, one PNG an image and `heads.csv` go here; a network without
            attention heads leaves `note.txt` instead.

    Raises:
        UserError: an unreadable image, or a size below one patch.
    """
    encoder = load_encoder(inputs.run).eval().to(inputs.device)
    images = LabelledImages(inputs.dataset, "test")
    if encoder.spec["family"] != "vit":
        note = output_dir / "note.txt"
        write_text(note, f"The encoder ({encoder.spec.get('name')}) has no attention heads.\n")
        return Result("attention-none", {"heads": 0.0}, 0, [note])
    side = config.size // encoder.stride * encoder.stride
    if side == 0:
        raise UserError(
            f"size is {config.size} but a patch of the encoder is {encoder.stride} pixels wide; "
            "make size larger."
        )
    chosen = balanced(images.labels, config.images, config.seed)
    seen = look(encoder, images, chosen, config, side, inputs.device)
    output_dir.mkdir(parents=True, exist_ok=True)
    files = [save_png(output_dir / "overview.png", overview(seen, encoder.stride))]
    for item in seen:
        stem = f"{item.place:06d}"
        files.append(save_png(output_dir / f"{stem}.png", sheet(item, encoder.stride)))
        if config.separate:
            for number, values in enumerate(item.attention, start=1):
                picture = enlarge(heat(values), encoder.stride)
                files.append(save_png(output_dir / f"{stem}-head{number}.png", picture))
    rows = [row for item in seen for row in _rows(item, images)]
    header = ["image", "class", "head", "entropy", "kept_share"]
    files.append(write_csv(output_dir / "heads.csv", [header, *rows]))
    protocol = f"attention-s{side}-t{config.threshold:g}"
    return Result(protocol, summary(seen), len(seen), files)


def look(
    encoder: Encoder,
    images: LabelledImages,
    chosen: list[int],
    config: Config,
    side: int,
    device: torch.device,
) -> list[Seen]:
    """Return the attention of some images, in batches."""
    vit: Any = encoder
    extractor = Extractor(encoder, device, features=vit.cls_attention)
    seen = []
    for start in range(0, len(chosen), BATCH):
        places = chosen[start : start + BATCH]
        pixels = [_resized(images.open(place), config.size, side) for place in places]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        heads_BHhw = extractor(batch).cpu()
        kept = keep_mass(heads_BHhw.flatten(2), config.threshold).reshape(heads_BHhw.shape)
        seen += [
            Seen(place, image, attention.numpy(), mask.numpy())
            for place, image, attention, mask in zip(places, pixels, heads_BHhw, kept, strict=True)
        ]
    return seen


def _resized(image: Image.Image, size: int, side: int) -> np.ndarray:
    resized = to_rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)[:side, :side].copy()


def entropy(attention: np.ndarray) -> float:
    """Return the entropy in bits of a head's attention over patches, brought to sum 1."""
    share = attention.astype(np.float64) / attention.sum(dtype=np.float64)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def summary(seen: list[Seen]) -> dict[str, float | None]:
    """Return means over images and heads; `heads.csv` has each."""
    entropies = np.array([[entropy(head) for head in item.attention] for item in seen])
    kept = np.array([item.kept.mean(axis=(1, 2)) for item in seen])
    return {"entropy_bits": float(entropies.mean()), "kept_percent": 100 * float(kept.mean())}


def _rows(item: Seen, images: LabelledImages) -> list[list[object]]:
    name = images.classes[int(images.labels[item.place])]
    return [
        [item.place, name, number, f"{entropy(head):.6g}", f"{mask.mean():.6g}"]
        for number, (head, mask) in enumerate(zip(item.attention, item.kept, strict=True), start=1)
    ]


def sheet(item: Seen, stride: int) -> np.ndarray:
    """Return one image's picture: image and heat maps, below them the kept patches."""
    maps = [enlarge(heat(values), stride) for values in item.attention]
    blank = np.full_like(item.pixels, 255)
    over = [
        overlay(item.pixels, enlarge(mask, stride), COLOURS[number % len(COLOURS)])
        for number, mask in enumerate(item.kept)
    ]
    return grid([[item.pixels, *maps], [blank, *over]])


def overlay(pixels: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return an image with a mask (S, S) laid over it in half-transparent colour, and outlined."""
    tint = np.asarray(colour, np.float32)
    mixed = np.where(mask[..., None], (1 - ALPHA) * pixels + ALPHA * tint, pixels)
    mixed[outline(mask)] = tint
    return mixed.round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of a mask; the image's border counts as outside."""
    inside = mask
    for _ in range(OUTLINE):
        padded = np.pad(inside, 1)
        inside = (
            padded[1:-1, 1:-1]
            & padded[:-2, 1:-1]
            & padded[2:, 1:-1]
            & padded[1:-1, :-2]
            & padded[1:-1, 2:]
        )
    return mask & ~inside


def overview(seen: list[Seen], stride: int) -> np.ndarray:
    """Return all images' first rows, small."""
    side = seen[0].pixels.shape[0]
    step = max(1, math.ceil(side / OVERVIEW_SIDE))
    rows = []
    for item in seen:
        maps = [enlarge(heat(values), stride) for values in item.attention]
        rows.append([picture[::step, ::step] for picture in (item.pixels, *maps)])
    return grid(rows)
