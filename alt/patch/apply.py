"""Applies the patch to a tower by exchanging classes for subclasses that merge, and reverts it."""

from __future__ import annotations

from torch import nn

from alt.hosts import Host
from alt.hosts.modules import qualified_name
from alt.hosts.patch_embedding import PatchConv2d, patch_convolutions

from .settings import PatchSettings


def is_patched(module: nn.Module) -> bool:
    """Returns True if the module itself is a patched tower."""
    return "_alt_patch" in module.__dict__


def settings_of(tower: nn.Module) -> PatchSettings:
    """Returns the settings of a patched tower."""
    return tower.__dict__["_alt_patch"]


def apply(host: Host, tower: nn.Module, settings: PatchSettings) -> None:
    """Gives every part of a tower its patched class. The only new attribute is ``_alt_patch`` on the tower."""
    tower._alt_patch = settings  # type: ignore[assignment]
    for _, module in host.parts(tower):
        module.__class__ = host.patched[type(module)]
    for convolution in patch_convolutions(host, tower):
        convolution.__class__ = PatchConv2d


def revert(host: Host, tower: nn.Module) -> None:
    """Restores the original class of every part.

    Raises:
        RuntimeError: a part was sharded, wrapped or given another forward. The tower is unchanged.
    """
    original = {patched: foreign for foreign, patched in host.patched.items()}
    # A part may be restored already: shallow copies of a tower share their blocks.
    original |= {foreign: foreign for foreign in host.patched}
    original[PatchConv2d] = nn.Conv2d
    parts = host.parts(tower)
    parts += [("the patch embedding", module) for module in tower.modules() if isinstance(module, PatchConv2d)]
    for role, module in parts:
        if type(module) not in original or "forward" in module.__dict__:
            raise RuntimeError(
                f"cannot remove the patch: {role} was sharded, wrapped or given another forward since (it is "
                f"{qualified_name(module)} now); undo that first, or set handle.r = 0"
            )
    for _, module in parts:
        module.__class__ = original[type(module)]
    del tower._alt_patch
