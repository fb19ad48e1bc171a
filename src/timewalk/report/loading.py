"""How to load an encoder: lines of Python for the model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timewalk.encoders import load_head
from timewalk.encoders.base import VIT_SHAPES
from timewalk.encoders.embedders import TrainedEmbedder, load_embedder
from timewalk.encoders.files import HEAD
from timewalk.encoders.slots import load_slots
from timewalk.report.page import fenced

BASE_NETWORKS = {
    "resnet50v2_conv4c": "Keras's `ResNet50V2` up to `conv4_block3_out`, kernels as torch has them",
    "resnet50_conv4c": "torchvision's `resnet50` without `layer3.3` and what follows it; its "
    "tensors have the names they have there",
    "vgg_m": "VGG-M as TCC has it, with names of timewalk's own",
}


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
    elif spec["family"] in BASE_NETWORKS:
        parts.append(f"The network is {BASE_NETWORKS[spec['family']]}.\n")
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


def loading_head(folder: Path) -> str:
    """Return the card's section on the head beside an encoder; empty where there is none.

    Args:
        folder: of the run.

    Raises:
        UserError: the head is damaged.
    """
    if not (folder / HEAD).is_file():
        return ""
    place, title = json.dumps(folder.as_posix()), f"`{HEAD}`"
    if (trained := load_embedder(folder)) is not None:
        return _loading_embedder(trained, place, title)
    slots = load_slots(folder)
    if slots is None:
        about = "What the method has behind the encoder, for evaluations that read it:"
        lines = f"""
from timewalk.encoders import load_head

tensors = load_head({place})  # a dictionary
"""
        return f"## Head: {title}\n\n{about}\n\n{fenced(lines)}"
    _, semantics, _, width = slots.slot_attention.slots_mu.shape
    rows, columns = slots.native_grid
    mask = f"`{slots.mask}`" + ("" if slots.mask == "soft" else f" above {slots.mask_threshold:g}")
    assumed = ""
    if "instances" not in load_head(folder):
        assumed = (
            " The file does not tell instances, grid and mask: the published ones are assumed."
        )
    lines = f"""
import torch
from timewalk.encoders.slots import load_slots, slot_masks

slots = load_slots({place})
keys = encoder.keys(frames)[None]  # frames: (T, 3, H, W) of a clip, normalised as above
noise = torch.randn(1, len(frames), {semantics}, {slots.instances}, {width})
masks = slot_masks(slots(keys, noise, iterations=5))
masks.semantic_prob  # (1, T, {semantics}, h * w)
masks.instance_masks  # (1, T, {semantics}, {slots.instances}, h * w)
"""
    return (
        f"## Slots: {title}\n\n{semantics} semantics with {slots.instances} instances each, learnt "
        f"on a grid of {rows} x {columns} patches; the mask of a semantic's area is {mask}."
        f"{assumed}\n\n{fenced(lines)}"
    )


def _loading_embedder(trained: TrainedEmbedder, place: str, title: str) -> str:
    context, step = trained.about["context"], trained.about["context_step"]
    size, width = trained.about["image_size"], trained.embedder.size
    resized = "stretched to squares (bilinear, antialias=False)"
    if trained.about.get("crop"):
        resized = "largest central squares, resized (bilinear, antialias=False)"
    lines = f"""
import torch

embedder = timewalk.load_embedder({place}).embedder
# frames: (T, 3, {size}, {size}) of a whole video in order, {resized},
# then normalised as above
with torch.no_grad():
    maps = encoder.dense(frames)
    ago = {step} * torch.arange({context - 1}, -1, -1)
    places = (torch.arange(len(maps))[:, None] - ago).clamp_min(0)
    embeddings = embedder(maps[places][None])[0]  # (T, {width})
"""
    return (
        f"## Embedder: {title}\n\nA vector of {width} numbers for each frame of a video, from the "
        f"maps of {context} frames, {step} apart, the frame itself last; trained by "
        f"`{trained.about['objective']['name']}`. A whole set at once: `timewalk embed`.\n\n"
        f"{fenced(lines)}"
    )


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
