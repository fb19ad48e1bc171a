"""A run with slots that were never trained, and proposals made up by hand."""

import numpy as np
import torch

from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, save_encoder, save_head
from timewalk.encoders.slots import SlotNetwork
from timewalk.evaluation.proposals import Proposals

SLOTS, INSTANCES, WIDTH = 3, 2, 24
VIT = EncoderConfig(name="vit_tiny", patch_size=8, image_size=32, depth=2, width=WIDTH, heads=3)


def slots_run(folder, seed=0):
    """Save a tiny ViT and slots beside it; return the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SlotNetwork(WIDTH, (4, 4), SLOTS, INSTANCES)
    save_encoder(build_encoder(VIT, 0), folder, {})
    save_head(network.tensors(), folder)
    return folder


def proposals(frames, vectors=None, groups=None, scores=None):
    """Return proposals of masks (n, h, w) a frame; by default alike in all but the masks."""
    masks = [np.asarray(frame, np.float32) for frame in frames]
    counts = [len(frame) for frame in masks]
    ones = [np.ones(count, np.float32) for count in counts]
    return Proposals(
        masks=masks,
        scores=[np.asarray(each, np.float32) for each in scores] if scores else ones,
        groups=[np.asarray(each) for each in groups or [np.zeros(n, int) for n in counts]],
        vectors=[
            np.asarray(each, np.float32) for each in vectors or [np.eye(1)[[0] * n] for n in counts]
        ],
        all_masks=np.zeros((len(masks), 0, *masks[0].shape[1:]), np.float32),
    )
