"""What a step's micro-batches and processes know together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from timewalk.methods.base import Losses
from timewalk.ops.collectives import rows_of_processes


def numbers(record: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
    """Return plain numbers, fetched from the device in one go."""
    tensors = {key: value for key, value in record.items() if isinstance(value, Tensor)}
    fetched = torch.stack(list(tensors.values())).tolist()
    return {**record, **dict(zip(tensors, fetched, strict=True))}


def terms_of(parts: Sequence[Losses]) -> dict[str, Tensor]:
    """Return the loss and its terms, each the mean over micro-batches, as tensors."""
    device = parts[0].total.device
    named = [{"loss": part.total, **part.terms} for part in parts]
    return {
        key: torch.stack(
            [torch.as_tensor(terms[key], dtype=torch.float32, device=device) for terms in named]
        ).mean()
        for key in named[0]
    }


def joined_rows(parts: Sequence[Losses]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return this process's means, and the rows of all processes in the batch's order."""
    if len(parts) == 1:
        means = parts[0].means
    else:
        means = {k: torch.stack([p.means[k] for p in parts]).mean(dim=0) for k in parts[0].means}
    rows = {k: rows_of_processes(torch.cat([p.rows[k] for p in parts])) for k in parts[0].rows}
    return means, rows
