"""torch.compile(dynamic=True): tracing reasons about every token count that is an expression in height and width."""

from __future__ import annotations

import pytest
import torch
from towers import images, max_difference, tower

import alt


class Counts:
    """A backend that keeps the token counts after each merge of the last graph."""

    def __init__(self):
        self.graphs, self.counts = 0, []

    def __call__(self, graph, _):
        self.graphs += 1
        merges = [node for node in graph.graph.nodes if str(node.target) == "alt_kernels.merge_layer_norm.default"]
        self.counts = [node.meta["example_value"][0].shape[1] for node in merges]
        return graph.forward


def compiled(model):
    torch._dynamo.reset()
    backend = Counts()
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=True), backend


@pytest.mark.filterwarnings("ignore:r=7 is more than block")
def test_the_own_token_count_is_a_number():
    """Kind: guards that pile up from block to block. A share of the tokens could not be traced at all."""
    visual = tower(torch.float32, layers=2)
    handle = alt.patch_clip(visual, 0)
    run, found = compiled(visual)
    with torch.no_grad():
        for graphs, r in enumerate((7, 0.3), 1):  # 7 is clipped
            handle.r = r
            for batch in (images(4, torch.float32), images(5, torch.float32)):
                assert max_difference(run(batch), visual(batch)) < 1e-5
            assert found.graphs == graphs
            assert all(type(count) is int for count in found.counts)
            assert tuple(found.counts) == handle.schedule().tokens


def test_other_token_counts_are_the_first_less_a_number():
    """A tower for images of any size has one token count for each of them."""
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = VisionTransformer(**sizes, dynamic_img_size=True).eval()
    handle = alt.patch_model(model, 3)
    with torch.no_grad():
        for r in (3, 0.3):
            handle.r = r
            run, found = compiled(model)
            batch = images(2, torch.float32, (32, 48))
            assert max_difference(run(batch), model(batch)) < 1e-5
            assert int(found.counts[0] - found.counts[1]) == handle.schedule(1 + 4 * 6).removed[1]
            assert not any(name in str(found.counts) for name in ("Min", "Max", "Floor"))
