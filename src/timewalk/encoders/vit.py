"""The Vision Transformer of DINO, on timm's modules: its 150 keys are timm's and DINO's.

Source: DINO's released code. What timm does otherwise is done here: the initialisation, the
interpolation of position embeddings, and access to the last block's queries, keys and attention.

Shapes: B images, b images of a selection, N patches (h x w), D width, H heads, E width of a head.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from timewalk.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder, Features, Triple

PositionRule = Literal["dino", "timm"]
TWELFTHS = (4, 6, 8, 12)
"""of a ViT's depth, behind which :meth:`ViT.taps` are taken"""


@dataclass
class Tokens:
    """What a pass returns beside the summary.

    Attributes:
        raw: (B, 1 + N, D) tokens of the last block before the final norm.
        final: (B, 1 + N, D) after it; the first is the class token.
        grid: (h, w).
        queries: (b, N, D) of the last block's patches, heads side by side, not scaled.
        keys: (B, N, D) likewise.
        cls_attention: (b, H, N) attention of the class token to the patches in the last block; a
            softmax that also covers the class token, so a row sums to less than 1.
    """

    raw: Tensor
    final: Tensor
    grid: tuple[int, int]
    queries: Tensor | None = None
    keys: Tensor | None = None
    cls_attention: Tensor | None = None

    @property
    def cls(self) -> Tensor:
        """(B, D) the normalised class token."""
        return self.final[:, 0]

    @property
    def patches(self) -> Tensor:
        """(B, N, D) the normalised patch tokens."""
        return self.final[:, 1:]


def interpolate_positions(positions: Tensor, grid: tuple[int, int], rule: PositionRule) -> Tensor:
    """Return position embeddings of a square grid for another grid.

    Args:
        positions: (1, 1 + n, D), of the class token and of a square of patches.
        grid: rows and columns of the patches.
        rule: `dino` or `timm`.

    Returns:
        (1, 1 + N, D).
    """
    side = math.isqrt(positions.shape[1] - 1)
    # Both pass by only what is square and of unchanged size; others go through bicubic.
    if grid == (side, side):
        return positions
    if rule == "timm":
        return resample_abs_pos_embed(positions, list(grid), [side, side], num_prefix_tokens=1)
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    # The 0.1 keeps rounding from losing a row; the factors are used as they are, so the sampling
    # points differ slightly from those of an exact target size.
    scale = [(cells + 0.1) / side for cells in grid]
    patches = F.interpolate(
        patches, scale_factor=scale, mode="bicubic", align_corners=False, antialias=False
    )
    assert patches.shape[-2:] == grid
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class ViT(VisionTransformer, Encoder):
    """A pre-norm ViT with class token and learned absolute positions, any image size."""

    pos_embed: nn.Parameter
    cls_token: nn.Parameter
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_size: int = 16,
        image_size: int = 224,
        drop_path: float = 0.0,
        position_interpolation: PositionRule = "dino",
        mean: Triple | None = None,
        std: Triple | None = None,
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            drop_path_rate=drop_path,
            weight_init="skip",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.stride = self.multiple = patch_size
        self.width = self.patch_width = width
        self.heads = heads
        # Drop path is a matter of training: a saved encoder is built without it.
        self.spec = {
            "family": "vit",
            "width": width,
            "depth": depth,
            "heads": heads,
            "patch_size": patch_size,
            "image_size": image_size,
            "position_interpolation": position_interpolation,
        }
        self.position_interpolation = position_interpolation
        if mean is not None and std is not None:
            self.normalise_by(mean, std)
        self._initialise()
        blocks: list[Any] = list(self.blocks)
        for block in blocks:
            self._keys_hook = block.attn.qkv.bias.register_hook(_nothing_for_keys)

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def regions(self) -> list[nn.Module]:
        """Return the blocks."""
        return list(self.blocks)

    def forward(self, images: Tensor) -> Features:  # type: ignore[override]
        """Return the normalised class token and the map of normalised patch tokens."""
        tokens = self.tokens(images)
        return Features(tokens.cls, _as_map(tokens.patches, tokens.grid))

    def tokens(
        self,
        images: Tensor,
        *,
        queries: slice | None = None,
        keys: bool = False,
        cls_attention: slice | None = None,
    ) -> Tokens:
        """Run all blocks; of the last one, return only what is asked for.

        Args:
            images: (B, 3, H, W), sides multiples of the patch size.
            queries: images whose queries are returned.
            keys: whether all images' keys are returned.
            cls_attention: images whose class-token attention is returned.
        """
        x, grid = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.last_block(
            self.blocks[-1], x, grid, queries=queries, keys=keys, cls_attention=cls_attention
        )

    def last_block(
        self,
        block: Any,
        x: Tensor,
        grid: tuple[int, int],
        *,
        queries: slice | None = None,
        keys: bool = False,
        cls_attention: slice | None = None,
    ) -> Tokens:
        """Run the last block, or another's in its place (a teacher's); see :meth:`tokens`.

        Args:
            block: the block.
            x: (B, 1 + N, D), its input.
            grid: (h, w).
            queries: images whose queries are returned.
            keys: whether all images' keys are returned.
            cls_attention: images whose class-token attention is returned.
        """
        if queries is None and cls_attention is None and not keys:
            x = block(x)
            return Tokens(x, self.norm(x), grid)
        q, k, v = self._qkv(block, x)
        x = _finish_block(block, x, F.scaled_dot_product_attention(q, k, v))
        result = Tokens(x, self.norm(x), grid)
        if queries is not None:
            result.queries = _join_heads(q[queries, :, 1:])
        if keys:
            result.keys = _join_heads(k[:, :, 1:])
        if cls_attention is not None:
            row = _attention(q[cls_attention, :, :1], k[cls_attention])
            result.cls_attention = row[:, :, 0, 1:]
        return result

    def summary(self, images: Tensor) -> Tensor:
        """Return the normalised class token alone, (B, D).

        Of the last block only the class token's row is computed: the same numbers and gradients for
        a fourteenth less work at twelve blocks.
        """
        x, _ = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Any = self.blocks[-1]
        normed: Tensor = last.norm1(x)
        qkv: Any = last.attn.qkv
        q = F.linear(normed[:, :1], qkv.weight[: self.width], qkv.bias[: self.width])
        kv = F.linear(normed, qkv.weight[self.width :], qkv.bias[self.width :])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = _finish_block(last, x[:, :1], F.scaled_dot_product_attention(q, k, v))
        return self.norm(x)[:, 0]

    def last_blocks(self, images: Tensor, blocks: int) -> Tensor:
        """Return the tokens of the last ``blocks`` blocks, each after the final norm.

        Returns:
            (blocks, B, 1 + N, D), in the blocks' order.
        """
        x, _ = self.embed(images)
        first = len(self.blocks) - blocks
        outputs = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number >= first:
                outputs.append(self.norm(x))
        return torch.stack(outputs)

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return the patch tokens' maps after a third, half, two thirds and all of the blocks.

        As iBOT's fine-tuning takes them: of 12 blocks the 4th, 6th, 8th and 12th.

        Args:
            images: (B, 3, H, W), sides multiples of the patch size.
            norm: whether the final norm is applied to each map.

        Returns:
            four maps (B, D, h, w).
        """
        depth = len(self.blocks)
        places = [max(round(depth * twelfths / 12), 1) for twelfths in TWELFTHS]
        x, grid = self.embed(images)
        maps: dict[int, Tensor] = {}
        for place, block in enumerate(self.blocks, start=1):
            x = block(x)
            if place in places:
                maps[place] = _as_map(self.norm(x[:, 1:]) if norm else x[:, 1:], grid)
        return [maps[place] for place in places]

    def last_attention(self, images: Tensor) -> Tensor:
        """Return the whole attention of the last block, (B, H, 1 + N, 1 + N): for figures."""
        x, _ = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        q, k, _ = self._qkv(self.blocks[-1], x)
        return _attention(q, k)

    def keys(self, images: Tensor) -> Tensor:
        """Return the map of the last block's keys, (B, D, h, w).

        Nothing else of the last block is computed: the same numbers for a twelfth less work at
        twelve blocks.
        """
        x, grid = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Any = self.blocks[-1]
        qkv, rows = last.attn.qkv, slice(self.width, 2 * self.width)
        keys = F.linear(last.norm1(x[:, 1:]), qkv.weight[rows], qkv.bias[rows])
        return _as_map(keys, grid)

    def learn_from_keys(self) -> None:
        """Prepare for a loss of the last block's keys themselves.

        Their bias then has a gradient of its own; what comes after the keys has none, and no longer
        asks for one.
        """
        self._keys_hook.remove()
        last: Any = self.blocks[-1]
        after: tuple[nn.Module, ...] = (last.attn.proj, last.norm2, last.mlp, self.norm)
        for module in after:
            module.requires_grad_(False)

    def patches_before_norm(self, images: Tensor) -> Tensor:
        """Return the map of the last block's patch tokens before the final norm, (B, D, h, w)."""
        tokens = self.tokens(images)
        return _as_map(tokens.raw[:, 1:], tokens.grid)

    def cls_attention(self, images: Tensor) -> Tensor:
        """Return the class token's attention to the patches in the last block, (B, H, h, w)."""
        tokens = self.tokens(images, cls_attention=slice(None))
        assert tokens.cls_attention is not None
        return tokens.cls_attention.unflatten(-1, tokens.grid)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the first block's input (B, 1 + N, D) and the grid (h, w)."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"an image of {height} x {width} pixels does not divide into patches of "
                f"{self.stride}; resize or crop it to multiples"
            )
        x_BDhw = self.patch_embed.proj(images)
        grid = (x_BDhw.shape[2], x_BDhw.shape[3])
        x_BND = x_BDhw.flatten(2).transpose(1, 2)
        cls_B1D = self.cls_token.expand(len(x_BND), -1, -1).to(x_BND.dtype)
        return torch.cat([cls_B1D, x_BND], dim=1) + self.positions(grid), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return position embeddings (1, 1 + N, D) for a grid."""
        return interpolate_positions(self.pos_embed, grid, self.position_interpolation)

    def _qkv(self, block: Any, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = block.attn.qkv(block.norm1(x_BTD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


def _nothing_for_keys(gradient: Tensor) -> Tensor:
    """Take the keys' bias out of the gradient of queries', keys' and values' bias.

    It adds the same number to all of a query's scores, which softmax takes away again: its gradient
    is nothing but rounding, and Adam would make steps of full size of that.
    """
    gradient = gradient.clone()
    gradient.unflatten(0, (3, -1))[1].zero_()
    return gradient


def _finish_block(block: Any, x_BTD: Tensor, attended_BHTE: Tensor) -> Tensor:
    """What timm's block does after the attention."""
    x_BTD = x_BTD + block.drop_path1(block.attn.proj(_join_heads(attended_BHTE)))
    return x_BTD + block.drop_path2(block.mlp(block.norm2(x_BTD)))


def _attention(q_BHQE: Tensor, k_BHTE: Tensor) -> Tensor:
    """Softmax of scaled products in float32, or float64 where that is given, (B, H, Q, T)."""
    exact = torch.promote_types(q_BHQE.dtype, torch.float32)
    with torch.autocast(q_BHQE.device.type, enabled=False):
        scores = q_BHQE.to(exact) @ k_BHTE.to(exact).transpose(-2, -1)
        return (scores / math.sqrt(q_BHQE.shape[-1])).softmax(dim=-1)


def _join_heads(x_BHTE: Tensor) -> Tensor:
    """(B, H, T, E) to (B, T, D), heads side by side."""
    return x_BHTE.transpose(1, 2).flatten(2)


def _as_map(x_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    return x_BND.transpose(1, 2).unflatten(-1, grid)


def probe_features(vit: ViT, images: Tensor, blocks: int, average: bool) -> Tensor:
    """Return DINO's features for a linear probe.

    As in DINO's released linear evaluation: class tokens of the last ``blocks`` blocks side by
    side; with ``average`` (one block only) class token and mean patch token, interleaved element by
    element as in the published weights.
    """
    tokens = vit.last_blocks(images, blocks)
    summary = tokens[:, :, 0].transpose(0, 1).flatten(1)
    if not average:
        return summary
    if blocks != 1:
        raise ValueError(f"averaged patches go with one block, not {blocks}")
    return torch.stack([summary, tokens[-1, :, 1:].mean(dim=1)], dim=-1).flatten(1)
