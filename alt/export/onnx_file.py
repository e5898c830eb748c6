"""Patched towers as ONNX files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .standard_ops import export_portable

__all__ = ["export_onnx"]

_OPSET = 20  # the first with Gelu


def export_onnx(model: nn.Module, file: str | os.PathLike[str], images: Tensor | Mapping[str, Tensor]) -> Path:
    """Writes a model as ONNX of standard operators, for batches of any size, and returns the file.

    ::

        handle = alt.patch_model(model, r=8)
        alt.export.export_onnx(model.visual, "tower.onnx", images)
        onnxruntime.InferenceSession("tower.onnx").run(None, {"images": images.numpy()})
        openvino.compile_model("tower.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images.numpy())

    Args:
        model, images: as for :func:`alt.export.export_portable`. The file's input is ``images``, or has the given
            names. Their first dimension is ``batch``.
        file: its folder exists. Weights beyond 1.8 GB go into a second file, ``<file>.data``.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError, ValueError: as :func:`alt.export.export_portable`.
        OSError: the file cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {' and '.join(missing)}: pip install 'alt-kernels[onnx]'")
    program = export_portable(model, images)
    names = ["images"] if isinstance(images, Tensor) else list(images)
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=names,
        dynamic_shapes=({0: "batch"}, *[None] * (len(names) - 1)),
        custom_translation_table={torch.ops.aten.sort.stable: _sort_rows},
        verbose=False,
    )
    assert onnx is not None
    onnx.save(file)
    return Path(file)


def _sort_rows(x: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Sorts ``[B, n]`` along n: a TopK of all n, which by its definition puts the lower index first among equals."""
    from onnxscript import opset20 as op

    return op.TopK(x, op.Shape(x, start=1), axis=dim, largest=int(descending), sorted=1)
