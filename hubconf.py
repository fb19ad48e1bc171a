"""Entry points of torch.hub: a trained run's encoder, or a fresh ViT, from a checkout.

    torch.hub.load("<checkout>", "encoder", "results/dora", source="local")
    torch.hub.load("<checkout>", "vit_small", source="local")

An installed timewalk is used if there is one, else the one beside this file, in src/.
"""

import importlib.util as _importlib_util
import pathlib as _pathlib
import sys as _sys
import typing as _typing

# torch.hub lists every callable here without an underscore as an entry point.
if _importlib_util.find_spec("timewalk") is None:
    _sys.path.append(str(_pathlib.Path(__file__).parent / "src"))

if _typing.TYPE_CHECKING:
    from timewalk.encoders import Encoder as _Encoder

dependencies = ["torch", "timm", "safetensors", "pydantic"]


def encoder(folder: str) -> "_Encoder":
    """Return the encoder of a run, in eval mode on the CPU.

    Args:
        folder: the run's folder, such as `results/dora`, relative to the working directory.

    Returns:
        A network from images (B, 3, H, W) in 0..1, normalised by its `mean` and `std`, to
        features: `summary` (B, D) and `patches` (B, C, h, w).

    Raises:
        UserError: a file is missing, damaged, or does not fit the architecture beside it.
    """
    from timewalk.encoders import load_encoder

    return load_encoder(folder)


def vit_tiny(weights: str | None = None, seed: int = 0, **keys: _typing.Any) -> "_Encoder":
    """Return a ViT of width 192, 12 blocks and 3 heads; arguments as for `vit_small`."""
    return _vit("vit_tiny", weights, seed, keys)


def vit_small(weights: str | None = None, seed: int = 0, **keys: _typing.Any) -> "_Encoder":
    """Return a ViT of width 384, 12 blocks and 6 heads, in eval mode on the CPU.

    Args:
        weights: what the key `encoder.weights` of a configuration takes, such as the path of a
            state dict; None: fresh weights.
        seed: of fresh weights.
        keys: further keys of `encoder:` in a configuration, such as `patch_size=8`.

    Returns:
        A network as of `encoder`.

    Raises:
        UserError: an unknown key, or weights that do not fit.
    """
    return _vit("vit_small", weights, seed, keys)


def vit_base(weights: str | None = None, seed: int = 0, **keys: _typing.Any) -> "_Encoder":
    """Return a ViT of width 768, 12 blocks and 12 heads; arguments as for `vit_small`."""
    return _vit("vit_base", weights, seed, keys)


def _vit(name: str, weights: str | None, seed: int, keys: dict[str, _typing.Any]) -> "_Encoder":
    from timewalk.check import check
    from timewalk.config import EncoderConfig
    from timewalk.encoders import build_encoder

    config = check(EncoderConfig, {"name": name, "weights": weights, **keys}, "encoder")
    return build_encoder(config, seed).eval()
