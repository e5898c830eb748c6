"""Runtimes that read ONNX files, each as a function of named tensors. One that is not installed skips the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

__all__ = ["RUNTIMES", "load_onnx_runtime", "load_openvino"]

Run = Callable[[Mapping[str, Tensor]], list[Tensor]]


def load_onnx_runtime(file: Path) -> Run:
    runtime: Any = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file)
    return lambda inputs: _tensors(session.run(None, {name: x.numpy() for name, x in inputs.items()}))


def load_openvino(file: Path) -> Run:
    """In float32: where the processor has bfloat16 products, OpenVINO would use them."""
    openvino: Any = pytest.importorskip("openvino")
    compiled = openvino.compile_model(openvino.convert_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: _tensors(compiled({name: x.numpy() for name, x in inputs.items()}).to_tuple())


RUNTIMES: dict[str, Callable[[Path], Run]] = {"ONNX Runtime": load_onnx_runtime, "OpenVINO": load_openvino}


def _tensors(arrays: Any) -> list[Tensor]:
    return [torch.from_numpy(array).clone() for array in arrays]
