"""Foreign models. One host per family answers alt's questions; no other room knows the attributes of such models.

``docs/hosts.md`` lists the questions and shows how to add a host.
"""

from __future__ import annotations

import importlib

from torch import nn

from .built_in import BUILT_IN, BuiltIn, SupportedHost, list_built_in
from .host import COMPONENTS, BlockParts, Embedded, Host, HostAttention, KeyProjection, Projected
from .refusals import explain_refusal

__all__ = [
    "COMPONENTS",
    "BlockParts",
    "Embedded",
    "Host",
    "HostAttention",
    "KeyProjection",
    "Projected",
    "SupportedHost",
    "find_host",
    "find_tower",
    "get_host",
    "register",
    "supported_hosts",
]

_REGISTERED: list[Host] = []


def register(host: Host) -> Host:
    """Adds a host and returns it. It replaces a host of the same name. Later hosts are asked first.

    Raises:
        TypeError: ``host`` is not an instance of a :class:`Host`.
    """
    if isinstance(host, type) or not isinstance(host, Host):
        raise TypeError(f"host: expected an instance of a subclass of alt.hosts.Host, got {host!r:.80}")
    _REGISTERED[:] = [host, *(other for other in _REGISTERED if other.name != host.name)]
    return host


def supported_hosts() -> list[SupportedHost]:
    """Returns the families of models that :func:`alt.patch_model` takes: registered hosts, then those of alt.

    Each entry names the classes, the package with its installed and its tested version, and what is exact. Nothing is
    imported for it.
    """
    own = [SupportedHost(host.name, (host.supports,), "", None, None, "registered by you") for host in _REGISTERED]
    return own + list_built_in()


def get_host(name: str) -> Host:
    """Returns a host by its name.

    Raises:
        ValueError: there is no host of that name, or its package is not installed.
    """
    for host in _REGISTERED:
        if host.name == name:
            return host
    for entry in BUILT_IN:
        if entry.name == name:
            try:
                return _load(entry)
            except ModuleNotFoundError as error:
                raise ValueError(f"host: {name} needs the package {error.name}, which is not installed") from None
    known = [host.name for host in _REGISTERED] + [entry.name for entry in BUILT_IN]
    raise ValueError(f"host: expected one of {', '.join(known)}, got {name!r}; alt.hosts.register adds one")


def find_host(model: nn.Module) -> Host:
    """Returns the host that knows a model; see :func:`find_tower`."""
    return find_tower(model)[0]


def find_tower(model: nn.Module) -> tuple[Host, nn.Module]:
    """Returns the host that knows a model, and the model's image tower.

    Raises:
        TypeError: no host knows the model. The sentence says why, and what to pass instead if a known model is inside.
    """
    found = _ask(model)
    if found is not None:
        return found
    parts = ((path, module) for path, module in model.named_modules() if path)
    inside = next(((path, module) for path, module in parts if _ask(module)), None)
    raise TypeError(explain_refusal(model, inside, [host.supports for host in _REGISTERED]))


def _ask(model: nn.Module) -> tuple[Host, nn.Module] | None:
    """Returns the first host that finds a tower in a model, and the tower."""
    for host in _hosts(model):
        tower = host.find_tower(model)
        if tower is not None:
            return host, tower
    return None


def _hosts(model: nn.Module) -> list[Host]:
    """Returns the registered hosts, and those of alt whose package has a class in the model."""
    kinds = {type(module) for module in model.modules()}  # few; learned prompts ask at every forward
    origins = {cls.__module__ for kind in kinds for cls in kind.__mro__}
    return _REGISTERED + [_load(entry) for entry in BUILT_IN if any(entry.matches(origin) for origin in origins)]


def _load(entry: BuiltIn) -> Host:
    return getattr(importlib.import_module(entry.module), entry.attribute)
