"""Facts about a foreign module: its name, its hooks, and whether its class is exactly a known one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

__all__ = [
    "has_hooks",
    "identity",
    "qualified_name",
    "require_class",
    "require_gathered",
    "require_unsharded",
    "squashes_pictures",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def qualified_name(module: nn.Module) -> str:
    """Returns ``package.module.Class`` of a module."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def squashes_pictures(model: Any) -> bool:
    """Returns True if open_clip, of whose CLIPs the tower may be timm's, resizes pictures to a square."""
    return getattr(getattr(model, "visual", None), "preprocess_cfg", {}).get("resize_mode") == "squash"


def has_hooks(module: nn.Module, harmless: Callable[[Any], bool] | None = None) -> bool:
    """Returns True if calling the module does more than its class's forward (hooks, or a forward on the instance).

    Args:
        harmless: says of a hook that a patched model need not run it.
    """
    if "forward" in module.__dict__:
        return True
    hooks = (hook for name in _HOOKS for hook in (getattr(module, name, None) or {}).values())
    return any(harmless is None or not harmless(hook) for hook in hooks)


def identity(y: Tensor) -> Tensor:
    """Returns ``y``: what follows the attention of a block without residual scale and drop path."""
    return y


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
        f"patch_model supports {owner} {names} as {role}, exactly (no subclass or wrapper), got "
        f"{qualified_name(module)}"
    )


def require_gathered(weight: Tensor) -> None:
    """Raises RuntimeError if the weight of a running block's attention is sharded."""
    if type(weight).__name__ == "DTensor":
        raise RuntimeError(
            "a patched block's attention was sharded by itself (fully_shard on the attention module), so "
            "its keys cannot be read for matching; shard whole blocks instead"
        )


def require_unsharded(tower: nn.Module) -> None:
    """Raises TypeError if parameters of the tower are already sharded."""
    if any(type(p).__name__ == "DTensor" for p in tower.parameters()):
        raise TypeError("the model's parameters are already sharded; patch first, then call fully_shard")
