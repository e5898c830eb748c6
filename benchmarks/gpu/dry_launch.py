"""Runs PyTorch code at real shapes without computing: results have memory and strides, and no values.

Inside :class:`DryRun` every operator of PyTorch returns uninitialised memory of the right shape, which takes no time
and, since no page is touched, no memory. Our operators go through their Triton launchers up to the launch, so Triton
compiles, or finds in its cache, exactly the kernels that the same code needs on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from alt_kernels import library
from alt_kernels.triton import launch_configs
from tools.aot_driver import Driver, stopped_launches

#: Checks of values, which are not there: module of the reference, function.
VALUE_CHECKS = (("weighted_merge", "check_plan"), ("unmerge", "check_plan"), ("cosine_gumbel_assign", "check_tau"))
#: A GPU that no list of launch configurations names: it takes those of its architecture.
ANY = "any GPU, sm_90"


def gpus(target: int = 90) -> list[str]:
    """Returns the names of GPUs whose launches differ: those that some list was tuned for, and any other."""
    listed = {name for path in launch_configs.CONFIGS.glob("*.json") for name in launch_configs.load(path.stem)}
    return [ANY, *sorted(name for name in listed if name.endswith(f", sm_{target}"))]


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, torch.Generator):  # of another device; nothing is drawn
        return None
    return torch.device("meta") if isinstance(value, torch.device) else value


def _memory(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return value


class DryRun(TorchDispatchMode):
    """Shapes of everything, values of nothing; our operators reach their launchers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == library.NAMESPACE:
            return self._launch(func, args)
        aliases = [returned.alias_info for returned in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases):
            return func(*args, **kwargs)  # a view is one of the same memory
        if any(alias is not None for alias in aliases):  # in place: its values do not matter
            written = [
                kwargs[a.name] if a.kwarg_only else args[i]
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            return written[0] if len(written) == 1 else tuple(written)
        if not any(isinstance(returned.type, (torch.TensorType, torch.ListType)) for returned in func._schema.returns):
            return func(*args, **kwargs)  # a number read from memory, whatever it is
        return tree_map(_memory, func(*tree_map(_meta, args), **tree_map(_meta, kwargs)))

    def _launch(self, func: Any, args: tuple[Any, ...]) -> Any:
        name = func._schema.name.split("::")[1]
        op = library.OPS[name]
        double = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        with self:
            if op.triton is None or double:
                return op.reference(*args)
            return getattr(importlib.import_module(f"alt_kernels.triton.{op.triton}"), name)(*args)


@contextlib.contextmanager
def dry_run(gpu: str = ANY) -> Iterator[None]:
    """Run the code inside as on ``gpu``, whose name ends in its architecture: :class:`DryRun`, and no launch starts."""
    import triton

    name, active = launch_configs.device_name, triton.runtime.driver._active
    checks = [(importlib.import_module(f"alt_kernels.reference.{stem}"), check) for stem, check in VALUE_CHECKS]
    before = [getattr(module, check) for module, check in checks]
    for module, check in checks:
        setattr(module, check, lambda *_: None)
    launch_configs.device_name = lambda: gpu  # type: ignore[assignment]
    triton.runtime.driver.set_active(Driver(int(gpu.rpartition("_")[2])))
    try:
        with stopped_launches(), DryRun():
            yield
    finally:
        launch_configs.device_name = name  # type: ignore[method-assign]
        triton.runtime.driver._active = active
        for (module, check), function in zip(checks, before, strict=True):
            setattr(module, check, function)
