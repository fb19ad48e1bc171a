"""Time-contrastive networks (TCN, ICRA 2018), as single videos use them: an n-pairs loss.

Source: TCN, in the form of TCC's released code. The frame shortly before another one should be
nearer to it than to all other frames of its video. From embeddings to a scalar, in float32 at
least.

Shapes: N videos, T pairs of frames, D embedding size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from timewalk.ops.distillation import full


def n_pairs_loss(embs: Tensor, reg_lambda: float = 0.002, labels: Tensor | None = None) -> Tensor:
    """Return the n-pairs loss, the mean over videos, a scalar.

    Args:
        embs: (N, 2T, D): the earlier frame and the frame itself of each pair in turn. Logits are
            the products of earlier frames (rows) with frames (columns), softmaxes of rows alone.
        reg_lambda: weight of the embeddings' mean squared norms, of which a quarter counts.
        labels: (T,) or (N, T) class of each pair; a row's target is shared among the columns of
            its class. None: each pair is its own class.

    Raises:
        ValueError: an odd number of entries, or labels that do not fit.
    """
    if embs.ndim != 3 or embs.shape[1] % 2:
        raise ValueError(
            f"embs has the shape {tuple(embs.shape)}; give pairs of frames in turn, (N, 2T, D)"
        )
    videos, pairs = len(embs), embs.shape[1] // 2
    labels = torch.arange(pairs) if labels is None else labels
    if labels.shape not in ((pairs,), (videos, pairs)):
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)}; give one a pair, ({pairs},) or "
            f"({videos}, {pairs})"
        )
    labels_NT = labels.to(embs.device).expand(videos, pairs)
    with torch.autocast(embs.device.type, enabled=False):
        earlier_NTD, frames_NTD = full(embs)[:, ::2], full(embs)[:, 1::2]
        same_NTT = (labels_NT.unsqueeze(2) == labels_NT.unsqueeze(1)).to(earlier_NTD.dtype)
        targets_NTT = same_NTT / same_NTT.sum(dim=-1, keepdim=True)
        logits_NTT = earlier_NTD @ frames_NTD.mT
        contrast = F.cross_entropy(logits_NTT.flatten(0, 1), targets_NTT.flatten(0, 1))
        norms = earlier_NTD.square().sum(dim=-1).mean() + frames_NTD.square().sum(dim=-1).mean()
        return contrast + 0.25 * reg_lambda * norms
