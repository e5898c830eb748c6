"""Exported programs without operations of alt_kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import alt_kernels  # noqa: F401  registers the operations

from . import portable
from .portable import Merges

__all__ = ["export_portable"]

_OPS = torch.ops.alt_kernels


def export_portable(model: nn.Module, images: Tensor | Mapping[str, Tensor]) -> ExportedProgram:
    """Returns a program of standard torch operators that computes a model on a batch of any size.

    ``torch.export.export(model, ...)`` works on patched models too, and keeps the operations of alt_kernels, which only
    PyTorch can run. Here each of them is a few standard operators, so that other runtimes can: ONNX Runtime and
    OpenVINO (:func:`alt.export.export_onnx`), Core ML.

    Args:
        model: called with one batch of images; patched or not, in evaluation mode: a vision model of transformers, a
            model of timm, ``model.visual`` of open_clip. The r of the handle is part of the program.
        images: float ``[B, 3, H, W]``, an example: the program takes images of this size and dtype. For a model with
            other inputs, its named arguments, each ``[B, ...]``. The program takes them in this order.

    Raises:
        TypeError: an argument has another type.
        ValueError: the model is in training mode, an input has another shape, ``torch.export`` cannot trace the model
            for batches of any size, or it uses an operation of alt_kernels that has no such form (the backward ones).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inputs = _check_inputs(images)
    if model.training:
        raise ValueError("model must be in evaluation mode to be exported: call model.eval() first")
    # A batch of one would be taken for a constant.
    example = tuple(x[:1].detach().repeat(2, *(1,) * (x.dim() - 1)) for x in inputs.values())
    batch = Dim("batch", min=1)
    options: Any = {"dynamic_shapes": (tuple({0: batch} for _ in example),), "strict": False}
    with torch.no_grad():
        try:
            program = torch.export.export(_Positional(model, images), example, **options)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"model: torch.export cannot trace it for batches of any size: {reason}") from error
        return torch.export.export(_StandardOps(program.module()), example, **options)


def _check_inputs(images: object) -> Mapping[str, Tensor]:
    """Returns the model's inputs by name; one tensor is ``images``."""
    if isinstance(images, Mapping):
        for name, x in images.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"images[{name!r}] must be a tensor [B, ...], got {type(x).__name__}")
            if x.dim() == 0 or 0 in x.shape:
                raise ValueError(f"images[{name!r}] must be [B, ...], got shape {list(x.shape)}")
        if not images:
            raise ValueError("images must name at least one input of the model, got an empty mapping")
        return images
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = str(images.dtype).removeprefix("torch.") if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor [B, 3, H, W] or a mapping of named tensors, got {got}")
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(f"images must be [B, 3, H, W], got shape {list(images.shape)}")
    return {"images": images}


class _Positional(nn.Module):
    """Calls a model with its inputs in order: a tensor as it is, several by their names."""

    def __init__(self, model: nn.Module, images: Tensor | Mapping[str, Tensor]) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.names = None if isinstance(images, Tensor) else list(images)

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs) if self.names is None else self.model(**dict(zip(self.names, inputs, strict=True)))


class _StandardOps(nn.Module):
    """Runs a program with the forms of ``portable`` in place of the operations."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.training = False  # an exported program has no eval()
        for node in program.graph.nodes:
            if node.target is _OPS.unmerge.default:  # it needs the output row alone
                node.args = (node.args[0], None, None, node.args[3])
        program.graph.eliminate_dead_code()
        program.recompile()
        self.program = program

    def forward(self, *inputs: Tensor) -> Any:
        return _Translator(self.program).run(*inputs)


class _Translator(torch.fx.Interpreter):
    """Interprets one run. A merge finds the indices of its matching by the output row, which both have."""

    def __init__(self, program: Any) -> None:
        super().__init__(program)
        self.merges: dict[int, Merges] = {}
        self.translations: dict[Any, Callable[..., Any]] = {
            _OPS.bipartite_matching.default: partial(self.match, portable.match),
            _OPS.bipartite_matching_from_keys.default: partial(self.match, portable.match_keys),
            _OPS.weighted_merge.default: self.merge,
            _OPS.merge_layer_norm.default: self.merge_layer_norm,
            _OPS.unmerge.default: self.unmerge,
            _OPS.proportional_attention.default: self.attend,
            _OPS.gumbel_assignment.default: self.assign,
        }

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        translation = self.translations.get(target)
        if translation is not None:
            return translation(*args)
        if getattr(target, "namespace", "") == "alt_kernels":
            raise ValueError(f"model: expected operations with a form of standard operators, got {target.name()}")
        return super().call_function(target, args, kwargs)

    def match(
        self, find: Callable[..., tuple[Merges, Tensor]], rows: Tensor, r: int, num_protected: int
    ) -> tuple[None, None, Tensor]:
        if r == 0:
            tokens = torch.arange(rows.shape[-2], dtype=torch.int32, device=rows.device)
            return None, None, tokens.expand(rows.shape[0], -1)
        merges, output_row = find(rows, r, num_protected)
        self.merges[id(output_row)] = merges  # the environment of the run keeps the tensor
        return None, None, output_row

    def merge(
        self, x: Tensor, size: Tensor | None, indices: Tensor | None, offsets: Any, output_row: Tensor
    ) -> tuple[Tensor, Tensor]:
        merges = self.merges.get(id(output_row))
        if merges is not None:
            return portable.merge(x, size, merges)
        sizes = torch.ones_like(x[..., 0], dtype=torch.float32) if size is None else size
        if indices is None:  # r = 0
            return x, sizes
        if indices.shape[1] != offsets.shape[1] - 1:
            raise ValueError("model: expected merges by plans that the model itself matches, got another plan")
        rows = indices.long()  # protected patches come first: the tokens change places
        return portable.take(x, rows), sizes.gather(1, rows)

    def merge_layer_norm(
        self, x: Tensor, residual: Tensor, size: Any, indices: Any, offsets: Any, output_row: Tensor, *norm: Any
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        weight, bias, eps = norm
        merged, merged_size = self.merge(x + residual, size, indices, offsets, output_row)
        return merged, F.layer_norm(merged, merged.shape[-1:], weight, bias, eps), merged_size, None, None

    def unmerge(self, x: Tensor, indices: None, offsets: None, output_row: Tensor) -> Tensor:
        return portable.take(x, output_row.long())

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, None]:
        return portable.attend(q, k, v, size, scale), None

    def assign(self, x: Tensor, entities: Tensor, tau: Tensor, noise: Any, seed: Any, hard: bool) -> Any:
        if seed is not None:
            raise ValueError("model: expected an assignment without drawn noise (noise=None), got a seed")
        return portable.assign(x, entities, tau, noise, hard)
