"""One small encoder of every family."""

from timewalk.config import EncoderConfig
from timewalk.encoders import Encoder, build_encoder

VIT = {"name": "vit_tiny", "width": 24, "depth": 3, "heads": 4}
FAMILIES = {
    "vit/16": {**VIT, "patch_size": 16, "image_size": 32},
    "vit/14": {**VIT, "patch_size": 14, "image_size": 28},
    "vit/8": {**VIT, "patch_size": 8, "image_size": 32},
    "resnet18_s8": {"name": "resnet18_s8"},
    "test_resnet": {"name": "test_resnet"},
    "test_convnext": {"name": "test_convnext"},
    "resnet50v2_conv4c": {"name": "resnet50v2_conv4c"},
    "resnet50_conv4c": {"name": "resnet50_conv4c"},
    "vgg_m": {"name": "vgg_m"},
}
STRIDES = {
    "vit/16": (16, 16, 16, 16),
    "vit/14": (14, 14, 14, 14),
    "vit/8": (8, 8, 8, 8),
    "resnet18_s8": (4, 8, 8, 8),
    "test_resnet": (4, 8, 16, 32),
    "test_convnext": (4, 8, 16, 32),
    "resnet50v2_conv4c": (4, 8, 16, 16),
    "resnet50_conv4c": (4, 8, 16, 16),
    "vgg_m": (4, 8, 16, 16),
}


def encoder(name: str) -> Encoder:
    """Return the encoder of a family, seeded, in evaluation mode."""
    return build_encoder(EncoderConfig(**FAMILIES[name]), seed=0).eval()
