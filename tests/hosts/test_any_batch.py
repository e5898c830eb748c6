"""No host's embedding reads the batch size as a number: a trace of it would hold for that batch alone."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from alt.hosts import find_tower
from tests.patch.compare import images

from .all_families import FAMILIES
from .families import build

TRACED = ("DINOv3ViTModel", "timm EVA-02", "timm MRoPE", "openai VisionTransformer", "ViTModel")


@pytest.mark.parametrize("name", TRACED)
def test_the_batch_of_a_trace_stays_open(name: str) -> None:
    host, tower = find_tower(build(FAMILIES[name], torch.float32).eval())
    host.prepare_trace(tower)
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    any_batch = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3])
    fake = mode.from_tensor(images(5, torch.float32), symbolic_context=any_batch)
    with mode, torch.no_grad():
        embedded = host.embed(tower, fake)
    batches = {str(x.shape[0]) for x in (fake, embedded.x, embedded.positions) if x is not None}
    assert len(batches) == 1
    assert not batches.pop().isdecimal()
    assert not [str(guard.expr) for guard in shapes.guards if str(guard.expr).startswith("Eq(")]
