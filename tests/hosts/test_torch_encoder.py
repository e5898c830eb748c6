"""``torch.nn.TransformerEncoder``: fused and nested fast paths, padding, masks, layouts, class tokens, refusals."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import alt
from alt.hosts import find_tower
from alt.models.region_encoder import RegionEncoder
from tests.patch.compare import bit_equal, images, loss_of, max_difference, parameter_gradients

from .families import Family, build, layer_norm
from .plain_merging import run_blocks
from .torch_families import ENCODERS, encode, encoder, encoder_blocks, tokens_of

REMOVED = (5, 3)
each = pytest.mark.parametrize("family", ENCODERS.values(), ids=ENCODERS)
PADDING = torch.zeros(2, 16, dtype=torch.bool)
PADDING[0, 11:] = PADDING[1, 14:] = True


def tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    return tokens_of(images(2, dtype))


def fast(norm_first: bool = False) -> Any:
    """An encoder that torch runs as one fused operation per layer, on nested tensors if there is padding."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return encoder(batch_first=True, norm_first=norm_first, nested=not norm_first, norm=True).double().eval()


def by_hand(model: Any, x: Tensor, padding: Tensor | None) -> tuple[Tensor, list[list[float]]]:
    sizes = None if padding is None else (~padding).double().tolist()
    grids, sizes = run_blocks(encoder_blocks(model), x, REMOVED, 0, sizes=sizes)
    return grids[-1] if model.norm is None else layer_norm(model.norm)(grids[-1]), sizes


@each
def test_padding_is_tokens_of_size_0(family: Family) -> None:
    """Outputs, sizes and gradients, at r = 0 those of the host with its mask, at r > 0 those of the equations."""
    model, x = build(family), tokens()
    plain = encode(model, x, src_key_padding_mask=PADDING)
    expected, sizes = by_hand(model, x, PADDING)
    expected_gradients = parameter_gradients(model, loss_of(expected))
    with alt.patch_model(model, 0) as handle:
        assert max_difference(encode(model, x, src_key_padding_mask=PADDING), plain) < 1e-12
        handle.r = REMOVED
        unmasked = encode(model, x)
    with alt.patch_model(model, REMOVED, trace_source=True) as handle:
        found = encode(model, x, src_key_padding_mask=PADDING)
        assert max_difference(found, unmasked) > 1e-3
        assert max_difference(found, expected) < 1e-11
        assert handle.sizes.tolist() == sizes
        assert handle.sizes.sum(1).tolist() == [11, 14]
        gradients = parameter_gradients(model, loss_of(found))
        for name, gradient in expected_gradients.items():
            assert max_difference(gradients[name], gradient) < 1e-10 * (1 + gradient.abs().max()), name


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["no padding", "padding"])
def test_the_fast_path_does_not_bypass_the_patch(
    norm_first: bool, padding: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients torch fuses a layer into one operation, and packs padded tokens; the patch must still merge."""
    model, x = fast(norm_first), tokens()
    calls: list[Any] = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *a: (calls.append(a[0].is_nested), fused(*a))[1]
    )
    real = torch.ones_like(PADDING) if padding is None else ~padding
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=padding)
        assert calls == [padding is not None and not norm_first] * 2  # the host did take it
        calls.clear()
        expected, _ = by_hand(model, x, padding)
        with alt.patch_model(model, 0) as handle:
            # The host's nested tensors leave no rows for padding, and zeros come back.
            assert max_difference(model(x, src_key_padding_mask=padding)[real], plain[real]) < 1e-12
            handle.r = REMOVED
            assert max_difference(model(x, src_key_padding_mask=padding), expected) < 1e-11
        assert not calls
        assert bit_equal(model(x, src_key_padding_mask=padding), plain)
        assert calls


def test_a_layer_alone_is_the_hosts_own() -> None:
    model, x = fast(), tokens()
    with torch.no_grad():
        expected = model.layers[0](x)
        with alt.patch_model(model, REMOVED):
            assert bit_equal(model.layers[0](x), expected)


@each
def test_hooks_see_the_layout_of_the_layers(family: Family) -> None:
    model = build(family)
    seen: list[tuple[Any, Any]] = []
    model.layers[0].register_forward_hook(lambda module, args, output: seen.append((args[0].shape, output.shape)))
    with alt.patch_model(model, REMOVED):
        family.run(model, images(2))
    swapped = not model.layers[0].self_attn.batch_first
    assert seen == [((16, 2, 32), (11, 2, 32)) if swapped else ((2, 16, 32), (2, 11, 32))]


@each
def test_one_sequence_without_a_batch(family: Family) -> None:
    model, x = build(family), tokens()[0]
    plain = model(x, src_key_padding_mask=PADDING[0])
    assert plain.shape == (16, 32)
    with alt.patch_model(model, 0) as handle:
        assert max_difference(model(x, src_key_padding_mask=PADDING[0]), plain) < 1e-12
        handle.r = REMOVED
        assert max_difference(model(x), encode(model, x[None])[0]) < 1e-12


@each
def test_a_class_token_is_protected_by_the_caller(family: Family) -> None:
    model, x = build(family), tokens()
    first = torch.arange(16) == 0
    grids, _ = run_blocks(encoder_blocks(model), x, REMOVED, 1)
    expected = grids[-1] if model.norm is None else layer_norm(model.norm)(grids[-1])
    with alt.patch_model(model, REMOVED, protect=first, trace_source=True) as handle:
        assert max_difference(encode(model, x), expected) < 1e-11
        assert (handle.source == handle.source[:, :1]).sum(1).tolist() == [1, 1]
    with alt.patch_model(model, REMOVED, protect=first, merged_output=True) as handle:
        merged = encode(model, x)
        assert merged.shape == (2, 8, 32)
        spread = torch.stack([rows[places.long()] for rows, places in zip(merged, handle.source, strict=True)])
        assert max_difference(spread, expected) < 1e-11


def test_any_length_and_its_schedule() -> None:
    model = build(ENCODERS["pre-norm"])
    with pytest.raises(ValueError, match="r: expected a number, because this encoder takes sequences of any length"):
        alt.patch_model(model)
    handle = alt.patch_model(model, 4)
    assert repr(handle) == "PatchHandle(r=4, prop_attn=True over 2 blocks)"
    assert handle.schedule(16).tokens == (12, 8)
    for ask in (handle.schedule, lambda: alt.schedule_for(model, tokens=4)):
        with pytest.raises(ValueError, match=r"torch.nn.TransformerEncoder takes sequences of any length and has no"):
            ask()
    with pytest.raises(ValueError, match="r: expected a number"):
        handle.r = None
    assert model(torch.randn(3, 40, 32).double()).shape == (3, 40, 32)
    with pytest.warns(UserWarning, match="r=4 is more than blocks 0, 1 can lose at 6 input tokens"):
        assert model(torch.randn(3, 6, 32).double()).shape == (3, 6, 32)


@pytest.mark.parametrize("name", ["post-norm", "pre-norm, sequence first"])
def test_lora(name: str) -> None:
    config = peft.LoraConfig(r=4, target_modules=["linear1"], target_parameters=[], init_lora_weights=False)
    model = peft.get_peft_model(build(ENCODERS[name]), config).double()
    merged = copy.deepcopy(model).merge_and_unload()
    x = tokens()
    inner = model.base_model.model
    with alt.patch_model(inner, REMOVED), alt.patch_model(merged, REMOVED):
        assert max_difference(encode(inner, x), encode(merged, x)) < 1e-11


def test_bad_inputs_are_one_sentence() -> None:
    model, x = fast(), tokens()
    handle = alt.patch_model(model, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mask": torch.zeros(16, 16)}, "mask: a patched TransformerEncoder attends to all tokens; leave it out"),
        ({"is_causal": True}, "is_causal: a patched"),
        ({"src_key_padding_mask": torch.zeros(2, 16)}, "expected bool of shape .2, 16., True for padding, got float32"),
        ({"src_key_padding_mask": PADDING.T}, "expected bool of shape .2, 16.*got bool of shape .16, 2."),
        ({"src": torch.nested.nested_tensor([x[0], x[1, :9]])}, "got a nested tensor"),
        ({"src": x[None]}, r"src: expected \[N, C\] or a batch of it, got shape \[1, 2, 16, 32\]"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            model(**{"src": x, **options})
        assert "\n" not in str(caught.value)
    handle.remove()
    with alt.patch_model(model, 2, prop_attn=False), pytest.raises(ValueError, match="prop_attn: expected True"):
        model(x, src_key_padding_mask=PADDING)


class Layer(nn.TransformerEncoderLayer):
    pass


def without_layers(model: Any) -> None:
    model.layers = nn.ModuleList()


def of_two_layouts(model: Any) -> None:
    model.layers[1] = nn.TransformerEncoderLayer(32, 2, 48)


def of_a_subclass(model: Any) -> None:
    model.layers[0] = Layer(32, 2, 48, batch_first=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_layers, "with layers; this one has none"),
        (of_two_layouts, "nn.MultiheadAttention with batch_first=True"),
        (of_a_subclass, "torch.nn's TransformerEncoderLayer as layer 0, exactly .*test_torch_encoder.Layer"),
    ],
)
def test_other_encoders_are_refused(change: Any, message: str) -> None:
    model = fast()
    change(model)
    with pytest.raises(TypeError, match=message):
        alt.patch_model(model, 2)
    assert type(model) is nn.TransformerEncoder


def test_models_around_it_are_told_what_to_pass() -> None:
    model = nn.Transformer(32, 2, 1, 1, 32)
    with pytest.raises(TypeError, match=r"got torch.*Transformer; pass its TransformerEncoder: model.encoder"):
        alt.patch_model(model, 2)


def test_what_needs_images_says_so() -> None:
    model = fast()
    host, tower = find_tower(model)
    for ask in (host.image_size, host.grid, host.mean_std, host.joint_width, RegionEncoder):
        with pytest.raises(TypeError, match=r"got torch.nn.TransformerEncoder, which takes tokens"):
            ask(tower)
    with pytest.raises(TypeError, match="must be a video model"):
        alt.count_macs(model)
    assert host.width(tower) == 32


@pytest.mark.slow
@each
def test_padding_compiles_to_one_graph(family: Family) -> None:
    torch._dynamo.reset()
    model, x = build(family, torch.float32), tokens(torch.float32)
    alt.patch_model(model, REMOVED)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        options = {"src_key_padding_mask": PADDING}
        assert max_difference(encode_like(compiled, model, x, options), encode(model, x, **options)) < 1e-4


def encode_like(compiled: Any, model: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
    if model.layers[0].self_attn.batch_first:
        return compiled(x, **options)
    return compiled(x.transpose(0, 1), **options).transpose(0, 1)
