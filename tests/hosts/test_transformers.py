"""What transformers' models have besides a forward: implementations, hidden states, other sizes, surrounding models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.utils import output_capturing

import alt
from alt.hosts import find_tower
from tests.patch.compare import bit_equal, images, loss_of, max_difference, parameter_gradients

from .all_families import FAMILIES, REMOVED, grids_by_hand
from .families import MLP, SMALL, TRANSFORMERS, Family, build, clip_vision, dinov2_config, small_llava
from .plain_merging import run_blocks
from .rotary_families import ROTARY

NAMES = ("CLIPVisionModel", "SiglipVisionModel", "ViTModel", "Dinov2WithRegistersModel")
TOWERS = {name: TRANSFORMERS[name] for name in NAMES} | {"DINOv3ViTModel": ROTARY["DINOv3ViTModel"]}
each_tower = pytest.mark.parametrize("family", TOWERS.values(), ids=TOWERS)


def attention_calls(model: Any, family: Family) -> list[int]:
    """Counts the calls of attention modules by their class, without a hook on any of them."""
    calls, cls = [0], type(family.attention(family.tower(model))[0])
    forward = cls.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return forward(self, *args, **kwargs)

    cls.forward = counted
    calls.append(lambda: setattr(cls, "forward", forward))  # type: ignore[arg-type]
    return calls


@each_tower
def test_every_attention_implementation_is_the_same(family: Family) -> None:
    """eager computes its softmax in float32, so the comparison is of float32 models."""
    model, batch = build(family, torch.float32), images(2, torch.float32)
    with alt.patch_model(model, REMOVED):
        merged = family.run(model, batch)
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        expected = family.run(model, batch)
        with alt.patch_model(model, 0) as handle:
            assert max_difference(family.run(model, batch), expected) < 1e-5
            handle.r = REMOVED
            assert max_difference(family.run(model, batch), merged) < 1e-5
            hooks = [a.register_forward_hook(lambda *_: None) for a in family.attention(family.tower(model))]
            assert max_difference(family.run(model, batch), merged) < 1e-5
            for hook in hooks:
                hook.remove()


def test_an_implementation_that_takes_no_sizes_is_used_fused_or_refused() -> None:
    family = TRANSFORMERS["CLIPVisionModel"]
    model, batch = build(family), images(2)
    expected = family.run(model, batch)
    alt.patch_model(model, 0)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert model.config._attn_implementation == "flash_attention_2"
    assert max_difference(family.run(model, batch), expected) < 1e-12
    alt.get_handle(model).r = 3
    family.run(model, batch)
    model.encoder.layers[1].self_attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'flash_attention_2' takes no token sizes.*_implementation\('sdpa'\)"):
        family.run(model, batch)


@each_tower
def test_hidden_states_lie_on_the_grid(family: Family) -> None:
    model, batch = build(family), images(2)
    expected = model(batch, output_hidden_states=True)
    x = family.embed(model, batch)
    grids, _ = grids_by_hand(family, model, batch)
    with alt.patch_model(model, 0) as handle:
        found = model(batch, output_hidden_states=True)
        assert list(found) == list(expected)
        assert max_difference(list(found.hidden_states), list(expected.hidden_states)) < 1e-12
        handle.r = REMOVED
        found = model(batch, output_hidden_states=True).hidden_states
        assert max_difference(list(found), [x, *grids]) < 1e-11
        chosen = model(batch, output_hidden_states=-2).hidden_states
        assert [state is None for state in chosen] == [True, False, True]
        assert bit_equal(chosen[1], found[1])
        as_tuple = model(batch, output_hidden_states=[0, 2], return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert bit_equal([as_tuple[2][0], as_tuple[2][2]], [found[0], found[2]])
    again = model(batch, output_hidden_states=True)  # the host's own recording works as before
    assert bit_equal(list(again.hidden_states), list(expected.hidden_states))


@each_tower
def test_what_cannot_be_answered_is_refused_in_one_sentence(family: Family) -> None:
    model, batch = build(family), images(2)
    alt.patch_model(model, 3)
    with pytest.raises(ValueError, match=r"output_attentions: a patched \w+Model has attention between merged tokens"):
        model(batch, output_attentions=True)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions"):
        model(batch)
    model.config.output_attentions = False
    with pytest.raises(ValueError, match=r"attention_mask: a patched \w+Model attends to all patches"):
        model(batch, attention_mask=torch.ones(2, 17))


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel", "ViTModel"])
def test_interpolated_positions(name: str) -> None:
    family = TRANSFORMERS[name]
    model, batch = build(family), images(2, size=(24, 48))
    expected = model(batch, interpolate_pos_encoding=True)
    with alt.patch_model(model, 0) as handle:
        found = model(batch, interpolate_pos_encoding=True)
        assert max_difference(found, expected) < 1e-12
        handle.r = REMOVED
        found = model(batch, interpolate_pos_encoding=True)
        x = model.embeddings(batch, interpolate_pos_encoding=True)
        x = model.pre_layrnorm(x) if name == "CLIPVisionModel" else x
        grids, _ = run_blocks(family.blocks(model), x, REMOVED, family.protected)
        wanted = family.finish(model, grids[-1])
        assert max_difference([found.last_hidden_state, found.pooler_output], wanted) < 1e-11


def test_masked_patches() -> None:
    mask = torch.arange(16).expand(2, -1) % 3 == 0
    for model in (hf.ViTModel(hf.ViTConfig(**SMALL, **MLP), use_mask_token=True), hf.Dinov2Model(dinov2_config())):
        model = model.double().eval()
        expected = model(images(2), bool_masked_pos=mask)
        with alt.patch_model(model, 0):
            assert max_difference(model(images(2), bool_masked_pos=mask), expected) < 1e-12


@each_tower
def test_recording_hooks_of_an_earlier_call_do_not_slow_the_patch_down(family: Family) -> None:
    """transformers leaves hooks in a model whose hidden states were asked for once. Attention is fused all the same."""
    model, batch = build(family), images(2)
    model(batch, output_hidden_states=True)
    assert family.attention(model)[0]._forward_hooks
    with alt.patch_model(model, 3):
        calls = attention_calls(model, family)
        try:
            family.run(model, batch)
        finally:
            calls[1]()  # type: ignore[operator]
        assert calls[0] == 0


@pytest.mark.parametrize("name", ["CLIPModel", "Dinov2Model", "DINOv3ViTModel", "DINOv3ViTBackbone"])
def test_a_surrounding_model_records_no_merged_tokens(name: str) -> None:
    family = FAMILIES[name]
    model, batch = build(family), images(2)
    tower = family.tower(model)
    expected = family.tower(build(family))(batch, output_hidden_states=True)  # of a twin: no hooks are in the model yet
    collector: dict[str, list[Any]] = {"hidden_states": [], "attentions": []}
    with alt.patch_model(model, 3):
        # What a surrounding model does before it runs its parts.
        output_capturing.install_all_output_capturing_hooks(model)
        token = output_capturing._active_collector.set(collector)
        tower(batch)
        output_capturing._active_collector.reset(token)
    assert collector == {"hidden_states": [], "attentions": []}
    assert bit_equal(list(tower(batch, output_hidden_states=True).hidden_states), list(expected.hidden_states))


def test_dropped_attention_weights_run_through_the_modules_own_call() -> None:
    model = hf.CLIPVisionModel(clip_vision(attention_dropout=0.4)).double().train()
    batch = images(2)
    torch.manual_seed(2)
    expected = model(batch).pooler_output
    handle = alt.patch_model(model, 0)
    torch.manual_seed(2)
    assert max_difference(model(batch).pooler_output, expected) < 1e-12
    handle.r = 3
    assert model(batch).pooler_output.isfinite().all()


def test_a_hook_on_the_encoder_fires_and_sees_merged_tokens() -> None:
    model = build(TRANSFORMERS["Dinov2WithRegistersModel"])
    shapes = []
    model.encoder.register_forward_hook(lambda module, args, output: shapes.append(output.last_hidden_state.shape[1]))
    with alt.patch_model(model, REMOVED):
        model(images(2))
    assert shapes == [20 - 8]


def test_saved_while_patched_loads_as_the_host(tmp_path: Path) -> None:
    model = build(TRANSFORMERS["CLIPVisionModel"], torch.float32)
    expected = model(images(2, torch.float32)).pooler_output
    with alt.patch_model(model, 3):
        model.save_pretrained(tmp_path)
    assert '"CLIPVisionModel"' in (tmp_path / "config.json").read_text()
    loaded = hf.AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is hf.CLIPVisionModel
    assert bit_equal(loaded(images(2, torch.float32)).pooler_output, expected)


def test_a_tower_inside_llava() -> None:
    """Its feature layer is -2, one of the hidden states: the language model reads as many tokens as before."""
    model, batch = small_llava(), images(1)
    prompt = torch.tensor([[1, 2, *[39] * 16, 3]])
    expected = model(input_ids=prompt, pixel_values=batch).logits
    with pytest.raises(TypeError, match=r"pass its CLIPVisionModel: model\.model\.vision_tower$"):
        alt.patch_model(model, 0)
    with alt.patch_model(model.model.vision_tower, 0) as handle:
        assert max_difference(model(input_ids=prompt, pixel_values=batch).logits, expected) < 1e-12
        handle.r = 4
        merged = model(input_ids=prompt, pixel_values=batch).logits
        assert merged.shape == expected.shape
        assert max_difference(merged, expected) > 1e-6
    assert bit_equal(model(input_ids=prompt, pixel_values=batch).logits, expected)


def test_layers_recompute_themselves_with_the_first_plan() -> None:
    """The recomputation does not match again: with other keys its plan would differ."""
    model, batch = build(TRANSFORMERS["ViTModel"]).train(), images(2)
    alt.patch_model(model, REMOVED)
    expected = parameter_gradients(model, loss_of(model(batch).last_hidden_state))
    host, tower = find_tower(model)
    host.set_checkpointing(tower, True)
    output = loss_of(model(batch).last_hidden_state)
    matchings = []
    import alt.patch.step as step

    original = step.match
    step.match = lambda *args, **kwargs: matchings.append(1) or original(*args, **kwargs)
    try:
        found = parameter_gradients(model, output)
    finally:
        step.match = original
    assert not matchings
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_keys_include_lora() -> None:
    """Adapters on the projections of queries and keys: patched, they do what the merged weights do."""
    peft = pytest.importorskip("peft")
    family, batch = TRANSFORMERS["CLIPVisionModel"], images(2)
    model = build(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, config).double().eval()
    with alt.patch_model(model, REMOVED):
        found = adapted(batch)
        hooks = [layer.self_attn.register_forward_hook(lambda *_: None) for layer in model.encoder.layers]
        through_calls = adapted(batch)
        for hook in hooks:
            hook.remove()
    merged = adapted.merge_and_unload()
    with alt.patch_model(merged, REMOVED):
        expected = merged(batch)
    for output in (found, through_calls):
        assert max_difference(output.last_hidden_state, expected.last_hidden_state) < 1e-9
