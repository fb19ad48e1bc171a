"""How to load an encoder: lines of Python for the model card."""

import json
from collections.abc import Mapping
from typing import Any

from timewalk.encoders.base import VIT_SHAPES
from timewalk.report.page import fenced


def loading(about: Mapping[str, Any], folder: str) -> str:
    """Return the card's section on loading: with timewalk, torch.hub, and for ViTs timm alone.

    Args:
        about: the content of ``encoder.json``.
        folder: of the run, as the lines name it.
    """
    spec = about["architecture"]
    stride, width = about["stride"], about["width"]
    ours = f"""
import timewalk
from torchvision.transforms.functional import normalize

encoder = timewalk.load_encoder({json.dumps(folder)})
features = encoder(normalize(images, encoder.mean, encoder.std))  # images: (B, 3, H, W) in 0..1
features.summary  # (B, {width})
features.patches  # (B, {about["patch_width"]}, H / {stride}, W / {stride})
"""
    hub = f"""
import torch

encoder = torch.hub.load(".", "encoder", {json.dumps(folder)}, source="local")
"""
    parts = [
        "## How to load it\n\nWith timewalk:\n",
        fenced(ours),
        "By torch.hub, from a checkout of timewalk (here the working directory):\n",
        fenced(hub),
    ]
    if spec["family"] == "vit":
        side = spec["image_size"]
        parts += [
            f"With timm alone, for images of {side} x {side} pixels, normalised as above; the "
            "result is `features.summary`:\n",
            fenced(_timm_lines(spec, folder)),
        ]
    elif spec["family"] == "resnet":
        padding = ", and convolutions pad by reflection" if spec["padding"] == "reflect" else ""
        parts.append(
            f"The tensors are those of torchvision's `{spec['name'].removesuffix('_s8')}` without "
            f"`fc`. Here every convolution of `layer3` and `layer4` has stride 1{padding}.\n"
        )
    else:
        parts.append(
            f"The tensors are those of timm's `{spec['name']}` with `body.` before each name.\n"
        )
    return "\n".join(parts)


def _timm_lines(spec: Mapping[str, Any], folder: str) -> str:
    shape = (spec["width"], spec["depth"], spec["heads"])
    patch, side = spec["patch_size"], spec["image_size"]
    named = [name for name, known in VIT_SHAPES.items() if known == shape]
    # timm has names for the usual sizes only; its class builds every size.
    if named and (patch, side) == (16, 224):
        first = "import timm"
        model = f'timm.create_model("{named[0]}_patch16_224", num_classes=0)'
    else:
        first = "from timm.models.vision_transformer import VisionTransformer"
        model = (
            f"VisionTransformer(\n    img_size={side}, patch_size={patch}, embed_dim={shape[0]}, "
            f"depth={shape[1]}, num_heads={shape[2]}, num_classes=0\n)"
        )
    return f"""
{first}
from safetensors.torch import load_file

model = {model}
model.load_state_dict(load_file({json.dumps(f"{folder}/encoder.safetensors")}))
summary = model.eval()(images)  # (B, {spec["width"]})
"""
