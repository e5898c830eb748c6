"""Programs and ONNX files of patched models: standard operators alone, equal to the model at two batch sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alt
from alt.export import export_onnx, export_portable
from alt.export.portable import assign, match, merge
from alt_kernels import bipartite_soft_matching, cosine_gumbel_assign, weighted_merge
from tests.hosts.families import FAMILIES, build
from tests.hosts.test_protect import MASK
from tests.patch.compare import flat, images, max_difference

REMOVED = (5, 3)


def outputs(model: Any, batch: Tensor) -> list[Tensor]:
    output = model(batch)
    return flat(output if isinstance(output, (Tensor, tuple)) else list(output.values()))


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("sizes", [False, True])
def test_matching_and_merge_are_the_operations(protected: int, sizes: bool) -> None:
    """With ties, duplicates, rows of zeros, repeated targets and padding of size 0; scores are exact in float32."""
    generator = torch.Generator().manual_seed(protected)
    signs = 2.0 * torch.randint(0, 2, (3, 21, 16), generator=generator) - 1
    metric = torch.zeros(3, 21, 64).scatter(2, torch.rand(3, 21, 64, generator=generator).topk(16).indices, signs)
    metric[0, ::3] = metric[0, 1]
    metric[1, 6:12] = 0
    x = torch.randn(3, 21, 5, generator=generator, dtype=torch.float64)
    size = torch.randint(0, 4, (3, 21), generator=generator).float() if sizes else None
    for r in (1, 4, (21 - protected) // 2):
        plan = bipartite_soft_matching(metric, r, num_protected=protected)
        merges, row = match(metric, r, protected)
        assert row.tolist() == plan.output_row.tolist()
        expected, found = weighted_merge(x, plan, size), merge(x, size, merges)
        assert found[1].tolist() == expected.size.tolist()
        counts = expected.size[..., None] > 0  # what lies in merged padding is not told
        assert max_difference(found[0].where(counts, 0.0), expected.x.where(counts, 0.0)) < 1e-14
        alone = (plan.offsets.diff() == 1)[..., None]
        assert torch.equal(found[0].where(alone, 0.0), expected.x.where(alone, 0.0))


def test_the_assignment_is_the_operation() -> None:
    generator = torch.Generator().manual_seed(1)
    x, entities = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (9, 5))
    tau = torch.tensor(0.3, dtype=torch.float64)
    for hard in (True, False):
        expected = cosine_gumbel_assign(x, entities, tau=0.3, hard=hard, noise=None)
        assert max_difference(assign(x, entities, tau, None, hard)[0], flat(expected)[0]) < 1e-12


@pytest.mark.parametrize("name", ["CLIPVisionModel", pytest.param("timm avg", marks=pytest.mark.slow)])
def test_a_program_has_standard_operators_and_equals_the_model(name: str) -> None:
    """The grid is restored, protected patches move, and the batch is free, down to 1."""
    model = build(FAMILIES[name], torch.float32)
    alt.patch_model(model, REMOVED, protect=MASK if name == "timm avg" else None)
    program = export_portable(model, images(1, torch.float32))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in names if "alt_kernels" in target]
    for batch in (1, 3):
        x = images(batch, torch.float32)
        assert max_difference(outputs(program.module(), x), outputs(model, x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CLIPVisionModel", "timm avg"])
def test_onnx_runtime_equals_the_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build(FAMILIES[name], torch.float32)
    alt.patch_model(model, REMOVED, protect=MASK if name == "timm avg" else None)
    file = export_onnx(model, tmp_path / "tower.onnx", images(1, torch.float32))
    session = runtime.InferenceSession(file)
    for batch in (1, 3):
        x = images(batch, torch.float32)
        found = [torch.from_numpy(array) for array in session.run(None, {"images": x.numpy()})]
        assert max_difference(found, outputs(model, x)) < 1e-5


def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(FAMILIES["timm avg"], torch.float32), images(1, torch.float32)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        export_portable("model", batch)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"images must be a float tensor \[B, 3, H, W\] or a mapping of named tensors, got uint8"
    ):
        export_portable(model, batch.byte())
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got shape \[3, 32, 32\]"):
        export_portable(model, batch[0])
    with pytest.raises(ValueError, match=r"in evaluation mode to be exported: call model.eval\(\) first"):
        export_portable(model.train(), batch)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cosine_gumbel_assign(x[:, 0, 0], x[0, 1, :4], tau=0.1)

    with pytest.raises(ValueError, match="an assignment without drawn noise"):
        export_portable(Noisy().eval(), batch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"export_onnx needs onnx and onnxscript: pip install 'alt-kernels\[onnx\]'"):
        export_onnx(model, tmp_path / "tower.onnx", batch)
