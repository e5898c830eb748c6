"""count_macs on image towers: the closed formula, variants, and that nothing of the caller's is touched."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import alt
from alt.cost import COMPONENTS, CONVENTION, CostReport, count_macs

transformer = pytest.importorskip("open_clip.transformer")


def config(image_size: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int) -> dict:
    return {**locals(), "mlp_ratio": 4.0}


CLIP_B16 = config(224, 16, 768, 12, 12, 512)
CLIP_L14 = config(224, 14, 1024, 24, 16, 768)
TINY = config(48, 8, 32, 3, 2, 24)


def tower(config: dict, device: str = "cpu", **options) -> nn.Module:
    with torch.device(device):
        return transformer.VisionTransformer(**config, **options)


def patched(module: nn.Module, r: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alt.patch_clip(module, r=r)
    return module


def closed_formula(config: dict, r: int) -> tuple[int, int]:
    """MACs of one frame, here and in the paper's convention; one class token, r never clipped."""
    native, dense, norms = closed_parts(config, r)
    return native, native + dense + norms


def closed_parts(config: dict, r: int) -> tuple[int, int, int]:
    """Native, dense merging, and 5 for every element that ln_pre, ln_1, ln_2 and ln_post write."""
    w, heads, d = config["width"], config["heads"], config["output_dim"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    native = patches * 3 * config["patch_size"] ** 2 * w + w * d
    n = patches + 1
    dense, rows = 0, n
    for _ in range(config["layers"]):
        assert r <= (n - 1) // 2
        native += 4 * n * w * w + 2 * n * n * w + 8 * (n - r) * w * w
        if r:
            even, odd = (n + 1) // 2 - 1, n // 2  # the class token sits at an even position
            native += even * odd * (w // heads)
            dense += n * n * w + n * (n - r) * w
        rows += n + n - r
        n -= r
    return native, dense, 5 * w * (rows + n)


@pytest.mark.parametrize(
    ("r", "expected", "dense"), [(0, 140.5, 0.0), (4, 122.6, 4.5), (8, 104.9, 3.5), (13, 83.0, 2.5)]
)
def test_vit_b16_matches_the_published_reconstruction(r: int, expected: float, dense: float) -> None:
    """``dense``: the similarity and merge at full width that, on top of the rest, explain the paper's 141 to 86."""
    report = count_macs(patched(tower(CLIP_B16, "meta"), r), frames=8)
    assert report.native_g == pytest.approx(expected, rel=5e-3)
    assert report.by_convention["dense_merging"] / 1e9 == pytest.approx(dense, abs=0.06)
    native, paper = closed_formula(CLIP_B16, r)
    assert (report.native, report.paper_convention) == (8 * native, 8 * paper)


@pytest.mark.parametrize(("r", "expected"), [(8, 399.0)])
def test_vit_l14_matches_the_published_reconstruction(r: int, expected: float) -> None:
    report = count_macs(patched(tower(CLIP_L14, "meta"), r), frames=8)
    assert report.native_g == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("config", "r", "frames"), [(TINY, 0, 1), (TINY, 1, 3), (TINY, 4, 2)])
def test_equals_the_closed_formula_exactly(config: dict, r: int, frames: int) -> None:
    native, paper = closed_formula(config, r)
    report = count_macs(patched(tower(config, "meta"), r), frames)
    assert report.native == frames * native
    assert report.paper_convention == frames * paper


def test_components_sum_to_native_and_are_where_they_belong() -> None:
    r, w, layers = 4, TINY["width"], TINY["layers"]
    report = count_macs(patched(tower(TINY), r), frames=3)
    counts = [37 - r * i for i in range(layers)]
    assert tuple(report.by_component) == COMPONENTS
    assert sum(report.by_component.values()) == report.native
    assert report.by_component == {
        "patch_embedding": 3 * 36 * 3 * 64 * w,
        "attention_projections": 3 * sum(4 * n * w * w for n in counts),
        "attention": 3 * sum(2 * n * n * w for n in counts),
        "matching": 3 * sum(((n + 1) // 2 - 1) * (n // 2) * 16 for n in counts),
        "mlp": 3 * sum(8 * (n - r) * w * w for n in counts),
        "pooling": 3 * w * TINY["output_dim"],
        "alignment": 0,
        "adapter": 0,
        "head": 0,
        "other": 0,
    }
    _, dense, norms = closed_parts(TINY, r)
    assert tuple(report.by_convention) == CONVENTION
    assert report.by_convention == {"dense_merging": 3 * dense, "dense_assignment": 0, "layer_norm": 3 * norms}
    assert report.paper_convention == report.native + sum(report.by_convention.values())


def test_agrees_with_the_counter_of_pytorch_where_that_one_sees_everything() -> None:
    """With SDPA's math backend and training mode PyTorch's own counter misses nothing of an unpatched tower."""
    module = tower(TINY).train()
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        module(torch.zeros(1, 3, 48, 48))
    assert 2 * count_macs(module, frames=1).native == counter.get_total_flops()


def test_devices_and_precisions_agree() -> None:
    reports = [
        count_macs(patched(tower(TINY, "meta"), 3)),
        count_macs(patched(tower(TINY), 3)),
        count_macs(patched(tower(TINY).bfloat16(), 3)),
        count_macs(patched(tower(TINY).train(), 3)),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        reports.append(count_macs(patched(tower(TINY), 3)))
    module = tower(TINY)
    module.set_grad_checkpointing()
    reports.append(count_macs(patched(module.train(), 3)))
    assert all(report == reports[0] for report in reports)


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": True, "block_type": "custom"},
        {"block_type": "custom"},
        {"ls_init_value": 0.1},
        {"pool_type": "avg"},
        {"output_tokens": True},
    ],
    ids=["qk_norm", "custom", "layer_scale", "avg", "output_tokens"],
)
def test_variants_of_the_tower_cost_the_same(options: dict) -> None:
    native, dense, norms = closed_parts(TINY, 4)
    if options.get("qk_norm"):
        norms += 2 * 5 * TINY["width"] * (37 + 33 + 29)  # of queries and keys
    report = count_macs(patched(tower(TINY, **options), 4), frames=1)
    assert report.native == native
    assert report.by_convention == {"dense_merging": dense, "dense_assignment": 0, "layer_norm": norms}


def test_attentional_pooling_is_pooling() -> None:
    plain = count_macs(tower(TINY, pool_type="tok"))
    pooled = count_macs(tower(TINY, attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=5))
    assert pooled.by_component["pooling"] > plain.by_component["pooling"]
    for name in set(COMPONENTS) - {"pooling"}:
        assert pooled.by_component[name] == plain.by_component[name]


def test_a_whole_model_is_counted_as_its_image_tower() -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = tower(TINY)
            self.text = nn.Linear(1000, 1000)

    model = Clip()
    assert count_macs(model) == count_macs(model.visual)


def test_follows_r_of_the_handle_and_removal() -> None:
    module = tower(TINY)
    bare = count_macs(module)
    handle = alt.patch_clip(module, r=2)
    two = count_macs(module)
    handle.r = 5
    five = count_macs(module)
    assert five.native < two.native < bare.native
    handle.remove()
    assert count_macs(module) == bare


def test_clipped_blocks_are_counted_as_clipped() -> None:
    module = patched(tower(TINY), 16)
    handle = alt.get_handle(module)
    schedule = handle.schedule(37)
    assert schedule.clipped, "the example must run out of tokens"
    w, n, dense = TINY["width"], 37, 0
    for removed in schedule.removed:
        dense += n * n * w + n * (n - removed) * w if removed else 0
        n -= removed
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # counting says nothing of its own
        report = count_macs(module, frames=1)
    assert report.by_convention["dense_merging"] == dense


def test_the_model_and_the_process_are_left_as_they_were() -> None:
    module = tower(TINY).train()
    handle = alt.patch_clip(module, r=4, trace_source=True)
    seen: list[torch.Tensor] = []
    module.transformer.resblocks[1].register_forward_hook(lambda m, args, out: seen.append(out))
    module(torch.randn(2, 3, 48, 48))
    seen.clear()
    sizes, source = handle.sizes, handle.source
    state = copy.deepcopy(module.state_dict())
    flags = {name: (m.training, len(m._forward_hooks)) for name, m in module.named_modules()}
    gradients = {name: p.requires_grad for name, p in module.named_parameters()}
    rng = torch.get_rng_state()
    torch.backends.mha.set_fastpath_enabled(True)

    count_macs(module)

    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.backends.mha.get_fastpath_enabled()
    assert not seen, "a hook of the caller's saw the trace"
    assert torch.equal(handle.sizes, sizes), "the trace of the last real forward is gone"
    assert torch.equal(handle.source, source)
    assert alt.get_handle(module).r == 4
    assert flags == {name: (m.training, len(m._forward_hooks)) for name, m in module.named_modules()}
    assert gradients == {name: p.requires_grad for name, p in module.named_parameters()}
    assert all(type(p) is nn.Parameter for p in module.parameters())
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_the_users_choice_of_fast_path_survives_even_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(transformer.VisionTransformer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not torch.backends.mha.get_fastpath_enabled()
            raise RuntimeError("broken tower")

    before = torch.backends.mha.get_fastpath_enabled()
    try:
        for chosen in (False, True):
            torch.backends.mha.set_fastpath_enabled(chosen)
            with pytest.raises(RuntimeError, match="broken tower"):
                count_macs(Broken(**TINY))
            assert torch.backends.mha.get_fastpath_enabled() is chosen
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_metric_of_a_projection_counts_as_matching() -> None:
    keys, projection = (tower(TINY, "meta") for _ in range(2))
    alt.patch_clip(keys, 3)
    alt.patch_clip(projection, 3, metric="projection")
    expected, found = count_macs(keys, 1).by_component, count_macs(projection, 1).by_component
    tokens = [37, 34, 31]
    assert (
        found.pop("matching") - expected.pop("matching") == sum(tokens) * TINY["width"] * TINY["width"] // TINY["heads"]
    )
    assert found == expected


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantised_layers_are_refused_by_name() -> None:
    """Their products have no formula, so they would count as nothing."""
    quantised = torch.ao.quantization.quantize_dynamic(tower(TINY), {nn.Linear}, dtype=torch.qint8)
    for model in (quantised, patched(quantised, 2)):
        with pytest.raises(TypeError, match=r"quantized::linear_dynamic in transformer\.resblocks\.0\.mlp\.c_fc"):
            count_macs(model)


def test_report_is_a_plain_value() -> None:
    report = count_macs(tower(TINY, "meta"), frames=2)
    assert isinstance(report, CostReport)
    native, paper, components, convention = report
    assert (native, paper) == (report.native, report.paper_convention)
    assert isinstance(native, int)
    assert all(isinstance(v, int) for v in (*components.values(), *convention.values()))
    assert report.native_g == native / 1e9
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: count_macs(m, 0), ValueError, "frames must be an int >= 1, got 0"),
        (lambda m: count_macs(m, -2), ValueError, "frames must be an int >= 1, got -2"),
        (lambda m: count_macs(m, 8.0), TypeError, "frames must be an int >= 1, got float"),
        (lambda m: count_macs(m, True), TypeError, "frames must be an int >= 1, got a bool"),
        (lambda m: count_macs(m.transformer), TypeError, "an open_clip model or its image tower, got Transformer"),
        (lambda m: count_macs(nn.Linear(2, 2)), TypeError, "got Linear"),
        (lambda m: count_macs("ViT-B-16"), TypeError, "got str"),
    ],
)
def test_bad_input(call: Callable[[nn.Module], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(tower(TINY, "meta"))
    assert "\n" not in str(caught.value)
