"""Slot attention: vectors that compete for the tokens of a set and take up what they win.

Source: SMTC as released, after Slot Attention. Its two stages are the same step: slots compete
within their group, all of a set in the first stage, those of one semantic and inside its mask in
the second. All of it in float32 (float64 stays), whatever the networks' precision: a mask is drawn
from the logits.

Shapes: b sets, N tokens of a set, D width, S learnt starts, P slots of a group, G groups.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from timewalk.ops.distillation import full

Update = Literal["residual", "gru"]

FLOOR = 1e-8
"""what each token gives to each slot at least"""


class SlotAttention(nn.Module):
    """Slots from tokens, in a number of iterations of which the last one is differentiated.

    The parameters' names are those of SMTC's checkpoints.

    Args:
        width: D.
        slots: S.
        hidden: width of the MLP; None or less than D: D.
        update: how a slot takes up what it won: `residual` adds it, `gru` passes it through a
            gated recurrent unit.

    Attributes:
        slots_mu: (1, S, 1, D) the starts, and the means of what is sampled.
        slots_sigma: (1, S, 1, D) logarithms of the standard deviations.
    """

    def __init__(
        self, width: int, slots: int, *, hidden: int | None = None, update: Update = "residual"
    ) -> None:
        super().__init__()
        hidden = max(width, hidden or 0)
        self.slots_mu = nn.Parameter(torch.randn(1, slots, 1, width))
        self.slots_sigma = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, slots, 1, width)))
        self.norm_input = nn.LayerNorm(width)
        self.norm_slots = nn.LayerNorm(width)
        self.norm_pre_ff = nn.LayerNorm(width)
        self.project_q = nn.Linear(width, width)
        self.project_k = nn.Linear(width, width)
        self.project_v = nn.Linear(width, width)
        self.gru = nn.GRUCell(width, width) if update == "gru" else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (b, N, D) of features (b, N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            normed = self.norm_input(full(features))
            return self.project_k(normed), self.project_v(normed)

    def start(self, count: int) -> Tensor:
        """Return the learnt starts of ``count`` sets, (count, S, D)."""
        return self.slots_mu[:, :, 0].expand(count, -1, -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Return starts (b, S, P, D) drawn around the learnt ones, with a derivative of zero.

        Args:
            noise: (b, S, P, D) standard normal.
        """
        drawn = self.slots_mu.detach() + self.slots_sigma.detach().exp() * noise
        # Without a gradient the optimiser would skip the deviations; at zero, it decays them.
        return drawn + 0.0 * self.slots_sigma

    def attend(
        self,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        iterations: int,
        mask: Tensor | None = None,
        mask_floor: float = FLOOR,
    ) -> tuple[Tensor, Tensor]:
        """Return the slots after the last iteration, and the logits that it attended by.

        Straight-through: the start gets the gradient of the slot that enters the last iteration;
        the iterations before leave no graph.

        Args:
            keys: (b, N, D).
            values: (b, N, D).
            slots: (b, G, P, D), the start.
            iterations: at least 1.
            mask: (b, G, N) weights of the tokens in each group; a group without any takes up
                nothing.
            mask_floor: added to a slot's sum over tokens where there is a mask.

        Returns:
            Slots (b, G, P, D) and logits (b, G, P, N), the latter without the mask.

        Raises:
            ValueError: fewer than one iteration.
        """
        if iterations < 1:
            raise ValueError(f"slot attention needs at least 1 iteration, not {iterations}")
        with torch.autocast(keys.device.type, enabled=False):
            keys, values, slots = full(keys), full(values), full(slots)
            current = slots
            with torch.no_grad():
                for _ in range(iterations - 1):
                    current, _ = self._step(keys, values, current, mask, mask_floor)
            if iterations > 1:
                current = slots + (current - slots).detach()
            return self._step(keys, values, current, mask, mask_floor)

    def _step(
        self, keys: Tensor, values: Tensor, slots: Tensor, mask: Tensor | None, mask_floor: float
    ) -> tuple[Tensor, Tensor]:
        queries = self.project_q(self.norm_slots(slots)) / math.sqrt(slots.shape[-1])
        # All groups in one product: keys repeated for each would be G times as large.
        logits = (queries.flatten(1, 2) @ keys.mT).unflatten(1, slots.shape[1:3])
        weights = attention_weights(logits, mask, mask_floor)
        won = (weights.flatten(1, 2) @ values).unflatten(1, slots.shape[1:3])
        if self.gru is None:
            slots = slots + won
        else:
            slots = self.gru(won.flatten(0, 2), slots.flatten(0, 2)).view_as(slots)
        return slots + self.mlp(self.norm_pre_ff(slots)), logits


def attention_weights(
    logits: Tensor, mask: Tensor | None = None, mask_floor: float = FLOOR
) -> Tensor:
    """Return what each slot takes of each token: of its group's softmax, normalised over tokens.

    Args:
        logits: (b, G, P, N).
        mask: (b, G, N), or None.
        mask_floor: added to a slot's sum over tokens where there is a mask.

    Returns:
        (b, G, P, N); over the tokens they sum to 1, or to 0 where the mask is empty.
    """
    weights = full(logits).softmax(dim=2) + FLOOR  # half precision has no such small numbers
    if mask is None:
        return weights / weights.sum(dim=-1, keepdim=True)
    weights = weights * mask.unsqueeze(2)
    return weights / (weights.sum(dim=-1, keepdim=True) + mask_floor)
