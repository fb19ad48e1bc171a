"""The published protocols of label propagation, as settings that a network completes.

Source: CRW, DINO, SMTC and their released code. They propagate labels in ways that differ by
several points; whatever a run changes of a protocol stands in the result's protocol name.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from timewalk.config import EvaluationConfig, Positive
from timewalk.encoders import Encoder
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Triple
from timewalk.errors import UserError
from timewalk.ops.propagation import Propagation

ProtocolName = Literal["crw", "dino", "smtc"]
Above0 = Annotated[float, Field(gt=0)]

DINO_STD = (0.228, 0.224, 0.225)
DINO_SHORT_SIDE, DINO_MULTIPLE = 480, 64
COARSE = 16
"""stride in pixels from which SMTC's settings for coarse maps hold"""


class PropagationConfig(EvaluationConfig):
    """Keys that evaluations by label propagation share; null: as the protocol says."""

    context: Positive | None = None
    """previous frames that a frame takes labels from, besides the first"""
    top_k: Positive | None = None
    """neighbours that vote for a cell"""
    radius: Annotated[float, Field(ge=0)] | None = None
    """how far in cells of the map a neighbour may lie; 0: no limit"""
    temperature: Above0 | None = None
    """of the softmax over the neighbours' cosine similarities"""
    upsample: Literal[1, 2] = 1
    """factor by which the features' map is enlarged before propagation (bilinear)"""
    long_term: list[Annotated[int, Field(ge=0)]] = [0]
    """frames that stay in context (protocols crw and smtc; CRW's numbering: m > 0 stands for frame
    m + 1 once it has left the context)"""
    norm_mask: bool = False
    """bring each cell's channels to 0..1 before the output (CRW's option)"""


@dataclass(frozen=True)
class Protocol:
    """A protocol, complete.

    Attributes:
        name: crw, dino or smtc.
        propagation: how labels are propagated.
        size: `native`, `dino` (short side 480), or the side in pixels of a square.
        hard_labels: the first labels come to the map by nearest neighbour, not bilinearly.
        before_norm: features before a ViT's final norm.
        upsample: factor on the features' map.
        norm_mask: whether each cell's channels are brought to 0..1 before the output.
        minmax: whether each channel is brought to 0..1 over the image before the output.
        std: standard deviation of the colours; None: the encoder's.
        title: name for the result, without the data set.
    """

    name: ProtocolName
    propagation: Propagation
    size: int | Literal["native", "dino"]
    hard_labels: bool = False
    before_norm: bool = False
    upsample: int = 1
    norm_mask: bool = False
    minmax: bool = False
    std: Triple | None = None
    title: str = ""


def make_protocol(
    name: ProtocolName,
    config: PropagationConfig,
    encoder: Encoder,
    *,
    context: int | None = None,
    size: int | None = None,
) -> Protocol:
    """Return a protocol for an encoder.

    Args:
        name: crw, dino or smtc.
        config: what differs.
        encoder: its stride decides between SMTC's two settings, and stands in the title.
        context: the data set's own default in place of the protocol's.
        size: side in pixels of the square that frames are resized to; None: the protocol's size.

    Raises:
        UserError: a key that the protocol does not know, or no long-term frame.
    """
    stride = encoder.stride / config.upsample
    base = _published(name, stride)
    if context is not None:
        base = replace(base, context=context)
    if not config.long_term:
        raise UserError("long_term: is empty; name a frame at least, such as 0 for the first.")
    if name == "dino":
        for key, changed in (
            ("long_term", config.long_term != [0]),
            ("norm_mask", config.norm_mask),
        ):
            if changed:
                raise UserError(f"{key}: protocol dino has no such step; leave it out.")
    own = {
        key: value
        for key in ("context", "top_k", "radius", "temperature")
        if (value := getattr(config, key)) is not None and value != getattr(base, key)
    }
    settings = replace(base, **own, long_term=tuple(config.long_term), normalise=config.norm_mask)
    if settings.radius == 0:
        settings = replace(settings, radius=math.inf)
    marks = {"context": "n", "top_k": "k", "radius": "r", "temperature": "t"}
    title = f"{name}-s{stride:g}" + "".join(f"-{marks[k]}{v:g}" for k, v in own.items())
    if config.upsample > 1:
        title += f"-x{config.upsample}"
    if size is not None:
        title += f"-{size}px"
    if config.long_term != [0]:
        title += "-l" + "_".join(map(str, config.long_term))
    if config.norm_mask:
        title += "-norm"
    imagenet = (encoder.mean, encoder.std) == (IMAGENET_MEAN, IMAGENET_STD)
    return Protocol(
        name,
        settings,
        size=size or ("dino" if name == "dino" else "native"),
        hard_labels=name == "dino",
        before_norm=name == "smtc",
        upsample=config.upsample,
        norm_mask=config.norm_mask,
        minmax=name == "dino",
        # The published value; networks that expect other colours keep theirs.
        std=DINO_STD if name == "dino" and imagenet else None,
        title=title,
    )


def _published(name: ProtocolName, stride: float) -> Propagation:
    if name == "crw":
        return Propagation(context=20, top_k=10, radius=12.0, temperature=0.05)
    if name == "smtc":
        top_k, radius = (7, 7.0) if stride >= COARSE else (28, 35.0)
        return Propagation(context=20, top_k=top_k, radius=radius, temperature=0.2)
    return Propagation(
        context=7,
        top_k=5,
        radius=12.0,
        temperature=0.1,
        window="square",
        fill=False,
        keep_ties=True,
    )


def input_size(protocol: Protocol, size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size to which frames are resized.

    Args:
        protocol: which.
        size: (height, width) of the frames in pixels.
        multiple: of which both sides have to be multiples, for the network.

    Raises:
        UserError: nothing is left of a side.
    """
    height, width = size
    if isinstance(protocol.size, int):
        height = width = protocol.size
    elif protocol.size == "dino":
        height, width = _dino_size(height, width)
    fitted = (height // multiple * multiple, width // multiple * multiple)
    if 0 in fitted:
        raise UserError(
            f"frames of {size[1]}x{size[0]} pixels become {width}x{height}, of which nothing is "
            f"left at multiples of {max(multiple, 1)}; use larger frames."
        )
    return fitted


def _dino_size(height: int, width: int) -> tuple[int, int]:
    """Short side 480; the long one in proportion, floored to a multiple of 64."""

    def scaled(long: int, short: int) -> int:
        return math.floor(DINO_SHORT_SIDE * long / short / DINO_MULTIPLE) * DINO_MULTIPLE

    if height > width:
        return scaled(height, width), DINO_SHORT_SIDE
    return DINO_SHORT_SIDE, scaled(width, height)
