"""Foreign models. One host per family answers alt's questions; no other room knows the attributes of such models.

``docs/hosts.md`` lists the questions and shows how to add a host.
"""

from __future__ import annotations

import importlib
import sys

from torch import nn

from .host import COMPONENTS, BlockParts, Embedded, Host, HostAttention, Projected
from .modules import qualified_name

__all__ = [
    "COMPONENTS",
    "BlockParts",
    "Embedded",
    "Host",
    "HostAttention",
    "Projected",
    "find_host",
    "find_tower",
    "get_host",
    "register",
]

_REGISTERED: list[Host] = []
# Package of a foreign model -> our module with its ``HOST``. It is imported only once the package itself is: no model
# of a package exists before that.
_BUILT_IN = {"open_clip": "alt.hosts.open_clip"}


def register(host: Host) -> Host:
    """Adds a host and returns it. It replaces a host of the same name. Later hosts are asked first.

    Raises:
        TypeError: ``host`` is not an instance of a :class:`Host`.
    """
    if isinstance(host, type) or not isinstance(host, Host):
        raise TypeError(f"host: expected an instance of a subclass of alt.hosts.Host, got {host!r:.80}")
    _REGISTERED[:] = [host, *(other for other in _REGISTERED if other.name != host.name)]
    return host


def get_host(name: str) -> Host:
    """Returns a host by its name.

    Raises:
        ValueError: there is no host of that name, or its package is not installed.
    """
    for host in _REGISTERED:
        if host.name == name:
            return host
    if name not in _BUILT_IN:
        known = [host.name for host in _REGISTERED] + list(_BUILT_IN)
        raise ValueError(f"host: expected one of {', '.join(known)}, got {name!r}; alt.hosts.register adds one")
    try:
        return importlib.import_module(_BUILT_IN[name]).HOST
    except ModuleNotFoundError as error:
        raise ValueError(f"host: {name} needs the package {error.name}, which is not installed") from None


def find_host(model: nn.Module) -> Host:
    """Returns the host that knows a model; see :func:`find_tower`."""
    return find_tower(model)[0]


def find_tower(model: nn.Module) -> tuple[Host, nn.Module]:
    """Returns the host that knows a model, and the model's image tower.

    Raises:
        TypeError: no host knows the model.
    """
    hosts = _hosts()
    for host in hosts:
        tower = host.find_tower(model)
        if tower is not None:
            return host, tower
    known = [host.supports for host in hosts] or ["open_clip's VisionTransformer"]
    raise TypeError(
        f"patch_clip supports {' or '.join(known)} as the image tower, exactly (no subclass or wrapper), got "
        f"{qualified_name(model)}"
    )


def _hosts() -> list[Host]:
    built_in = [importlib.import_module(home).HOST for package, home in _BUILT_IN.items() if package in sys.modules]
    return [*_REGISTERED, *built_in]
