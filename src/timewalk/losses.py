"""The alignment loss as a library: temporal cycle-consistency for embeddings of any network.

Needs torch and numpy, nothing else of timewalk's requirements. Names, argument order and defaults
are those of the code published with the paper (CVPR 2019), on torch tensors.

    from timewalk.losses import compute_alignment_loss

    embs = network(frames)                      # (N, T, D): N videos of one action, T frames each
    loss = compute_alignment_loss(
        embs,
        batch_size=len(embs),
        steps=steps,                            # (N, T): number of each frame in its video
        seq_lens=lengths,                       # (N,): frames of each whole video
        loss_type="regression_mse_var",
    )                                           # scalar
    loss.backward()

`torch.func` differentiates small batches alone: large ones are taken in checkpointed chunks.

The default `loss_type` is "classification", as published; the publication's experiments use
"regression_mse_var". Frames are sorted by time within a video. At least two videos are needed; they
should show the same action.

Caution: an embedder that can count frames solves this loss without looking. Recurrent networks,
positional codes of the frame's number, or time stamps in the picture let it embed the position, and
every cycle closes. Embed each frame from itself and a few neighbours alone.
"""

from timewalk.ops.alignment import (
    align_pair_of_sequences,
    compute_alignment_loss,
    compute_deterministic_alignment_loss,
    compute_stochastic_alignment_loss,
    get_scaled_similarity,
    pairwise_l2_distance,
)
from timewalk.ops.cycle_draws import draw_cycles, draw_starts

__all__ = [
    "align_pair_of_sequences",
    "compute_alignment_loss",
    "compute_deterministic_alignment_loss",
    "compute_stochastic_alignment_loss",
    "draw_cycles",
    "draw_starts",
    "get_scaled_similarity",
    "pairwise_l2_distance",
]
