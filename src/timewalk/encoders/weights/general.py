"""The rule for every checkpoint: find the flat state, find the network in it, drop the rest.

An adapter of one format says where its network lies and falls back on this rule; nothing is loaded
unless all of the network's tensors are there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from timewalk.errors import UserError

State = Mapping[str, Tensor]

NESTS = ("teacher", "student", "model_state_dict", "state_dict", "model")
PUBLISHED_PARTS = ("teacher", "student")
# Parts that change what a network computes: a file with them is of another network, though all
# tensors of ours may be in it.
OF_OTHERS = {"reg_token", "dist_token", "norm_pre", "patch_drop", "rope"}
COUNTER = "num_batches_tracked"


def flat_state(checkpoint: Any, part: str | None = None) -> dict[str, Tensor]:
    """Return the tensors by name of a checkpoint, taken out of the levels above them.

    Args:
        checkpoint: what the file holds.
        part: `teacher`, `student` or another level's name, where there are several; None: the
            teacher.

    Raises:
        UserError: there are no named tensors, or not the part.
    """
    nests = (part, *(nest for nest in NESTS if nest != part)) if part else NESTS
    while isinstance(checkpoint, Mapping) and not _is_state(checkpoint):
        if part in PUBLISHED_PARTS and part not in checkpoint:
            other = "student" if part == "teacher" else "teacher"
            if isinstance(checkpoint.get(other), Mapping):
                raise UserError(f"holds no '{part}'; change encoder.weights_part.")
        inner = [n for n in nests if isinstance(checkpoint.get(n), Mapping)] or _states(checkpoint)
        if not inner:
            break
        checkpoint = checkpoint[inner[0]]
    if not isinstance(checkpoint, Mapping) or not _is_state(checkpoint):
        raise UserError("is no state dict of tensors; extract the network's weights.")
    return {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}


def _is_state(values: Mapping[Any, Any]) -> bool:
    """Tensors by name, none nested; beside them there may be numbers, such as an epoch's."""
    tensors = [isinstance(value, Tensor) for value in values.values()]
    nested = any(isinstance(value, Mapping) for value in values.values())
    return all(tensors) or (any(tensors) and not nested)


def _states(values: Mapping[Any, Any]) -> list[Any]:
    """Return the only level that holds tensors, whatever its name.

    Raises:
        UserError: there are several.
    """
    names = [
        name
        for name, value in values.items()
        if isinstance(value, Mapping) and any(isinstance(x, Tensor) for x in value.values())
    ]
    if len(names) > 1:
        raise UserError(f"holds several networks; set encoder.weights_part to {_either(names)}.")
    return names


def _either(names: Iterable[Any]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def prefix_of(state: State, own: Iterable[str], part: str | None = None) -> str:
    """Return what stands before the network's names: that under which most of them are found.

    Raises:
        UserError: two whole networks are in the file and `part` does not say which.
    """
    own = list(own)
    ends = {key.removesuffix(anchor) for anchor in own for key in state if key.endswith(anchor)}
    prefixes = sorted((p for p in ends if p == "" or p.endswith(".")), key=len)
    found = {p: sum(p + key in state for key in own) for p in prefixes}
    whole = [p for p, count in found.items() if count == len(own)]
    if part and len(whole) > 1:
        whole = [p for p in whole if part in p.split(".")] or whole
    if len(whole) > 1:
        names, parts = ", ".join(f"'{p}'" for p in whole), _either(_told(whole))
        raise UserError(f"holds several networks ({names}); set encoder.weights_part to {parts}.")
    prefix = whole[0] if whole else max(prefixes, key=lambda p: found[p], default="")
    other = {"teacher": "student", "student": "teacher"}.get(part or "")
    if other in prefix.split("."):
        raise UserError(f"holds no '{part}', only '{prefix}*'; change encoder.weights_part.")
    return prefix


def _told(prefixes: Iterable[str]) -> list[str]:
    """Return for each prefix the first of its words that not all of them have."""
    words = [prefix.rstrip(".").split(".") for prefix in prefixes]
    shared = set.intersection(*(set(parts) for parts in words))
    own = (next((word for word in parts if word not in shared), "") for parts in words)
    return [word for word in own if word]


def refuse_part(part: str | None, held: str | None = None) -> None:
    """Refuse a part that a format does not hold; ``held`` is the one it does."""
    if part is not None and part != held:
        only = f"the {held} alone" if held else "one network"
        raise UserError(f"holds {only}, no '{part}'; leave out encoder.weights_part.")


def under(state: State, prefix: str, own: State) -> dict[str, Tensor]:
    """Return the network's tensors, named as in ``own``, and none else.

    Batch counters, which old files lack, are taken from ``own``: they change no output.

    Raises:
        UserError: tensors are missing, or the file's network has parts that ours has not.
    """
    names = {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}
    if missing := sorted(key for key in own if key not in names and not key.endswith(COUNTER)):
        are = "1 tensor is" if len(missing) == 1 else f"{len(missing)} tensors are"
        raise UserError(f"does not fit the encoder: {are} missing: {some(missing)}.")
    parts = {key.split(".")[0] for key in own} | OF_OTHERS
    if unknown := sorted(k for k in names if k not in own and k.split(".")[0] in parts):
        raise UserError(
            f"does not fit the encoder: {len(unknown)} tensors are unknown to it: {some(unknown)}."
        )
    return {key: state[names[key]] if key in names else own[key] for key in own}


def to_ours(checkpoint: Any, own: State, part: str | None = None) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the encoder's names.

    Raises:
        UserError: tensors are missing or of another network, or the part is not there.
    """
    state = flat_state(checkpoint, part)
    prefix = prefix_of(state, own, part)
    named = part in PUBLISHED_PARTS or part in prefix.split(".") or _is_level(checkpoint, part)
    if part and not named:
        raise UserError(f"holds no '{part}'; change encoder.weights_part.")
    return under(state, prefix, own)


def _is_level(values: Any, name: str | None) -> bool:
    if not isinstance(values, Mapping):
        return False
    return isinstance(values.get(name), Mapping) or any(_is_level(x, name) for x in values.values())


def some(names: list[str], shown: int = 8) -> str:
    """Return the first names and how many more there are."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
