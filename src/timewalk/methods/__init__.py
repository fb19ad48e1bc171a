"""The registry of methods: one line a method, imported when it is asked for.

Importing a method must stay cheap (no timm, no torchvision): the workflow reads the configuration
of every method before its first job.
"""

from typing import TYPE_CHECKING

from timewalk.errors import UserError, nearest
from timewalk.registry import load_module, summary

if TYPE_CHECKING:  # it needs torch, and a list of names shall not wait for that
    from timewalk.methods.base import Method

_METHODS: dict[str, str] = {}


def register(name: str, place: str) -> None:
    """Make a method known under a name.

    Args:
        name: what ``method:`` says in the configuration.
        place: ``module:Class``.
    """
    if name in _METHODS:
        raise ValueError(f"method '{name}' is registered twice: {_METHODS[name]} and {place}")
    _METHODS[name] = place


def method_names() -> list[str]:
    """Return the names of all methods."""
    return sorted(_METHODS)


def method_summaries() -> dict[str, str]:
    """Return what each method is, in a sentence; imports none."""
    return {name: summary(_METHODS[name].partition(":")[0]) for name in method_names()}


def get_method(name: str) -> "type[Method]":
    """Return a method's class.

    Raises:
        UserError: the name is unknown (with the nearest one), its line names what is not there, or
            an import inside its module fails.
    """
    if name not in _METHODS:
        raise UserError(f"unknown method '{name}'{nearest(name, _METHODS)}")
    place = _METHODS[name]
    line = f'{__file__}: register("{name}", "{place}")'
    module, _, attribute = place.partition(":")
    found = vars(load_module(module, line))
    if attribute not in found:
        own = [key for key, value in found.items() if getattr(value, "__module__", "") == module]
        classes = [key for key in own if isinstance(found[key], type)]
        raise UserError(
            f"{line}: correct this line, its module has no '{attribute}'"
            f"{nearest(attribute, classes)}"
        )
    method: type[Method] = found[attribute]
    return method


register("classification", "timewalk.methods.classification:Classification")
register("crw", "timewalk.methods.crw:CRW")
register("dino", "timewalk.methods.dino:DINO")
register("dora", "timewalk.methods.dora:DoRA")
register("pretrained", "timewalk.methods.pretrained:Pretrained")
register("random", "timewalk.methods.random:Random")
register("sal", "timewalk.methods.sal:SaL")
register("smtc", "timewalk.methods.smtc:SMTC")
register("tcc", "timewalk.methods.tcc:TCC")
register("tcc_sal_tcn", "timewalk.methods.tcc_sal_tcn:TCCSaLTCN")
register("tcn", "timewalk.methods.tcn:TCN")
register("timet", "timewalk.methods.timet:TimeT")
