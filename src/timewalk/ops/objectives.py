"""What the embeddings of a batch of videos are trained for: TCC, SaL, TCN, all three, and phases.

Source: TCC, section 3, and its released code; SaL and TCN in the form in which TCC compares with
them. Each objective is a module of the whole batch: its draws come from the generator that is
passed in, its state is what it learns beside the embedder. :func:`build_objective` builds one again
from its ``spec``.

Shapes: N videos, T sampled frames a video, S = T, or 2 T where every frame comes with a positive
one before it (p0, s0, p1, s1, ...), D embedding size, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.errors import UserError, nearest
from timewalk.ops.alignment import compute_alignment_loss
from timewalk.ops.cycle_draws import draw_cycles, draw_starts
from timewalk.ops.sequences import Sequences
from timewalk.ops.temporal_order import (
    FRAMES_OF_A_ROW,
    OrderHead,
    Triplets,
    draw_triplets,
    order_loss,
)
from timewalk.ops.time_contrast import n_pairs_loss

Layers = tuple[tuple[int, bool], ...]

ORDER_LAYERS: Layers = ((128, True), (64, True), (2, False))
"""outputs of SaL's layers, and whether a ReLU follows"""
NO_LABEL = -100


class Objective(nn.Module):
    """Base class: sequences to named losses, ``total`` among them.

    Attributes:
        name: under which :func:`build_objective` finds it.
        pairs: whether S = 2 T.
        needs_labels: whether every frame needs its phase.
        least_videos: smallest N.
        least_frames: smallest T.
        spec: plain data from which it is built again.
    """

    name: ClassVar[str]
    pairs: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    least_videos: int = 1
    least_frames: int = 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {"name": self.name, **settings}

    def forward(
        self, sequences: Sequences, rng: np.random.Generator, training: bool = True
    ) -> dict[str, Tensor]:
        """Return ``total``, the scalar to differentiate, and what else is worth a look.

        Args:
            sequences: the whole batch.
            rng: of all draws: the same on every process.
            training: whether heads drop.
        """
        raise NotImplementedError

    def regularised(self) -> list[nn.Parameter]:
        """Return the kernels and biases that the L2 term counts."""
        return list(self.parameters())


class TCC(Objective):
    """Temporal cycle-consistency (TCC, sections 3.2 and 3.3).

    Args:
        width: D; it has nothing to learn beside the embedder.
        loss_type: `classification`, `regression_mse`, `regression_mse_var`, `regression_huber`.
        similarity_type: `l2` or `cosine`.
        temperature: of both softmaxes.
        label_smoothing: of `classification`.
        variance_lambda: weight of the log variance (`regression_mse_var`).
        huber_delta: where the loss turns linear (`regression_huber`).
        normalize_indices: frames' numbers as shares of their videos' lengths.
        normalize_embeddings: to unit length before comparing.
        stochastic_matching: random cycles instead of all pairs.
        fraction: cycles per sampled frame (`stochastic_matching`).
        cycle_length: videos in a cycle (`stochastic_matching`).
        published_cycles: all cycles through the same videos in order, as published.
    """

    name = "tcc"

    def __init__(
        self,
        width: int,
        *,
        loss_type: str = "regression_mse_var",
        similarity_type: str = "l2",
        temperature: float = 0.1,
        label_smoothing: float = 0.1,
        variance_lambda: float = 0.001,
        huber_delta: float = 0.1,
        normalize_indices: bool = True,
        normalize_embeddings: bool = False,
        stochastic_matching: bool = False,
        fraction: float = 1.0,
        cycle_length: int = 2,
        published_cycles: bool = False,
    ) -> None:
        arguments: dict[str, Any] = {
            "loss_type": loss_type,
            "similarity_type": similarity_type,
            "temperature": temperature,
            "label_smoothing": label_smoothing,
            "variance_lambda": variance_lambda,
            "huber_delta": huber_delta,
            "normalize_indices": normalize_indices,
            "normalize_embeddings": normalize_embeddings,
            "stochastic_matching": stochastic_matching,
            "cycle_length": cycle_length,
        }
        own = {"fraction": fraction, "published_cycles": published_cycles}
        super().__init__({**arguments, **own})
        self.arguments, self.fraction = arguments, fraction
        self.published_cycles = published_cycles
        self.least_videos = cycle_length if stochastic_matching else 2

    def forward(
        self, sequences: Sequences, rng: np.random.Generator, training: bool = True
    ) -> dict[str, Tensor]:
        """Return ``total``."""
        videos, frames = sequences.steps.shape
        draws: dict[str, Any] = {}
        if self.arguments["stochastic_matching"]:
            cycles = int(videos * frames * self.fraction)
            length = self.arguments["cycle_length"]
            drawn = draw_cycles(videos, cycles, length, rng, published=self.published_cycles)
            draws = {
                "num_cycles": cycles,
                "cycles": drawn,
                "starts": draw_starts(frames, cycles, rng),
            }
        loss = compute_alignment_loss(
            sequences.embeddings,
            videos,
            sequences.steps,
            sequences.lengths,
            **self.arguments,
            **draws,
        )
        return {"total": loss}


class SaL(Objective):
    """Shuffle and learn: whether three frames are in order (SaL).

    Args:
        width: D.
        samples: triplets per video.
        shuffle_fraction: share of them that is shuffled.
        layers: outputs of the head's layers, and whether a ReLU follows.
        dropout: before each layer.
        label_smoothing: of the targets.
    """

    name = "sal"
    least_frames = FRAMES_OF_A_ROW

    def __init__(
        self,
        width: int,
        *,
        samples: int = 8,
        shuffle_fraction: float = 0.75,
        layers: Layers = ORDER_LAYERS,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            {
                "samples": samples,
                "shuffle_fraction": shuffle_fraction,
                "layers": [list(layer) for layer in layers],
                "dropout": dropout,
                "label_smoothing": label_smoothing,
            }
        )
        self.samples, self.shuffle_fraction = samples, shuffle_fraction
        self.label_smoothing = label_smoothing
        self.head = OrderHead(width, tuple((int(n), bool(relu)) for n, relu in layers), dropout)

    def forward(
        self, sequences: Sequences, rng: np.random.Generator, training: bool = True
    ) -> dict[str, Tensor]:
        """Return ``total``."""
        videos, frames = sequences.steps.shape
        triplets = draw_triplets(
            videos,
            frames,
            rng,
            samples=self.samples,
            shuffle_fraction=self.shuffle_fraction,
        )
        seed = int(rng.integers(2**63 - 1))
        return {"total": self.loss(sequences.embeddings, triplets, seed if training else None)}

    def loss(self, embeddings_NTD: Tensor, triplets: Triplets, seed: int | None = None) -> Tensor:
        """Return the loss of given triplets; ``seed``: of the head's dropout, None: none."""
        return order_loss(embeddings_NTD, triplets, self.head, seed, self.label_smoothing)


class TCN(Objective):
    """Time-contrastive: each frame against those of other times of its video (TCN).

    Args:
        width: D; it has nothing to learn beside the embedder.
        reg_lambda: weight of the embeddings' squared lengths.
        published_order: of several videos, frames in the order in which the published code mixes
            them up.
    """

    name = "tcn"
    pairs = True

    def __init__(
        self, width: int, *, reg_lambda: float = 0.002, published_order: bool = False
    ) -> None:
        super().__init__({"reg_lambda": reg_lambda, "published_order": published_order})
        self.reg_lambda, self.published_order = reg_lambda, published_order

    def forward(
        self, sequences: Sequences, rng: np.random.Generator, training: bool = True
    ) -> dict[str, Tensor]:
        """Return ``total``."""
        embeddings_NSD = sequences.embeddings
        if self.published_order:
            embeddings_NSD = mixed_up(embeddings_NSD)
        return {"total": n_pairs_loss(embeddings_NSD, self.reg_lambda)}


def mixed_up(embeddings_NSD: Tensor) -> Tensor:
    """Return embeddings as the published TCN orders them: entry (n, s) is row s N + n of all."""
    videos, frames = embeddings_NSD.shape[:2]
    return embeddings_NSD.flatten(0, 1).unflatten(0, (frames, videos)).transpose(0, 1)


class Combination(Objective):
    """TCC, SaL and TCN, weighted, as TCC's released code combines them.

    Args:
        width: D.
        alignment_weight: of TCC.
        sal_weight: of SaL; TCN has what is left of 1. Without weight a loss is left out.
        tcc: settings of :class:`TCC`.
        sal: settings of :class:`SaL`.
        tcn: settings of :class:`TCN`.
        published_order: the embeddings of all three in the order in which the published code mixes
            them up, their frames' numbers in place.
    """

    name = "tcc_sal_tcn"
    pairs = True

    def __init__(
        self,
        width: int,
        *,
        alignment_weight: float = 0.33,
        sal_weight: float = 0.33,
        tcc: Mapping[str, Any] | None = None,
        sal: Mapping[str, Any] | None = None,
        tcn: Mapping[str, Any] | None = None,
        published_order: bool = False,
    ) -> None:
        check_weights(alignment_weight, sal_weight)
        settings: dict[str, Any] = {"alignment_weight": alignment_weight, "sal_weight": sal_weight}
        parts = {"tcc": TCC(width, **(tcc or {})), "tcn": TCN(width, **(tcn or {}))}
        order = SaL(width, **(sal or {}))
        for name, part in {**parts, "sal": order}.items():
            settings[name] = {key: x for key, x in part.spec.items() if key != "name"}
        super().__init__({**settings, "published_order": published_order})
        self.published_order = published_order
        rest = tcn_weight(alignment_weight, sal_weight)
        self.weights = {"tcc": alignment_weight, "sal": sal_weight, "tcn": rest}
        self.tcc, self.tcn = parts["tcc"], parts["tcn"]
        self.sal = order if sal_weight > 0 else None
        self.least_videos = self.tcc.least_videos if alignment_weight > 0 else 1
        self.least_frames = order.least_frames if sal_weight > 0 else 1

    def forward(
        self, sequences: Sequences, rng: np.random.Generator, training: bool = True
    ) -> dict[str, Tensor]:
        """Return ``total`` and the losses `tcc`, `sal`, `tcn` that have a weight, unweighted."""
        if self.published_order:
            sequences = replace(sequences, embeddings=mixed_up(sequences.embeddings))
        parity_N = torch.as_tensor(rng.integers(2, size=len(sequences.steps)))
        halves = sequences.of_pairs(parity_N.to(sequences.steps.device))
        losses = {}
        if self.weights["tcc"] > 0:
            losses["tcc"] = self.tcc(halves, rng, training)["total"]
        if self.sal is not None:
            losses["sal"] = self.sal(halves, rng, training)["total"]
        if self.weights["tcn"] > 0:
            losses["tcn"] = self.tcn(sequences, rng, training)["total"]
        return {"total": self.weighted(losses), **losses}

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of some losses, each times its weight."""
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()


def tcn_weight(alignment_weight: float, sal_weight: float) -> float:
    """Return what two weights leave of 1; rounding is no weight."""
    rest = 1 - alignment_weight - sal_weight
    return rest if rest > 1e-9 else 0.0


def check_weights(alignment_weight: float, sal_weight: float) -> None:
    """Refuse weights of the combination that are negative or above 1 together."""
    if min(alignment_weight, sal_weight) < 0 or alignment_weight + sal_weight > 1 + 1e-9:
        raise ValueError(
            f"alignment_weight {alignment_weight} and sal_weight {sal_weight} leave no weight of 0 "
            "or more for TCN; make both 0 or more and their sum 1 or less"
        )


class Classification(Objective):
    """The phase of each frame, supervised: the baseline of TCC.

    Args:
        width: D.
        classes: K.
        dropout: before the linear layer.
        label_smoothing: of the targets.
    """

    name = "classification"
    needs_labels = True

    def __init__(
        self, width: int, *, classes: int, dropout: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(
            {"classes": classes, "dropout": dropout, "label_smoothing": label_smoothing}
        )
        self.dropout, self.label_smoothing = dropout, label_smoothing
        self.head = nn.Linear(width, classes)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, sequences: Sequences, rng: np.random.Generator, training: bool = True
    ) -> dict[str, Tensor]:
        """Return ``total`` and `accuracy`, the share of right frames; those labelled -1 are left
        out."""
        assert sequences.labels is not None, "a supervised objective gets labels"
        embeddings_RD = sequences.embeddings.flatten(0, 1)
        labels_R = sequences.labels.flatten()
        labels_R = labels_R.masked_fill(labels_R < 0, NO_LABEL)
        seed = int(rng.integers(2**63 - 1))
        if training and self.dropout > 0:
            device = embeddings_RD.device
            draws = torch.rand(
                embeddings_RD.shape,
                generator=torch.Generator(device).manual_seed(seed),
                device=device,
            )
            embeddings_RD = embeddings_RD * (draws >= self.dropout) / (1 - self.dropout)
        logits_RK = self.head(embeddings_RD)
        loss = F.cross_entropy(
            logits_RK, labels_R, ignore_index=NO_LABEL, label_smoothing=self.label_smoothing
        )
        labelled = labels_R != NO_LABEL
        right = (logits_RK.argmax(dim=1) == labels_R)[labelled].float().mean()
        return {"total": loss, "accuracy": right.detach()}


_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    kind.name: kind for kind in (TCC, SaL, TCN, Combination, Classification)
}


def build_objective(spec: Mapping[str, Any], width: int) -> Objective:
    """Return the objective of a spec, its head fresh.

    Args:
        spec: ``name`` and the settings of its class.
        width: D.

    Raises:
        UserError: an unknown name.
    """
    name = spec["name"]
    if name not in _OBJECTIVES:
        raise UserError(f"unknown objective '{name}'{nearest(name, _OBJECTIVES)}")
    return _OBJECTIVES[name](width, **{key: x for key, x in spec.items() if key != "name"})
