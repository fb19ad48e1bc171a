"""Temporal cycle-consistency (TCC, CVPR 2019): align videos of one action frame by frame.

Source: TCC, sections 3.1 to 3.3, and its released code. A frame of one video has a soft nearest
neighbour in another video, whose nearest frame in the first video should be the frame it began
with. From embeddings to a scalar; functions, argument order and defaults are the published
library's. All arithmetic is in float32 at least. The loss may be differentiated by `backward` and
`torch.autograd`, also twice; by `torch.func` only where all pairs fit one chunk (CHUNK_NUMEL),
since chunks are checkpointed.

Shapes: N videos, T frames, D embedding size, M and K frames of a single pair, P pairs of videos,
R cycles of L videos.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from timewalk.errors import nearest
from timewalk.ops.cycle_draws import draw_cycles, draw_starts
from timewalk.ops.distillation import full

LOSSES = ("classification", "regression_mse", "regression_mse_var", "regression_huber")
SIMILARITIES = ("l2", "cosine")
LEAST_VARIANCE = {torch.float32: 1e-16, torch.float64: 1e-150}
"""variances of a time are raised to this (the published code divides by what may be 0): larger
floors would show, as small variances occur; below it, gradients overflow"""
LEAST_SQUARED_NORM = 1e-12
# Similarities of frames held at once, for each of a dozen intermediate tensors: 2 MB.
CHUNK_NUMEL = 1 << 19


@dataclass(frozen=True)
class _Penalty:
    """What is asked of the logits of a cycle's end."""

    loss_type: str
    label_smoothing: float
    variance_lambda: float
    huber_delta: float

    def __post_init__(self) -> None:
        _known("loss_type", self.loss_type, LOSSES)

    def __call__(self, logits_PMT: Tensor, targets_PM: Tensor, times_PT: Tensor) -> Tensor:
        """Return the penalties (P, M) of M cycles each that end in a video of times (P, T)."""
        if self.loss_type == "classification":
            rows, targets = logits_PMT.flatten(0, 1), targets_PM.flatten()
            smoothing = self.label_smoothing
            losses = F.cross_entropy(rows, targets, reduction="none", label_smoothing=smoothing)
            return losses.view_as(targets_PM)
        probabilities = logits_PMT.softmax(dim=-1)
        found_PM1 = probabilities @ times_PT.unsqueeze(-1)
        true_PM, found_PM = times_PT.gather(1, targets_PM), found_PM1.squeeze(-1)
        if self.loss_type == "regression_huber":
            return F.huber_loss(found_PM, true_PM, reduction="none", delta=self.huber_delta)
        squared_PM = (true_PM - found_PM).square()
        if self.loss_type == "regression_mse":
            return squared_PM
        deviations_PMT = (times_PT.unsqueeze(1) - found_PM1).square()
        variance_PM = (probabilities * deviations_PMT).sum(dim=-1)
        variance_PM = variance_PM.clamp_min(LEAST_VARIANCE[variance_PM.dtype])
        return squared_PM / variance_PM + self.variance_lambda * variance_PM.log()


def compute_alignment_loss(
    embs: Tensor,
    batch_size: int,
    steps: ArrayLike | Tensor | None = None,
    seq_lens: ArrayLike | Tensor | None = None,
    stochastic_matching: bool = False,
    normalize_embeddings: bool = False,
    loss_type: str = "classification",
    similarity_type: str = "l2",
    num_cycles: int = 20,
    cycle_length: int = 2,
    temperature: float = 0.1,
    label_smoothing: float = 0.1,
    variance_lambda: float = 0.001,
    huber_delta: float = 0.1,
    normalize_indices: bool = True,
    *,
    cycles: ArrayLike | Tensor | None = None,
    starts: ArrayLike | Tensor | None = None,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Return the alignment loss of a batch of videos of one action, a scalar.

    Args:
        embs: (N, T, D) embeddings of T frames of each video, in the order of time.
        batch_size: N.
        steps: (N, T) number of each frame in its video; None: 0 to T - 1.
        seq_lens: (N,) frames of each whole video; None: T.
        stochastic_matching: use random cycles of videos in place of all ordered pairs.
        normalize_embeddings: scale each embedding to length 1 first.
        loss_type: `classification`, `regression_mse`, `regression_mse_var` (what the publication's
            experiments use) or `regression_huber`.
        similarity_type: `l2` (minus the squared distance) or `cosine` (the scalar product, which
            is a cosine with `normalize_embeddings` alone).
        num_cycles: R, random cycles.
        cycle_length: L, videos of a random cycle.
        temperature: of every softmax, whose logits are divided by D as well.
        label_smoothing: share of the target spread over all frames (`classification`).
        variance_lambda: weight of the log-variance (`regression_mse_var`).
        huber_delta: error from which the penalty is linear, in units of time (`regression_huber`).
        normalize_indices: measure time in shares of a video, not in frames.
        cycles: (R, L + 1) videos of each cycle, the first again at the end; None: drawn.
        starts: (R,) entry of the first video's frames where each cycle starts; None: drawn.
        rng: draws cycles and starts; None: one seeded from torch's own generator.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 videos, no frame or no cycle, one out of
            range, an unknown name, or cycles or starts without `stochastic_matching`.
    """
    if embs.ndim != 3 or len(embs) != batch_size or embs.shape[1] == 0:
        raise ValueError(
            f"embs has the shape {tuple(embs.shape)}; give batch_size {batch_size} videos of "
            "frames of embeddings, (N, T, D)"
        )
    frames = embs.shape[1]
    steps = _given("steps", steps, torch.arange(frames).expand(batch_size, -1), embs)
    seq_lens = _given("seq_lens", seq_lens, torch.full((batch_size,), frames), embs)
    if normalize_embeddings:
        with torch.autocast(embs.device.type, enabled=False):
            squared = full(embs).square().sum(dim=-1, keepdim=True)
            embs = full(embs) * squared.clamp_min(LEAST_SQUARED_NORM).rsqrt()
    penalty = (loss_type, similarity_type, temperature, label_smoothing)
    rest = (variance_lambda, huber_delta, normalize_indices)
    if not stochastic_matching:
        if cycles is not None or starts is not None:
            raise ValueError("cycles and starts have no effect; set stochastic_matching=True")
        return compute_deterministic_alignment_loss(
            embs, steps, seq_lens, frames, batch_size, *penalty, *rest
        )
    rng = rng or np.random.default_rng(int(torch.randint(1 << 62, ())))
    cycles = draw_cycles(batch_size, num_cycles, cycle_length, rng) if cycles is None else cycles
    cycles = torch.as_tensor(cycles, dtype=torch.int64)
    starts = draw_starts(frames, len(cycles), rng) if starts is None else starts
    return compute_stochastic_alignment_loss(
        embs, steps, seq_lens, cycles, torch.as_tensor(starts), *penalty, *rest
    )


def compute_deterministic_alignment_loss(
    embs: Tensor,
    steps: Tensor,
    seq_lens: Tensor,
    num_steps: int,
    batch_size: int,
    loss_type: str,
    similarity_type: str,
    temperature: float,
    label_smoothing: float,
    variance_lambda: float,
    huber_delta: float,
    normalize_indices: bool,
) -> Tensor:
    """Return the mean penalty of all frames' cycles through each other video, a scalar.

    Many pairs are taken in chunks that are computed anew for the gradient: memory then grows with
    the number of videos, not of pairs.

    Args:
        embs: (N, T, D), on the device of all else.
        steps: (N, T).
        seq_lens: (N,).
        num_steps: T.
        batch_size: N.
        loss_type: see `compute_alignment_loss` for this and all that follows.

    Raises:
        ValueError: another shape than said, fewer than 2 videos, or an unknown name.
    """
    if embs.shape[:2] != (batch_size, num_steps) or num_steps == 0:
        raise ValueError(
            f"embs has the shape {tuple(embs.shape)}; give batch_size {batch_size} videos of "
            f"num_steps {num_steps} frames, at least 1"
        )
    if batch_size < 2:
        raise ValueError(
            f"the batch has {batch_size} video(s), and a cycle needs another one to go through; "
            "give at least 2"
        )
    _known("similarity_type", similarity_type, SIMILARITIES)
    penalty = _Penalty(loss_type, label_smoothing, variance_lambda, huber_delta)
    videos_at_once = max(1, CHUNK_NUMEL // (batch_size * num_steps**2))

    def chunk(embs: Tensor, times: Tensor, start: int) -> Tensor:
        firsts = range(start, min(start + videos_at_once, batch_size))
        logits, pair_firsts = _logits_of_pairs(embs, firsts, similarity_type, temperature)
        targets = torch.arange(num_steps, device=embs.device).expand(len(logits), -1)
        return penalty(logits, targets, times[pair_firsts]).sum()

    with torch.autocast(embs.device.type, enabled=False):
        embs = full(embs)
        if similarity_type == "l2":
            # Distances stay what they are; squared norms lose fewer digits.
            embs = embs - embs.detach().mean(dim=(0, 1))
        times = _times(steps, seq_lens, normalize_indices, embs.dtype)
        if videos_at_once >= batch_size:
            total = chunk(embs, times, 0)
        else:
            parts = [
                checkpoint(chunk, embs, times, start, use_reentrant=False, preserve_rng_state=False)
                for start in range(0, batch_size, videos_at_once)
            ]
            total = torch.stack(parts).sum()
        return total / (batch_size * (batch_size - 1) * num_steps)


def _logits_of_pairs(
    embs_NTD: Tensor, firsts: range, similarity_type: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return logits (P, T, T) of cycles from some videos through all others, and the first (P,).

    The soft neighbours A V of the frames U of a pair are never made: their products with U are
    A (V U'), so the products of all frames are all that is needed. What is the same for all entries
    of a row (the squared norm of the frame, or of its soft neighbour) is left out: no softmax sees
    it.
    """
    videos, frames, size = embs_NTD.shape
    factor = (2 if similarity_type == "l2" else 1) / (size * temperature)
    products = factor * embs_NTD[firsts.start : firsts.stop].flatten(0, 1)
    products = products @ embs_NTD.flatten(0, 1).T
    blocks = products.view(len(firsts), frames, videos, frames).transpose(1, 2).flatten(0, 1)
    numbers = torch.arange(len(blocks), device=embs_NTD.device)
    first, second = numbers // videos + firsts.start, numbers % videos
    others = (first != second).nonzero().squeeze(1)
    first, second = first[others], second[others]
    products_PTT = blocks.index_select(0, others)
    if similarity_type == "cosine":
        return products_PTT.softmax(dim=-1) @ products_PTT.mT, first
    norms_N1T = embs_NTD.square().sum(dim=-1).mul(factor / 2).unsqueeze(1)
    neighbours_PTT = (products_PTT - norms_N1T[second]).softmax(dim=-1)
    return torch.baddbmm(norms_N1T[first], neighbours_PTT, products_PTT.mT, beta=-1), first


def compute_stochastic_alignment_loss(
    embs: Tensor,
    steps: Tensor,
    seq_lens: Tensor,
    cycles: Tensor,
    starts: Tensor,
    loss_type: str,
    similarity_type: str,
    temperature: float,
    label_smoothing: float,
    variance_lambda: float,
    huber_delta: float,
    normalize_indices: bool,
) -> Tensor:
    """Return the mean penalty of single cycles, each of one frame through several videos.

    Args:
        embs: (N, T, D).
        steps: (N, T).
        seq_lens: (N,).
        cycles: (R, L + 1) videos of each cycle, the first again at the end.
        starts: (R,) entry of the first video's frames where each cycle starts.
        loss_type: see `compute_alignment_loss` for this and all that follows.

    Raises:
        ValueError: cycles that do not close or have no start each, none at all, one out of range,
            or an unknown name.
    """
    if cycles.ndim != 2 or cycles.shape[1] < 3 or not torch.equal(cycles[:, 0], cycles[:, -1]):
        raise ValueError("each row of cycles must name 2 videos or more and the first again")
    if starts.shape != cycles.shape[:1]:
        raise ValueError(f"starts has the shape {tuple(starts.shape)}; give one for each cycle")
    for name, places, end in (("cycles", cycles, embs.shape[0]), ("starts", starts, embs.shape[1])):
        if not places.numel() or places.min() < 0 or places.max() >= end:
            raise ValueError(f"{name} must be at least one, each from 0 to {end - 1}")
    penalty = _Penalty(loss_type, label_smoothing, variance_lambda, huber_delta)
    cycles, starts = cycles.long().to(embs.device), starts.long().to(embs.device)
    with torch.autocast(embs.device.type, enabled=False):
        embs = full(embs)
        start_R1D = embs[cycles[:, 0], starts].unsqueeze(1)
        # Distances stay what they are; means of frames lose fewer digits. A cycle has its own
        # origin: no video outside of it changes its loss.
        origin_R1D = start_R1D.detach() * (similarity_type == "l2")
        here_R1D = start_R1D - origin_R1D
        for hop in range(1, cycles.shape[1]):
            video_RTD = embs.index_select(0, cycles[:, hop]) - origin_R1D
            logits_R1T = get_scaled_similarity(here_R1D, video_RTD, similarity_type, temperature)
            here_R1D = logits_R1T.softmax(dim=-1) @ video_RTD
        times = _times(steps, seq_lens, normalize_indices, embs.dtype)[cycles[:, 0]]
        return penalty(logits_R1T, starts.unsqueeze(1), times).mean()


def align_pair_of_sequences(
    embs1: Tensor, embs2: Tensor, similarity_type: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the logits (M, M) of the cycles of one video through another, and their labels.

    Row: frame where a cycle starts; column: frame where it ends. Labels: (M, M), one-hot.

    Args:
        embs1: (M, D), the video where cycles start and end.
        embs2: (K, D), the video they go through.
        similarity_type: `l2` or `cosine`.
        temperature: of both softmaxes.
    """
    neighbours = get_scaled_similarity(embs1, embs2, similarity_type, temperature).softmax(dim=-1)
    logits = get_scaled_similarity(neighbours @ embs2, embs1, similarity_type, temperature)
    return logits, torch.eye(len(embs1), dtype=logits.dtype, device=logits.device)


def get_scaled_similarity(
    embs1: Tensor, embs2: Tensor, similarity_type: str, temperature: float
) -> Tensor:
    """Return the similarities (..., M, K) of frames, divided by D and the temperature.

    Args:
        embs1: (..., M, D).
        embs2: (..., K, D).
        similarity_type: `l2` (minus the squared distance) or `cosine` (the scalar product).
        temperature: divides.

    Raises:
        ValueError: an unknown similarity.
    """
    _known("similarity_type", similarity_type, SIMILARITIES)
    if similarity_type == "l2":
        similarity = -pairwise_l2_distance(embs1, embs2)
    else:
        similarity = embs1 @ embs2.mT
    return similarity / (embs1.shape[-1] * temperature)


def pairwise_l2_distance(embs1: Tensor, embs2: Tensor) -> Tensor:
    """Return the SQUARED distances (..., M, K) of frames (..., M, D) and (..., K, D)."""
    return (embs1.unsqueeze(-2) - embs2.unsqueeze(-3)).square().sum(dim=-1)


def _known(argument: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{argument} '{name}' is unknown{nearest(name, known)}")


def _given(
    name: str, values: ArrayLike | Tensor | None, default: Tensor, embs_NTD: Tensor
) -> Tensor:
    """Return an argument, or its default, on the embeddings' device, if it has its shape."""
    found = torch.as_tensor(default if values is None else values, device=embs_NTD.device)
    if found.shape != default.shape:
        raise ValueError(
            f"{name} has the shape {tuple(found.shape)}; embs of the shape "
            f"{tuple(embs_NTD.shape)} needs {tuple(default.shape)}"
        )
    return found


def _times(
    steps_NT: Tensor, seq_lens_N: Tensor, normalize_indices: bool, dtype: torch.dtype
) -> Tensor:
    """Return the time of each frame: its step, or its step as a share of its video."""
    times = steps_NT.to(dtype)
    return times / seq_lens_N.to(dtype).unsqueeze(1) if normalize_indices else times
