"""What a change of a training's settings means: another result, or only another way to the same.

Read by the workflow, so without torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from timewalk.addresses import public_settings
from timewalk.artefacts import read_json
from timewalk.errors import UserError

MACHINE_KEYS: Any = {
    "nodes": True,
    "training": {
        "micro_batch_size",
        "compile",
        "activation_checkpointing",
        "checkpoint_minutes",
        "keep_checkpoints",
    },
}
"""keys that change how a training is computed but not what: nothing is made again for them"""

RESUMABLE: Any = {**MACHINE_KEYS, "validation": True}
"""keys that may change before a resume: those, and what is evaluated on the way"""


SHOWN = 5
"""names of videos in a sentence"""


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without :data:`MACHINE_KEYS`."""
    return _without(settings, MACHINE_KEYS)


def refuse_other_settings(about: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to train where a finished training of other settings lies: it would be deleted first.

    Data and weights, and keys that did not exist yet, are compared by the training itself.

    Args:
        about: ``encoder.json`` or ``network.json``, which may be missing.
        settings: of the run or the fine-tuning now, with every default.

    Raises:
        UserError: a setting that decides on the result is another one.
    """
    if not about.is_file():
        return
    before = dict(flat(_without(read_json(about)["provenance"]["config"], RESUMABLE)))
    for key, value in flat(_without(settings, RESUMABLE)):
        if before.get(key, value) != value:
            was, now = public_settings([before[key], value])
            raise UserError(
                f"{about.parent} holds the finished training of another configuration ({key} was "
                f"{was} and is {now}); give the changed one a name of its own, put the value back, "
                f"or delete {about.parent} to train anew."
            )


def refuse_other_videos(about: Path, dataset: str, shards: Iterable[str]) -> None:
    """Refuse to train where a finished training on other videos lies: it would be deleted first.

    Contents are compared by the training itself; folders may have moved.

    Args:
        about: ``encoder.json``, which may be missing.
        dataset: name of the run's data set.
        shards: paths of the manifests of the shards now.

    Raises:
        UserError: videos have been added or removed.
    """
    if not about.is_file():
        return
    before = {Path(path).stem for path in read_json(about)["provenance"].get("inputs", {})}
    if not before:  # made elsewhere: nothing says on what
        return
    now = {Path(path).stem for path in shards}
    changes = {"added": sorted(now - before), "removed": sorted(before - now)}
    told = "; ".join(f"{what}: {_some(names)}" for what, names in changes.items() if names)
    if told:
        raise UserError(
            f"{about.parent} holds the finished training on other videos of {dataset} ({told}); "
            "give the run on the new ones a name of its own, put the list back, or delete "
            f"{about.parent} to train anew."
        )


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without(settings: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if keys.get(key) is not True}
    for key in keys.keys() & kept.keys():
        kept[key] = {name: value for name, value in kept[key].items() if name not in keys[key]}
    return kept
