"""How deep in an encoder a parameter lies: for learning rates that decay from layer to layer.

Sheet: dense-transfer section 1.
"""

from timewalk.encoders.base import Encoder


def layer_numbers(encoder: Encoder) -> tuple[dict[str, int], int]:
    """Return each parameter's layer, and how many layers there are.

    With L regions (a ViT's blocks): what is registered before the first region is layer 0 (patch
    embedding, class token, positions), region i is layer i + 1, what comes after the last one is
    layer L + 1, as everything outside the encoder is. What stands between two regions goes with the
    first of them. An encoder without regions is one layer, the last.

    Returns:
        layer by the encoder's own parameter names; L + 2.
    """
    regions = encoder.regions()
    region_of = {
        parameter: number
        for number, region in enumerate(regions, start=1)
        for parameter in region.parameters()
    }
    layers, seen = {}, 0
    for name, parameter in encoder.named_parameters():
        seen = region_of.get(parameter, seen)
        behind = parameter not in region_of and seen == len(regions)
        layers[name] = seen + 1 if behind else seen
    return layers, len(regions) + 2
