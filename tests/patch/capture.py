"""A capture without a GPU: operations are recorded once and run again on the same tensors, as a CUDA graph does.

A replay executes no Python. So whatever Python decided while recording (a value read, a copy kept, a shape) shows as a
wrong result after the inputs or the weights have changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that wait for a device, or whose shape depends on values; a capture fails at each of them.
WAITING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave",
}  # fmt: skip


class Capture(TorchDispatchMode):
    """Records the operations inside ``with Capture(tensors) as capture``; ``capture.replay()`` runs them again.

    Args:
        tensors: that exist before: inputs, parameters, buffers. An operation on any other tensor raises, because the
            address of a tensor that somebody else keeps may be gone at the replay.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.name().partition(".")[0]
        inputs = _tensors((args, kwargs))
        by_mask = name.startswith("aten::index") and any(t.dtype in (torch.bool, torch.uint8) for t in inputs[1:])
        if name in WAITING or by_mask:
            raise RuntimeError(f"{name} waits for the device")
        strangers = [t for t in inputs if t.untyped_storage()._cdata not in self.known]
        if strangers:
            raise RuntimeError(f"{name} reads a tensor {list(strangers[0].shape)} from outside the capture")
        out = func(*args, **kwargs)
        results = _tensors(out)
        self.known |= {t.untyped_storage()._cdata: t for t in results}
        self.calls.append((func, args, kwargs, results))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, results in self.calls:
                for kept, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if kept.data_ptr() != new.data_ptr():  # neither a view nor the result of an in-place operation
                        kept.copy_(new)

    def shapes(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        """Operations in order, with the shapes of their results."""
        return [(func.name(), [tuple(t.shape) for t in results]) for func, _, _, results in self.calls]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
