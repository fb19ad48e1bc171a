"""DoRA: a ViT from one long video, by discovering objects and tracking them.

"Is ImageNet worth 1 video?" (ICLR 2024). A teacher sees the frames of a clip; three heads of its
last block's class-token attention give three objects in the first frame, Sinkhorn-Knopp keeps them
apart, the keys of every frame track them. The student sees each frame masked to one object, and
local crops, and has to say what the teacher says of the whole frame. Sheet: spec/dora.md, sections
named in the docstrings.

Shapes: B clips, F frames, K objects, L local views, N patches (h x w), H heads, d width of the
ViT, D width of the head, S and s sides of global and local views. Images lie clip-major: row
b * F + f of (B * F, ...).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.config import EncoderConfig, Positive, Probability, TrainingConfig
from timewalk.data.views import (
    ColourChain,
    crop_resize,
    global_view,
    local_views,
    normalise,
    random_window,
)
from timewalk.encoders import build_encoder, seeded
from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD, VIT_SHAPES, vit_shape
from timewalk.encoders.heads import DinoHead
from timewalk.methods.base import Losses, Method, Step, TrainedRunConfig
from timewalk.ops.collectives import mean_over_processes
from timewalk.ops.distillation import (
    cross_entropy,
    full,
    teacher_probabilities,
    update_centre_,
)
from timewalk.ops.ema import ema_update_
from timewalk.ops.schedules import linear_then_constant, warmup_cosine
from timewalk.ops.sinkhorn import sinkhorn, sinkhorn_published, underflows

if TYPE_CHECKING:
    from timewalk.encoders.vit import Tokens, ViT

Share = tuple[
    float, float
]
