"""Walks along the frames of a clip and back: what CRW (NeurIPS 2020) asks to end where it began.

Source: CRW, equations 1 to 4, and its released code. Nodes of neighbouring frames have affinities;
a softmax over the nodes of the next frame makes them the transitions of a random walk; walks go k +
1 frames forward and the same way back. All arithmetic is in float32 at least.

Shapes: B clips, T frames, N nodes a frame, C width of a node, K = T - 2 cycles, S chosen nodes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from timewalk.ops.distillation import full

DROPPED = -1e20
"""affinity of a dropped edge: nothing is left of it after the softmax, whatever the temperature"""
EPSILON = 1e-20


@dataclass
class Cycles:
    """What walks there and back say, one value for each length.

    Attributes:
        xent: (K,) mean negative log-probability of ending at the start.
        accuracy: (K,) share of nodes whose most probable end is their start.
    """

    xent: Tensor
    accuracy: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean over the lengths."""
        return self.xent.mean()


def affinities(nodes_BTNC: Tensor) -> Tensor:
    """Return the scalar products of unit nodes with those of the next frame, (B, T - 1, N, N)."""
    with torch.autocast(nodes_BTNC.device.type, enabled=False):
        nodes = full(nodes_BTNC)
        return nodes[:, :-1] @ nodes[:, 1:].mT


def transitions(
    affinities_BTNN: Tensor,
    temperature: float,
    rate: float = 0.0,
    uniforms_BDTNN: Tensor | None = None,
    *,
    shared_drops: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the probabilities of a step, forward and backward, each (B, T - 1, N, N).

    Row: node that is left; column: node that is reached. Entry t of the second leads from frame
    t + 1 to frame t.

    Args:
        affinities_BTNN: (B, T - 1, N, N), of nodes with those of the next frame.
        temperature: of the softmax.
        rate: share of edges that are dropped; those left of a node share its probability. A node
            that loses all goes anywhere.
        uniforms_BDTNN: (B, 2, T - 1, N, N) numbers in 0..1, forward and backward: an edge below
            the rate is dropped. Needed with a rate above 0.
        shared_drops: backward, drop the edges dropped forward as well.
    """
    with torch.autocast(affinities_BTNN.device.type, enabled=False):
        forward, backward = full(affinities_BTNN), full(affinities_BTNN).mT
        if rate > 0:
            assert uniforms_BDTNN is not None
            drop_forward, drop_backward = (uniforms_BDTNN < rate).unbind(dim=1)
            if shared_drops:
                drop_backward = drop_backward | drop_forward.mT
            forward = forward.masked_fill(drop_forward, DROPPED)
            backward = backward.masked_fill(drop_backward, DROPPED)
        return (forward / temperature).softmax(dim=-1), (backward / temperature).softmax(dim=-1)


def palindromes(forward_BTNN: Tensor, backward_BTNN: Tensor, *, flip: bool = False) -> Tensor:
    """Return the walks 0, 1, ..., k + 1, ..., 1, 0 for k = 1 to T - 2, (B, K, N, N).

    Row: start; column: end. The walk of one step each way is left out, as published.

    Args:
        forward_BTNN: (B, T - 1, N, N), from frame t to t + 1.
        backward_BTNN: (B, T - 1, N, N), from frame t + 1 to t.
        flip: multiply in the reversed order, as old models were trained.
    """
    if flip:
        forward_BTNN, backward_BTNN = backward_BTNN, forward_BTNN
    with torch.autocast(forward_BTNN.device.type, enabled=False):
        there, back = forward_BTNN[:, 0], backward_BTNN[:, 0]
        theres, backs = [], []
        for k in range(1, forward_BTNN.shape[1]):
            there, back = there @ forward_BTNN[:, k], backward_BTNN[:, k] @ back
            theres.append(there)
            backs.append(back)
        return torch.stack(theres, dim=1) @ torch.stack(backs, dim=1)


def cycles(walks_BKNN: Tensor) -> Cycles:
    """Return how well walks (B, K, N, N) end where they began."""
    logs_BKNN = (walks_BKNN + EPSILON).log()
    ends_BKN = logs_BKNN.diagonal(dim1=-2, dim2=-1)
    xent_BKN = logs_BKNN.logsumexp(dim=-1) - ends_BKN
    starts_N = torch.arange(walks_BKNN.shape[-1], device=walks_BKNN.device)
    right_BKN = logs_BKNN.detach().argmax(dim=-1) == starts_N
    return Cycles(xent_BKN.mean(dim=(0, 2)), right_BKN.float().mean(dim=(0, 2)))


@torch.no_grad()
def likeliest_paths(forward_TNN: Tensor, starts_S: Tensor) -> Tensor:
    """Return the most probable path of a walk from each of some nodes, (S, T) node numbers.

    Args:
        forward_TNN: (T - 1, N, N) transitions of one clip.
        starts_S: nodes of the first frame.
    """
    steps_TNN = forward_TNN.log()
    best_SN = steps_TNN[0, starts_S]
    before = []
    for step_NN in steps_TNN[1:]:
        best_SN, origin_SN = (best_SN.unsqueeze(-1) + step_NN).max(dim=1)
        before.append(origin_SN)
    path = [best_SN.argmax(dim=-1)]
    for origin_SN in reversed(before):
        path.append(origin_SN.gather(1, path[-1].unsqueeze(1)).squeeze(1))
    return torch.stack([starts_S, *reversed(path)], dim=1)
