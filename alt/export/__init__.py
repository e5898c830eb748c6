"""Export of patched models to programs and files of standard operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alt.lazy import attach

if TYPE_CHECKING:
    from .onnx_file import export_onnx as export_onnx
    from .standard_ops import export_portable as export_portable

__getattr__, __dir__, __all__ = attach(__name__)
