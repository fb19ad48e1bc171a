"""Object proposals of a video: the slots of SMTC, or clusters of any encoder's patch features.

Source: SMTC's released evaluation. Frames are resized, whatever their shape, to one size, and go
through the network in chunks that do not overlap. Of every frame those slots are kept whose
instance resembles its semantic. Clusters are the baseline without slots: spherical K-means over the
patches of the whole video.

Shapes: T frames, S semantic slots, P instances of each, n candidates of a frame, K clusters, D
width of vectors, h and w rows and columns of cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from timewalk.config import EvaluationConfig, Positive
from timewalk.data.seeds import generator
from timewalk.data.sequences import Sequence as Video
from timewalk.data.sequences import read_frame
from timewalk.encoders import Encoder, encoder_digest, load_encoder
from timewalk.encoders.slots import SlotNetwork, load_slots, slot_masks
from timewalk.errors import UserError
from timewalk.evaluation.embed import Extractor, Precision
from timewalk.evaluation.feature_file import check_finite
from timewalk.ops.spherical import spherical_kmeans

KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)
FRAMES_FOR_CENTROIDS = 48
"""of longer videos as many frames, evenly spread, make the centroids"""
MARKS = {
    "frames_per_clip": "f{}",
    "iterations": "i{}",
    "min_similarity": "m{:g}",
    "clusters": "c{}",
    "temperature": "t{:g}",
    "seed": "seed{}",
    "statistics": "{}_statistics",
    "precision": "{}",
}
"""how a protocol's name says that a setting is not as published"""


class ProposalConfig(EvaluationConfig):
    """Keys of an evaluation of object proposals."""

    OF_SLOTS: ClassVar[tuple[str, ...]] = (
        "frames_per_clip",
        "iterations",
        "min_similarity",
        "statistics",
    )
    OF_CLUSTERS: ClassVar[tuple[str, ...]] = ("clusters", "temperature")
    OF_BOTH: ClassVar[tuple[str, ...]] = ("image_height", "image_width", "seed", "precision")

    proposals: Literal["auto", "slots", "clusters"] = "auto"
    """where proposals come from: `slots` of a run of SMTC, `clusters` of patch features (any
    encoder), `auto`: slots where the run has them"""
    image_height: Positive = 480
    """height in pixels to which frames are resized, whatever their shape; multiple of the patch"""
    image_width: Positive = 800
    """width in pixels, likewise"""
    frames_per_clip: Positive = 4
    """consecutive frames that go through the slots together; the last clip is filled up"""
    iterations: Positive = 5
    """of slot attention"""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.5
    """cosine of an instance slot with its semantic from which it is a candidate;
    `foreground_segmentation` takes all"""
    statistics: Literal["kinetics", "encoder"] = "kinetics"
    """mean and deviation of the colours under slots: of Kinetics, as published though SMTC is
    trained with ImageNet's, or the encoder's own; clusters always take the encoder's"""
    clusters: Annotated[int, Field(ge=2, le=255)] = 8
    """proposals of a video where they are clusters"""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """of the softmax over the cosines with the clusters' centres"""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """of the instance slots, or of the clusters' first centres; with the video's name"""
    precision: Precision = "fp32"
    """arithmetic of the encoder; slots and clusters are always in fp32"""

    def in_use(self, slots: bool) -> dict[str, Any]:
        """Return the settings, by key, that change proposals of slots, or of clusters."""
        keys = (*self.OF_BOTH, *(self.OF_SLOTS if slots else self.OF_CLUSTERS))
        return {key: getattr(self, key) for key in keys}

    def proposal_title(self, slots: bool) -> list[str]:
        """Return what of the settings in use is not as published, for the protocol's name."""
        fields, used = ProposalConfig.model_fields, self.in_use(slots)
        usual = (fields["image_height"].default, fields["image_width"].default)
        parts = [] if self.size == usual else [f"{self.image_height}x{self.image_width}"]
        for key, mark in MARKS.items():
            if key in used and (value := used[key]) != fields[key].default:
                parts.append(mark.format(value))
        return parts

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames that the network sees."""
        return self.image_height, self.image_width


@dataclass
class Proposals:
    """What may be objects of one video.

    Attributes:
        masks: float32 (n, h, w) of each frame, soft; row k of two frames is not the same object.
        scores: float32 (n,) of each frame: how far a candidate is to be trusted, at most 1.
        groups: int64 (n,) of each frame: semantic slot, or cluster, from 0.
        vectors: float32 (n, D) of each frame: what a candidate looks like.
        all_masks: float32 (T, S * P, h, w): the masks of all slots or clusters, kept or not, the
            instances of a group side by side.
        instances: P, masks of each group in ``all_masks``; 1 for clusters.
    """

    masks: list[np.ndarray]
    scores: list[np.ndarray]
    groups: list[np.ndarray]
    vectors: list[np.ndarray]
    all_masks: np.ndarray
    instances: int = 1

    def group_maps(self) -> np.ndarray:
        """Return the group that has the largest share of each cell, int64 (T, h, w), from 0."""
        frames, masks, *cells = self.all_masks.shape
        shape = (frames, masks // self.instances, self.instances, *cells)
        largest: np.ndarray = self.all_masks.reshape(shape).sum(2).argmax(1)
        return largest


@dataclass(frozen=True)
class Proposer:
    """Gives the proposals of a video.

    Attributes:
        title: `slots` or `clusters`.
        digest: of the encoder and its slots: what the proposals depend on beside the settings and
            the video.
        settings: those in use, by key: for the key of what is done, and for a record.
        make: does it, given the video and the seed.
    """

    title: Literal["slots", "clusters"]
    digest: str
    settings: dict[str, Any]
    make: Callable[[Video, int], Proposals]

    def __call__(self, video: Video, seed: int | None = None) -> Proposals:
        """Return the proposals of a video, by another seed than that of the settings if one is
        given; errors as of :func:`slot_proposals` and :func:`cluster_proposals`."""
        return self.make(video, self.settings["seed"] if seed is None else seed)


def proposer(run: Path, config: ProposalConfig, device: torch.device) -> Proposer:
    """Return what gives the proposals of a run.

    Args:
        run: its folder.
        config: settings.
        device: where to compute.

    Raises:
        UserError: slots are asked for and the run has none, or a size that the network cannot read.
    """
    network = None if config.proposals == "clusters" else load_slots(run)
    if config.proposals == "slots" and network is None:
        raise UserError(
            f"the run {run} has no slots, but proposals is 'slots'; set it to 'clusters' or "
            "'auto', or evaluate a run of the method 'smtc'."
        )
    encoder = load_encoder(run).eval().requires_grad_(False).to(device)
    check_size(encoder, config)
    digest = encoder_digest(run)
    if network is None:

        def clusters(video: Video, seed: int) -> Proposals:
            return cluster_proposals(encoder, video, config, device, seed)

        settings = {"statistics": "encoder"} | config.in_use(slots=False)
        return Proposer("clusters", digest, settings, clusters)
    slots = network.eval().requires_grad_(False).to(device)

    def from_slots(video: Video, seed: int) -> Proposals:
        return slot_proposals(encoder, slots, video, config, device, seed)

    return Proposer("slots", digest, config.in_use(slots=True), from_slots)


def check_size(encoder: Encoder, config: ProposalConfig) -> None:
    """Refuse sizes that the network cannot read.

    Raises:
        UserError: names the key.
    """
    least = max(encoder.multiple, encoder.stride)
    for key in ("image_height", "image_width"):
        side = getattr(config, key)
        rest = side % encoder.multiple
        if rest or side < least:
            raise UserError(
                f"{key} is {side} but the encoder needs multiples of {encoder.multiple} pixels, "
                f"{least} at least; set it to {max(side - rest, least)}."
            )


@torch.no_grad()
def slot_proposals(
    encoder: Encoder,
    network: SlotNetwork,
    video: Video,
    config: ProposalConfig,
    device: torch.device,
    seed: int,
) -> Proposals:
    """Return the instances that SMTC's slots find in a video.

    Args:
        encoder: in eval mode, on the device; one with keys.
        network: the slots, likewise.
        video: its frames.
        config: settings.
        device: where to compute.
        seed: of the instance slots, with the video's name.

    Raises:
        UserError: a frame cannot be read or has another size, or its features or slots are not
            finite.
    """
    keys: Any = encoder
    own = config.statistics == "encoder"
    extractor = Extractor(
        encoder,
        device,
        config.precision,
        keys.keys,
        mean=None if own else KINETICS_MEAN,
        std=None if own else KINETICS_STD,
    )
    rng = _generator(seed, video.name)
    _, semantics, _, width = network.slot_attention.slots_mu.shape
    parts: list[tuple[Tensor, ...]] = []
    length = config.frames_per_clip
    for number, clip in enumerate(chunks(len(video.frames), length)):
        keys_TDhw = extractor(pixels_of(video, clip, config.size, device))
        check_finite(keys_TDhw, f"the frames of '{video.name}'")
        drawn = (1, len(clip), semantics, network.instances, width)
        noise = torch.randn(drawn, generator=rng).to(device)
        slots = network(keys_TDhw[None], noise, config.iterations)
        found = slot_masks(slots)
        masks_TSPhw = found.instance_masks[0].unflatten(-1, keys_TDhw.shape[-2:])
        new = min(length, len(video.frames) - number * length)
        of_clip = masks_TSPhw, found.similarity[0], slots.instance[0]
        for tensor in of_clip:
            check_finite(tensor, f"the slots of '{video.name}'")
        parts.append(tuple(tensor[:new].cpu() for tensor in of_clip))
    masks, similarity, vectors = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return collect(masks, similarity, vectors, config.min_similarity)


def collect(
    masks_TSPhw: np.ndarray, similarity_TSP: np.ndarray, vectors_TSPD: np.ndarray, least: float
) -> Proposals:
    """Return the slots of a video with those as candidates that reach a similarity, slot by slot
    and the instances of each in their order."""
    frames, _, instances, *cells = masks_TSPhw.shape
    kept_TSP = similarity_TSP >= least
    return Proposals(
        masks=[masks[kept] for masks, kept in zip(masks_TSPhw, kept_TSP, strict=True)],
        scores=[scores[kept] for scores, kept in zip(similarity_TSP, kept_TSP, strict=True)],
        groups=[np.nonzero(kept)[0] for kept in kept_TSP],
        vectors=[vectors[kept] for vectors, kept in zip(vectors_TSPD, kept_TSP, strict=True)],
        all_masks=masks_TSPhw.reshape(frames, -1, *cells),
        instances=instances,
    )


def chunks(frames: int, length: int) -> list[list[int]]:
    """Return the frames of each clip: consecutive, without overlap, `length` each.

    A last clip that is too short is filled up with the last frames of the whole video, as many as
    it lacks, though they may be in it already; a video too short even for that is filled up with
    its last frame.
    """
    found = []
    for start in range(0, frames, length):
        own = list(range(start, min(start + length, frames)))
        own += range(max(0, frames - (length - len(own))), frames) if len(own) < length else ()
        found.append(own + [frames - 1] * (length - len(own)))
    return found


def pixels_of(
    video: Video, places: Sequence[int], size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return frames resized to a size, float32 (len(places), 3, height, width), 0 to 255.

    Bilinear without antialias, on floats, as OpenCV does.
    """
    frames = np.stack([read_frame(video.frames[place], video.size) for place in places])
    pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float()
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def cluster_proposals(
    encoder: Encoder, video: Video, config: ProposalConfig, device: torch.device, seed: int
) -> Proposals:
    """Return clusters of the patch features of a video: each is in every frame, with score 1.

    Args:
        encoder: in eval mode, on the device.
        video: its frames.
        config: settings.
        device: where to compute.
        seed: of the first centres, with the video's name.

    Raises:
        UserError: a frame cannot be read or has another size, features that are not finite, or
            fewer patches than clusters.
    """
    extractor = Extractor(encoder, device, config.precision, encoder.dense)

    def features(place: int) -> Tensor:
        found = extractor(pixels_of(video, [place], config.size, device))[0]
        check_finite(found, f"{video.frames[place]}")
        return F.normalize(found, dim=0)

    count = len(video.frames)
    few = min(count, FRAMES_FOR_CENTROIDS)
    sampled = {
        place: features(place) for place in np.linspace(0, count - 1, few).round().astype(int)
    }
    points = torch.cat([maps.flatten(1).T for maps in sampled.values()])
    if len(points) < config.clusters:
        raise UserError(
            f"'{video.name}' has {len(points)} patches, too few for {config.clusters} clusters; "
            "lower clusters, or raise image_height and image_width."
        )
    centroids_KD = spherical_kmeans(points, config.clusters, _generator(seed, video.name))
    shares = []
    for place in range(count):
        maps = sampled[place] if place in sampled else features(place)
        cosines = torch.einsum("kd,dhw->khw", centroids_KD, maps)
        shares.append((cosines / config.temperature).softmax(0).cpu().numpy())
    groups, vectors = np.arange(config.clusters), centroids_KD.cpu().numpy()
    return Proposals(
        masks=shares,
        scores=[np.ones(config.clusters, np.float32)] * count,
        groups=[groups] * count,
        vectors=[vectors] * count,
        all_masks=np.stack(shares),
    )


def _generator(seed: int, name: str) -> torch.Generator:
    return generator(seed, *name.encode())
