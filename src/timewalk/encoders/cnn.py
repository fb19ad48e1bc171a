"""Any convolutional network of timm as an encoder.

Summary: the pooled features before the classifier. Patches: the deepest map at stride 16 or less
(EfficientNet-Lite0: 1280 and 112 channels), from the same pass.
"""

from typing import Any

import timm
from torch import Tensor, nn

from timewalk.encoders.base import (
    BASE_NETWORKS,
    RESNETS,
    TAPS,
    VIT_SHAPES,
    Encoder,
    Features,
    Triple,
    triple,
)
from timewalk.errors import UserError, nearest

LARGEST_STRIDE = 16
CONTAINERS = ("stages", "blocks")
"""modules of timm's networks whose children are the stages"""


class TimmEncoder(Encoder):
    """A network of timm by name.

    Args:
        name: of the model.
        mean: of the images it expects; None: as timm says.
        std: likewise.
    """

    channels_last = True

    def __init__(self, name: str, mean: Triple | None = None, std: Triple | None = None) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"encoder.name: timm has no model '{name}'{_near(name)}")
        body: Any = timm.create_model(name, pretrained=False, num_classes=0)
        if not hasattr(body, "forward_intermediates"):
            raise UserError(
                f"encoder.name: timm's '{name}' gives no feature maps; choose a ResNet, "
                "EfficientNet or ConvNeXt."
            )
        self.body = body
        stages = [dict(stage) for stage in body.feature_info]
        fitting = [i for i, stage in enumerate(stages) if stage["reduction"] <= LARGEST_STRIDE]
        if not fitting:
            raise UserError(f"encoder.name: timm's '{name}' has no map at stride {LARGEST_STRIDE}.")
        self._stage = fitting[-1]
        last = range(max(len(stages) - TAPS, 0), len(stages))
        self._taps = [last[0]] * (TAPS - len(last)) + list(last)
        self._tap_strides = tuple(int(stages[i]["reduction"]) for i in self._taps)
        self._tap_widths = tuple(int(stages[i]["num_chs"]) for i in self._taps)
        self.stride = int(stages[self._stage]["reduction"])
        self.patch_width = int(stages[self._stage]["num_chs"])
        self.width = int(getattr(body, "head_hidden_size", body.num_features))
        self.mean = triple(mean or body.pretrained_cfg["mean"])
        self.std = triple(std or body.pretrained_cfg["std"])
        self.spec = {"family": "timm", "name": name, "mean": self.mean, "std": self.std}

    def regions(self) -> list[nn.Module]:
        """Return the stages of the network."""
        return [part for part in self.body.children() if _learns(part)]

    def stages(self) -> list[nn.Module]:
        """Return what follows the stem, map by map; where timm does not say what, the regions."""
        body: Any = self.body
        for name in CONTAINERS:
            if hasattr(body, name):
                return [part for part in getattr(body, name).children() if _learns(part)]
        ends = {stage["module"] for stage in body.feature_info} - {"stem"}
        found = [part for name, part in body.named_children() if name in ends and _learns(part)]
        return found or self.regions()

    @property
    def deepest_width(self) -> int:
        """Channels of the map before pooling."""
        body: Any = self.body
        return int(body.num_features)

    def deepest(self, images: Tensor) -> Tensor:
        """Return the map before pooling, (B, deepest_width, h, w)."""
        body: Any = self.body
        last: Tensor = body.forward_features(images)
        return last

    def dense(self, images: Tensor) -> Tensor:
        """Return the map at stride 16 alone, without the layers behind it."""
        body: Any = self.body
        keys = {"indices": [self._stage], "stop_early": True, "intermediates_only": True}
        maps: list[Tensor] = body.forward_intermediates(images, **keys)
        return maps[0]

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Strides of the last four stages; the shallowest is repeated where there are fewer."""
        return self._tap_strides

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of these stages."""
        return self._tap_widths

    def taps(self, images: Tensor, *, norm: bool = True) -> list[Tensor]:
        """Return the maps of these stages; there is no norm to apply."""
        body: Any = self.body
        stages = sorted(set(self._taps))
        keys = {"indices": stages, "stop_early": True, "intermediates_only": True}
        maps = dict(zip(stages, body.forward_intermediates(images, **keys), strict=True))
        return [maps[stage] for stage in self._taps]

    def forward(self, images: Tensor) -> Features:
        """Return pooled features and the map at stride 16."""
        body: Any = self.body
        last, maps = body.forward_intermediates(images, indices=[self._stage])
        return Features(body.forward_head(last), maps[0])


def _learns(part: nn.Module) -> bool:
    return any(True for _ in part.parameters())


def _near(name: str) -> str:
    close = nearest(name, [*VIT_SHAPES, *RESNETS, *BASE_NETWORKS, *timm.list_models()])
    return close if "did you mean" in close else "; see timm.list_models()"
