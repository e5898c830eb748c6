"""Facts about a foreign module: its name, its hooks, and whether its class is exactly a known one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["has_hooks", "qualified_name", "require_class", "require_unsharded"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def qualified_name(module: nn.Module) -> str:
    """Returns ``package.module.Class`` of a module."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def has_hooks(module: nn.Module) -> bool:
    """Returns True if calling the module does more than its class's forward (hooks, or a forward on the instance)."""
    return any(getattr(module, name, None) for name in _HOOKS) or "forward" in module.__dict__


def require_class(module: nn.Module, known: Iterable[type], role: str, owner: str) -> None:
    """Raises TypeError unless a module's class is exactly one of ``known``.

    Args:
        role: of the module, in words. owner: of the classes, ``"open_clip's"``.
    """
    known = tuple(known)
    if type(module) in known:
        if "forward" in module.__dict__:  # it would hide the patched class's forward
            raise TypeError(f"{role} has a forward of its own set on the instance; undo that before patching")
        return
    names = " or ".join(cls.__name__ for cls in known)
    if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
        raise TypeError(f"{role} is already sharded ({type(module).__name__}); patch first, then call fully_shard")
    raise TypeError(
        f"patch_clip supports {owner} {names} as {role}, exactly (no subclass or wrapper), got {qualified_name(module)}"
    )


def require_unsharded(tower: nn.Module) -> None:
    """Raises TypeError if parameters of the tower are already sharded."""
    if any(type(p).__name__ == "DTensor" for p in tower.parameters()):
        raise TypeError("the model's parameters are already sharded; patch first, then call fully_shard")
