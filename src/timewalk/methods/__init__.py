"""The registry of methods: one line a method, imported when it is asked for.

Importing a method must stay cheap (no timm, no torchvision): the workflow reads the configuration
of every method before its first job.
"""

from importlib import import_module

from timewalk.errors import UserError, nearest
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


def get_method(name: str) -> type[Method]:
    """Return a method's class; an unknown name is a :class:`UserError` with the nearest one."""
    if name not in _METHODS:
        raise UserError(f"unknown method '{name}'{nearest(name, _METHODS)}")
    module, _, attribute = _METHODS[name].partition(":")
    method: type[Method] = getattr(import_module(module), attribute)
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
