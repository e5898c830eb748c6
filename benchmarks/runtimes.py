"""ONNX files of towers in the runtimes that a user would choose on a CPU, on one thread and in float32.

A file is made once and kept in ``build/towers``, because an export takes minutes. Its name holds a hash of the sources
that make it, so a change of one of them makes it again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "build" / "towers"
#: What an exported file is made from, beside the model's own package.
SOURCES = ("alt/export", "alt/hosts", "alt/patch", "alt_kernels", "benchmarks/rivals.py", "benchmarks/rival_tower.py")
PACKAGES = ("torch", "onnxscript", "open_clip_torch", "timm", "transformers")

Run = Callable[[], Tensor]


def onnx_session(file: Path, profile: Path | None = None) -> Any:
    """Returns a session of ONNX Runtime with all its optimisations, which are its default.

    ``profile``: begin of the name of a file with the time of every operator.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def start_onnxruntime(file: Path, images: Tensor) -> Run:
    """Returns a call of ONNX Runtime on ``images``."""
    session = onnx_session(file)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino_request(file: Path, images: Tensor, *, profile: bool = False) -> Any:
    """Returns a request of OpenVINO for batches like ``images``, whose fixed size spares it work in every call.

    In float32: by default it would compute in bfloat16 where the processor can.
    """
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape(list(images.shape))
    return core.compile_model(model, "CPU", settings | {"PERF_COUNT": profile}).create_infer_request()


def start_openvino(file: Path, images: Tensor) -> Run:
    """Returns a call of OpenVINO on ``images``."""
    request, feed = openvino_request(file, images), images.numpy()
    return lambda: torch.from_numpy(request.infer({0: feed})[0])


RUNTIMES: dict[str, tuple[str, Callable[[Path, Tensor], Run]]] = {
    "ONNX Runtime": ("onnxruntime", start_onnxruntime),
    "OpenVINO": ("openvino", start_openvino),
}
"""Name -> (package, start)."""


def why_no_runtime(name: str) -> str | None:
    """Returns why a runtime cannot run here, or None."""
    missing = [p for p in ("onnx", "onnxscript", RUNTIMES[name][0]) if importlib.util.find_spec(p) is None]
    return f"{' and '.join(missing)} is not installed" if missing else None


def export_once(name: str, model: nn.Module, images: Tensor, folder: Path = FILES) -> Path:
    """Returns the ONNX file of ``model``, kept under ``name``; older files of that name are deleted."""
    from alt.export import export_onnx

    file = folder / f"{name}-{source_hash()}.onnx"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}-{'?' * 12}.onnx"):
            old.unlink()
        unfinished = export_onnx(model, folder / f"{name}.unfinished", images)
        unfinished.rename(file)
    return file


def source_hash() -> str:
    """Returns twelve digits of a hash of the sources and of the versions that make a file."""
    digest = hashlib.sha256()
    for path in (ROOT / source for source in SOURCES):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    for package in PACKAGES:
        try:
            digest.update(f"{package} {importlib.metadata.version(package)}".encode())
        except importlib.metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()[:12]
