"""From a labelled first frame to soft labels of every frame, by the features of an encoder.

Source: the released code of CRW, DINO and SMTC. What the evaluations on DAVIS, JHMDB and VIP share:
the sizes, the features, the first frame's labels on the map, and the way back to pixels.

Shapes: C channels, H and W pixels, h and w cells of the features' map.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from timewalk.data.sequences import read_frame
from timewalk.encoders import Encoder
from timewalk.errors import UserError
from timewalk.evaluation.embed import Extractor
from timewalk.evaluation.protocols import Protocol, input_size
from timewalk.ops.propagation import Propagator, normalise_channels

BeforeFrame = Callable[[int, Propagator, "FrameFeatures"], None]


class FrameFeatures:
    """Features of a sequence's frames, one at a time.

    Args:
        encoder: in eval mode, on the device.
        device: where to compute.
        protocol: sizes and kind of features.
        frames: image files in order.
        size: (height, width) of all of them in pixels.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device,
        protocol: Protocol,
        frames: Sequence[Path],
        size: tuple[int, int],
    ) -> None:
        self.encoder, self.protocol, self.frames, self.size = encoder, protocol, frames, size
        before_norm = (
            getattr(encoder, "patches_before_norm", None) if protocol.before_norm else None
        )
        self._extractor = Extractor(
            encoder, device, features=before_norm or encoder.dense, std=protocol.std
        )
        self.input_size = input_size(protocol, size, encoder.multiple)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Tensor:
        """Return a frame's features, float32 (D, h, w).

        Raises:
            UserError: the frame cannot be read or has another size, or its features are not finite.
        """
        pixels = torch.from_numpy(read_frame(self.frames[index], self.size)).permute(2, 0, 1)
        features = self._extractor(self.resized(pixels[None].float()))[0]
        if not bool(features.isfinite().all()):
            raise UserError(
                f"{self.frames[index]}: the encoder gives features that are not finite; "
                "train it again."
            )
        if self.protocol.upsample > 1:
            features = bilinear(features, self._enlarged(features.shape[1], features.shape[2]))
        return features

    def _enlarged(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the size of the map of the labels, for a map of features of so many cells."""
        factor = self.protocol.upsample
        if self.protocol.name != "smtc":
            return factor * rows, factor * columns
        # Cells of the frame as it is stored, not of what the network takes of it.
        (height, width), (high, wide) = self.size, self.input_size
        return factor * rows * height // high, factor * columns * width // wide

    def resized(self, pixels: Tensor) -> Tensor:
        """Return frames (B, 3, H, W), 0 to 255, at the size that the network sees."""
        if self.input_size == self.size:
            return pixels
        small = F.interpolate(pixels, self.input_size, mode="bilinear", align_corners=False)
        # DINO resizes images of bytes, the others floats.
        return small.round() if self.protocol.name == "dino" else small


def propagate(
    features: FrameFeatures,
    labels: Callable[[tuple[int, int]], Tensor],
    before: BeforeFrame | None = None,
) -> Iterator[Tensor]:
    """Yield the soft labels of each frame, (C, h, w), the first frame's among them.

    Args:
        features: of the sequence.
        labels: gives the first frame's labels (C, h, w) for a map of (h, w) cells.
        before: called with (frame, propagator, features) before each frame but the first; it may
            change the encoder, and then renews the features of the propagator's context.
    """
    protocol = features.protocol
    first = features[0]
    start = labels((first.shape[1], first.shape[2])).to(first.device)
    propagator = Propagator(protocol.propagation, first, start)

    def shown(soft: Tensor) -> Tensor:
        return normalise_channels(soft, 0) if protocol.norm_mask else soft

    yield shown(start)
    for index in range(1, len(features)):
        if before is not None:
            before(index, propagator, features)
        yield shown(propagator.step(features[index]))


def one_hot(ids: np.ndarray, channels: Sequence[int]) -> Tensor:
    """Return (C, H, W) float32: 1 where a pixel has the channel's id."""
    wanted = torch.tensor(channels, dtype=torch.uint8)[:, None, None]
    return (torch.from_numpy(ids)[None] == wanted).float()


def soft_labels(ids: np.ndarray, channels: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Return first labels (C, h, w): one-hot at full size, then bilinear (CRW, SMTC)."""
    return bilinear(one_hot(ids, channels), grid)


def hard_labels(ids: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Return first labels (C, h, w): ids by nearest neighbour, then one-hot, as many channels as
    the largest id that is left, and one (DINO)."""
    small = nearest(ids, grid)
    return one_hot(small, range(int(small.max()) + 1))


def bilinear(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (C, h, w) with half-pixel centres and without antialiasing."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize ids (H, W) to (height, width) as Pillow does, by the nearest pixel."""
    if ids.shape == size:
        return ids
    picture = Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.array(picture)


def to_ids(
    soft: Tensor, protocol: Protocol, between: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Return the channel that wins at each pixel, uint8 (H, W).

    Args:
        soft: (C, h, w).
        protocol: whether channels are stretched to 0..1 first.
        between: (height, width) to which the map is enlarged bilinearly.
        size: (height, width) of the result, by nearest neighbour from there.
    """
    large = bilinear(soft, between)
    if protocol.minmax:
        high = large.amax((1, 2), keepdim=True)
        low = large.amin((1, 2), keepdim=True)
        # A channel of one value becomes 0 / 0, which the published argmax takes for the largest.
        stretched = torch.where(high > low, (large - low) / (high - low), torch.inf)
        large = torch.where(high > 0, stretched, large)
    return nearest(_winners(large).cpu().numpy(), size)


def _winners(maps: Tensor) -> Tensor:
    """Return the first of the largest channels, uint8 (H, W): torch's argmax over the first axis
    is many times slower."""
    best, won = maps[0].clone(), torch.zeros_like(maps[0], dtype=torch.uint8)
    for channel, values in enumerate(maps[1:], start=1):
        won.masked_fill_(values > best, channel)
        torch.maximum(best, values, out=best)
    return won
