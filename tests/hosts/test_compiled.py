"""Every family under ``torch.compile``: one graph for every batch, equal to the eager model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import alt
from tests.patch.compare import images, max_difference

from .all_families import FAMILIES, REMOVED
from .families import Family, build
from .padded_families import PADDED, naflex

pytestmark = pytest.mark.slow


class Counted:
    """The backend aot_eager, and the number of graphs that it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def compiled(call: Any) -> tuple[Any, Counted]:
    torch._dynamo.reset()
    backend = Counted()
    return torch.compile(call, backend=backend, fullgraph=True), backend


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PADDED])
def test_one_graph_for_every_batch(name: str) -> None:
    family: Family = FAMILIES[name]
    model = build(family, torch.float32)
    run = partial(family.run, model)
    call, backend = compiled(run)
    with torch.no_grad(), alt.patch_model(model, REMOVED):
        for batch in (3, 2, 5):
            x = images(batch, torch.float32)
            torch._dynamo.mark_dynamic(x, 0)  # raises where the trace holds for one batch alone
            assert max_difference(call(x), run(x)) < 1e-5
        assert backend.graphs == 1


@pytest.mark.parametrize("name", PADDED)
def test_one_graph_for_images_of_any_shape(name: str) -> None:
    """Rows of patches: the shapes of the images are data, and padding differs."""
    model = build(PADDED[name], torch.float32)
    run = model.get_image_features if name == "Siglip2Model" else model
    call, backend = compiled(run)
    with torch.no_grad(), alt.patch_model(model, REMOVED):
        for shapes in ([[4, 4], [3, 4]], [[2, 5], [4, 4]], [[3, 5], [4, 3]]):
            inputs = naflex(images(2, torch.float32))
            inputs["spatial_shapes"] = torch.tensor(shapes)
            inputs["pixel_attention_mask"] = (torch.arange(16) < inputs["spatial_shapes"].prod(1, keepdim=True)).long()
            expected = run(**inputs)
            assert max_difference(list(call(**inputs).values()), list(expected.values())) < 1e-5
        assert backend.graphs == 1
