"""AOTInductor's package of a patched tower equals the model at two batch sizes, with our operations and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

import alt
from alt.export import export_portable
from tests.hosts.families import FAMILIES, build
from tests.patch.compare import images, max_difference

pytestmark = pytest.mark.slow


def keep_operations(model: nn.Module, batch: Any) -> ExportedProgram:
    """The operations of alt_kernels stay: what loads the package imports alt_kernels first."""
    with torch.no_grad():
        return torch.export.export(model, (batch,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)


@pytest.mark.parametrize("export", [keep_operations, export_portable])
def test_the_package_equals_the_model(export: Any, tmp_path: Path) -> None:
    """The grid is restored. Inductor's argmax of a sum would name wrong partners in the standard form."""
    model = build(FAMILIES["timm avg"], torch.float32)
    alt.patch_model(model, (5, 3))
    program = export(model, images(2, torch.float32))
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "tower.pt2"))
    tower = torch._inductor.aoti_load_package(file)
    with torch.no_grad():
        for batch in (1, 3):
            x = images(batch, torch.float32)
            assert max_difference(tower(x), model(x)) < 1e-5
