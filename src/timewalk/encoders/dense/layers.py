"""How deep in an encoder a parameter lies: for learning rates that decay from layer to layer.

Source: iBOT's fine-tuning.
"""

from timewalk.encoders.base import Encoder


def layer_numbers(encoder: Encoder) -> tuple[dict[str, int], int]:
    """Return each parameter's layer, and how many layers there are.

    With L stages (a ViT's blocks): what is registered before the first stage is layer 0 (patch
    embedding, class token, positions), stage i is layer i + 1, what comes after the last one is
    layer L + 1, as everything outside the encoder is. What stands between two stages goes with the
    first of them. An encoder without stages is one layer, the last.

    Returns:
        layer by the encoder's own parameter names; L + 2.
    """
    stages = encoder.stages()
    stage_of = {
        parameter: number
        for number, stage in enumerate(stages, start=1)
        for parameter in stage.parameters()
    }
    layers, seen = {}, 0
    for name, parameter in encoder.named_parameters():
        seen = stage_of.get(parameter, seen)
        behind = parameter not in stage_of and seen == len(stages)
        layers[name] = seen + 1 if behind else seen
    return layers, len(stages) + 2
