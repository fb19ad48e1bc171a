"""Generators by key: what is drawn depends on numbers that name the draw, and on nothing else."""

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """Return a generator for a key of non-negative numbers: the same everywhere, always."""
    return torch.Generator().manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """Return a seed for a key of non-negative numbers."""
    # The length belongs to the key: a seed sequence takes (1, 2) and (1, 2, 0) for the same.
    word = np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0]
    return int(word) & (2**63 - 1)
