"""Rules by which ``torch.func.vmap`` calls an op: the vmapped dimension is folded into the batch, and the op runs once.

V is the size of the vmapped dimension. A rule receives the op, PyTorch's description of the vmap, the vmapped
dimension of each argument (None: the argument is one for all V) and the arguments. It returns the results and their
vmapped dimensions. PyTorch's own fallback would call the op V times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Dims = tuple[int | None, ...]
Rule = Callable[..., tuple[Any, Any]]
"""``(op, info, in_dims, *arguments) -> (results, out_dims)``, as :func:`torch.library.register_vmap` documents it."""


def fold(op: Any, info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    """Runs the op once on V B images. For ops whose tensors, arguments and results, all begin with B images."""
    images = info.batch_size
    return split_results(op(*(join(a, d, images) for a, d in zip(args, dims, strict=True))), images)


def repeat(op: Any, info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    """Runs the op V times and stacks the results. For arguments of which an op takes only one."""
    check_samples(info.batch_size)
    slices = [(a,) * info.batch_size if d is None else a.unbind(d) for a, d in zip(args, dims, strict=True)]
    results = [op(*sample) for sample in zip(*slices, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def check_samples(count: int) -> None:
    """Raises if a vmap has no sample, from which no shape of a result follows."""
    if count == 0:
        raise ValueError("vmap: expected at least one sample for an operation of alt_kernels, got none")


def join(value: Any, dim: int | None, images: int) -> Any:
    """Returns a tensor with its vmapped dimension folded into the first one, anything else as it is."""
    return lead(value, dim, images).flatten(0, 1) if isinstance(value, Tensor) else value


def lead(value: Tensor, dim: int | None, images: int) -> Tensor:
    """Returns a tensor with its vmapped dimension first; a tensor without one is expanded."""
    check_samples(images)
    return value.expand(images, *value.shape) if dim is None else value.movedim(dim, 0)


def split(value: Tensor, images: int) -> Tensor:
    """Returns the first dimension, of V B images, as ``[V, B]``; the inverse of :func:`join`."""
    return value.unflatten(0, (images, value.shape[0] // images))


def split_results(results: Any, images: int) -> tuple[Any, Any]:
    """Returns the results of a folded call and their vmapped dimensions."""
    if isinstance(results, Tensor):
        return split(results, images), 0
    return tuple(split(t, images) for t in results), (0,) * len(results)
