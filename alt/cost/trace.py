"""The dispatch mode that books every operation of a traced forward pass under a component."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from alt.hosts import Host

from .report import COMPONENTS, CONVENTION

__all__ = ["FLOPS_PER_MAC", "Trace", "extra_formulas"]

_LIBRARIES = ("aten", "prim", "prims", "alt_kernels")
FLOPS_PER_MAC = 2  # the formulas of PyTorch and of alt_kernels count 2 operations per multiply-accumulate


class Trace(TorchDispatchMode):
    """Books the charges of the surrounding FlopCounterMode per component, and what the paper's convention adds.

    flops: component -> floating-point operations. convention: see ``CostReport.by_convention``, in MACs.

    Args:
        model: the traced model. counter: the FlopCounterMode. host: of the model's image tower.
        tower: path of the image tower inside ``model``, with a dot at the end; "" if it is the tower itself.
    """

    def __init__(self, model: nn.Module, counter: FlopCounterMode, host: Host, tower: str = "") -> None:
        super().__init__()
        self.model = model
        self.counter = counter
        self.host = host
        self.tower = tower
        self.flops = dict.fromkeys(COMPONENTS, 0)
        self.convention = dict.fromkeys(CONVENTION, 0)
        self._matched = False
        self._products: dict[int, tuple[str, int]] = {}  # storage of a result -> its component and charge
        # Views of a weight share its storage. So a product is booked under its weight even if a patched block reads
        # the weight and never calls the module that owns it.
        self._parameter_of = {
            p.untyped_storage()._cdata: name for name, p in model.named_parameters(remove_duplicate=False)
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        charged = self.counter.get_total_flops() - before
        name = func.name()
        if not charged:
            self._require_known(name)
        else:
            component = self._component(name, self._weight(args))
            self.flops[component] += charged
            if isinstance(out, torch.Tensor):
                self._products[out.untyped_storage()._cdata] = component, charged
        self._note(name.partition(".")[0], args, out)
        return out

    def _require_known(self, op: str) -> None:
        """Raises TypeError for an operation without a formula that may hide products: it would count as nothing."""
        library, _, base = op.partition("::")
        if library in _LIBRARIES and not (base.startswith("_") and "_mm" in base):  # _int_mm, _weight_int4pack_mm, ...
            return
        path = self._module()
        owner = type(self.model.get_submodule(path))
        raise TypeError(
            f"model: expected operations whose cost is known, got {op} in {path or 'the model itself'}, a "
            f"{owner.__module__}.{owner.__qualname__}; count a quantised model before it is quantised, and give an "
            "operation of your own a formula with torch.utils.flop_counter.register_flop_formula"
        )

    def _weight(self, args: tuple[Any, ...]) -> str | None:
        """Returns the name of the parameter among the operands, or None."""
        for arg in args:
            if isinstance(arg, torch.Tensor) and arg.dim() > 1:
                found = self._parameter_of.get(arg.untyped_storage()._cdata)
                if found is not None:
                    return found
        return None

    def _module(self) -> str:
        """Returns the path, from the model, of the innermost running module."""
        return max(self.counter.mod_tracker.parents, key=len).partition(".")[2]

    def _component(self, op: str, weight: str | None) -> str:
        if op.startswith("alt_kernels::gumbel_assignment"):
            return "alignment"
        path = self._module() if weight is None else weight
        if not self.tower:
            return component_in_tower(self.host, op, weight, path)
        if path.startswith(self.tower):
            inside = path.removeprefix(self.tower)
            return component_in_tower(self.host, op, None if weight is None else inside, inside)
        if path == self.tower.removesuffix(".") or self.tower.startswith(f"{path}."):
            return component_in_tower(self.host, op, None, "")  # after the tower's blocks: its projection
        return "head" if path == "head" or path.startswith("head.") else "adapter"

    def _note(self, op: str, args: tuple[Any, ...], out: Any) -> None:
        """Adds what the paper's convention counts beyond an operation."""
        if op.startswith("alt_kernels::bipartite_matching"):
            self._matched = True
            # A product that made the metric is part of the matching (metric="projection").
            component, charged = self._products.pop(args[0].untyped_storage()._cdata, ("matching", 0))
            if op == "alt_kernels::bipartite_matching":
                self.flops[component] -= charged
                self.flops["matching"] += charged
        elif op in ("alt_kernels::weighted_merge", "alt_kernels::merge_layer_norm") and self._matched:
            images, n, width = args[0].shape
            left = (out if isinstance(out, torch.Tensor) else out[0]).shape[1]
            if left < n:
                self.convention["dense_merging"] += images * (n * n + n * left) * width
            self._matched = False  # a plan may be applied to more than one tensor, and counts once
        elif op == "alt_kernels::gumbel_assignment":
            rows, entities = args[:2]
            self.convention["dense_assignment"] += rows.shape[0] * entities.shape[0] * entities.shape[1]
        if op == "alt_kernels::merge_layer_norm":
            weight = args[6]
            self.convention["layer_norm"] += (4 if weight is None else 5) * out[1].numel()
        elif op == "aten::native_layer_norm":
            self.convention["layer_norm"] += (4 if args[2] is None else 5) * out[0].numel()


def component_in_tower(host: Host, op: str, weight: str | None, path: str) -> str:
    """Returns the component of an operation of the image tower.

    Args:
        host: of the tower. op: name of the operation. weight: the parameter it uses, if any.
        path: of that parameter or of the module that runs, inside the tower.
    """
    if op.startswith("alt_kernels::bipartite_matching"):
        return "matching"
    if "adapter" in path:
        return "adapter"
    part = host.component(path)
    if part not in ("attention", "block"):
        return part
    if weight is None:
        return "attention"  # operations of a block that use no weight: q k^T and A v
    return "attention_projections" if part == "attention" else "other"


def _sdpa_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Counts the operations of q [B,H,N,D] k^T [B,H,D,M] and A v [B,H,M,E], 2 per multiply-accumulate."""
    batch, heads, n, d = query
    m, e = key[-2], value[-1]
    return FLOPS_PER_MAC * batch * heads * n * m * (d + e)


def extra_formulas() -> dict[Any, Any]:
    """Returns formulas for fused attention, for which PyTorch's counter has none."""
    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable")
    return {getattr(torch.ops.aten, name): _sdpa_flops for name in names if hasattr(torch.ops.aten, name)}
