"""Fine-tuning of a run's encoder on labelled images: tasks, trained by the training loop.

A task is a :class:`timewalk.finetuning.base.Finetuning`, one file each, with its line below. What
it trains is a network of :mod:`timewalk.encoders.dense`; evaluations load that and see no task.
Importing a task must stay cheap, as with methods.
"""

from importlib import import_module

from timewalk.errors import UserError, nearest
from timewalk.finetuning.base import Finetuning

_TASKS = {
    "detection": "timewalk.finetuning.detection:Detection",
    "semantic_segmentation": "timewalk.finetuning.semantic_segmentation:SemanticSegmentation",
}


def task_names() -> list[str]:
    """Return the names of all tasks."""
    return sorted(_TASKS)


def get_task(name: str) -> type[Finetuning]:
    """Return a task's class; an unknown name is a :class:`UserError` with the nearest one."""
    if name not in _TASKS:
        raise UserError(f"unknown task '{name}'{nearest(name, _TASKS)}")
    module, _, attribute = _TASKS[name].partition(":")
    task: type[Finetuning] = getattr(import_module(module), attribute)
    return task
