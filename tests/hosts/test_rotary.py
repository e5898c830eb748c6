"""Towers that rotate q and k: the metric, where merged tokens lie, features, dropout of patches, wrappers."""

from __future__ import annotations

from typing import Any

import open_clip
import peft
import pytest
import torch
import torch.nn.functional as F
from timm.layers import PatchDropoutWithIndices

import alt
from alt.hosts import find_tower
from alt.models.messages import insert_messages
from alt.models.region_encoder import RegionEncoder
from tests.patch.compare import as_clip_images, bit_equal, images, max_difference, randomised

from .all_families import REMOVED, by_hand, grids_by_hand
from .families import FAMILIES as OTHERS
from .families import Family, build
from .rotary_families import EVA, HEADS, PATCH, ROTARY

ROTATING = {name: family for name, family in ROTARY.items() if name != "timm EVA"}
each = pytest.mark.parametrize("family", ROTATING.values(), ids=ROTATING)


@each
def test_rotated_keys_are_those_of_the_reference(family: Family) -> None:
    model, batch = build(family), images(2)
    expected, sizes = by_hand(family, model, batch, "rotated")
    with alt.patch_model(model, REMOVED, metric="rotated", trace_source=True) as handle:
        found = family.run(model, batch)
        assert max_difference(found, expected) < family.tolerance
        assert handle.sizes.tolist() == sizes
        source = handle.source
        hooks = [part.register_forward_hook(lambda *_: None) for part in family.attention(handle.tower)]
        assert max_difference(family.run(model, batch), found) < 1e-10
        for hook in hooks:
            hook.remove()
    with alt.patch_model(model, REMOVED, trace_source=True) as handle:
        family.run(model, batch)
        assert not torch.equal(handle.source, source), "the two metrics choose other pairs"


@pytest.mark.parametrize("name", ["timm token", "CLIPVisionModel"])
def test_rotated_keys_need_a_rotation(name: str) -> None:
    model = build(OTHERS[name])
    with pytest.raises(TypeError, match=r"metric='rotated' needs attention that rotates .* that of \S+ does not; use "):
        alt.patch_model(model, 3, metric="rotated")
    assert "_alt_patch" not in find_tower(model)[1].__dict__


def test_a_merged_token_lies_at_the_mean_of_its_patches() -> None:
    family = EVA["DINOv3"]
    model, batch = build(family), images(2)
    handle = alt.patch_model(model, REMOVED, trace_source=True)
    _, call = handle.encode(batch)
    places = family.places(model, batch).expand(2, -1, -1)
    for image in range(2):
        for row, place in enumerate(call.positions[image]):
            members = places[image][handle.source[image] == row]
            assert (place - members.mean(0)).abs().max() < 1e-12
    assert bool((call.positions[:, :5] == 0).all()), "registers lie at 0 and are not rotated"


@pytest.mark.parametrize("options", [{}, {"indices": 1, "return_prefix_tokens": True}, {"indices": [0], "norm": True}])
def test_intermediates_lie_on_the_grid(options: dict[str, Any]) -> None:
    family = EVA["DINOv3"]
    model = build(family)
    for size in family.sizes:
        batch = images(2, size=size)
        expected = model.forward_intermediates(batch, **options)
        grids, _ = grids_by_hand(family, model, batch)
        with alt.patch_model(model, 0) as handle:
            found = model.forward_intermediates(batch, **options)
            assert max_difference(found, expected) < 1e-12
            handle.r = REMOVED
            final, merged = model.forward_intermediates(batch, output_fmt="NLC")
            assert max_difference([final, *merged], [model.norm(grids[1]), *(grid[:, 5:] for grid in grids)]) < 1e-11
            early = model.forward_intermediates(batch, indices=[0], stop_early=True, intermediates_only=True)
            down, across = (side // PATCH for side in size)
            assert early[0].shape == (2, 32, down, across)


@pytest.mark.parametrize("name", ["EVA-02", "RoPE mixed", "Sapiens2"])
def test_patches_that_training_drops_take_their_places_along(name: str) -> None:
    family = EVA[name]
    model = family.make()
    model.patch_drop = PatchDropoutWithIndices(0.5, num_prefix_tokens=model.num_prefix_tokens)
    model = model.double().train()
    torch.manual_seed(4)
    expected = model(images(2))
    with alt.patch_model(model, 0) as handle:
        torch.manual_seed(4)
        assert max_difference(model(images(2)), expected) < 1e-12
        handle.r = 2
        assert model(images(2)).isfinite().all()


def test_low_precision_keeps_places_in_float32() -> None:
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.01)):
        model, exact = (build(EVA["DINOv3"], d) for d in (dtype, torch.float64))
        batch = images(2).to(dtype)
        with alt.patch_model(model, REMOVED) as handle, alt.patch_model(exact, REMOVED), torch.no_grad():
            x, call = handle.encode(batch)
            assert x.dtype == dtype
            assert call.positions.dtype == torch.float32
            handle.r = 0
            alt.get_handle(exact).r = 0
            difference = (model(batch).double() - exact(batch.double())).abs().max()
            assert difference < tolerance * exact(batch.double()).abs().max()


def test_a_trunk_of_open_clip() -> None:
    """EVA-02 CLIP as open_clip has it."""
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "image_size": 224, "timm_model_pretrained": False}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CustomTextCLIP(16, {**vision, "timm_pool": "token", "timm_proj": None}, text).eval()
    batch = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.encode_image(batch)
        with alt.patch_model(model, 0) as handle:
            assert handle.tower is model.visual.trunk
            assert (model.encode_image(batch) - expected).abs().max() < 1e-5
            handle.r = 8
            assert model.encode_image(batch).shape == expected.shape
        assert bit_equal(model.encode_image(batch), expected)


def test_guests_of_attention_are_not_rotated() -> None:
    """At r = 0 the tower is timm's own blocks, with a row without rotation for the message in timm's table."""
    family = EVA["DINOv3"]
    model, frames = build(family), images(2)
    table = F.pad(model.rope.get_embed(shape=(4, 4)), (0, 0, 0, 1))
    table[-1, table.shape[1] // 2 :] = 1  # sines, then cosines
    with alt.patch_model(model, 0) as handle:
        insert_messages(model, 2)
        x, _ = model._pos_embed(model.patch_embed(frames))
        for block in model.blocks:
            randomised(block.message_adapter)
            joined = block.norm1(torch.cat([x, block.message_adapter(x)], 1))
            x = x + block.gamma_1 * block.attn(joined, rope=table)[:, : x.shape[1]]
            x = x + block.gamma_2 * block.mlp(block.norm2(x))
        assert max_difference(model.forward_features(frames), model.norm(x)) < 1e-12
        handle.r = REMOVED
        merged = family.run(model, frames)
        for attention in family.attention(model):
            attention.register_forward_hook(lambda *_: None)
        assert max_difference(family.run(model, frames), merged) < 1e-10


def test_a_head_of_single_tokens_makes_it_the_tower_of_a_video_model() -> None:
    """With several frames in one sequence each patch keeps the place in its own frame."""
    family = EVA["EVA-02 CLIP"]
    model, clip = build(family), torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    encoder = RegionEncoder(model, 3)
    merged = model(clip.flatten(0, 1)).unflatten(0, (2, 3))
    assert max_difference(encoder(as_clip_images(clip, *encoder.statistics)).frame, merged) < 1e-12
    handle = alt.get_handle(model)
    handle.r = 0
    _, call = handle.encode(clip.flatten(0, 1), frames=3)
    places = family.places(model, clip[0])
    expected = torch.cat([places[:1], *[places[1:]] * 3])
    torch.testing.assert_close(call.positions, expected.expand(2, -1, -1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "target"), [("timm EVA-02", "k_proj"), ("timm EVA-02 CLIP", "qkv")])
def test_adapters_act_as_on_the_host(name: str, target: str) -> None:
    """timm reads the weight of ``qkv`` where a bias lies beside it, so adapters of it do nothing, nor in a patch."""
    family, batch = ROTARY[name], images(2)
    model = build(family)
    plain = model(batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    adapted = adapted.double().eval()
    expected = adapted(batch)
    assert (max_difference(expected, plain) == 0) is (target == "qkv")
    with alt.patch_model(model, 0, metric="keys") as handle:
        assert max_difference(adapted(batch), expected) < 1e-12
        handle.r = REMOVED
        found = adapted(batch)
        hooks = [part.register_forward_hook(lambda *_: None) for part in family.attention(model)]
        assert max_difference(adapted(batch), found) < 1e-10
        for hook in hooks:
            hook.remove()


def test_counting_leaves_no_fake_tensor_behind() -> None:
    """transformers keeps the places of DINOv3's patches between calls."""
    model, batch = build(ROTARY["DINOv3ViTModel"]), images(1, size=(40, 24))
    assert alt.count_macs(model, frames=1, image_size=(40, 24)).native > 0
    assert type(model(batch).pooler_output) is torch.Tensor
    assert alt.count_macs(model, frames=1, image_size=(40, 24)).native > 0


def test_learned_frequencies_do_not_decay() -> None:
    model = build(EVA["RoPE mixed"])
    host, tower = find_tower(model)
    assert any(parameter is model.rope.freqs for parameter in host.no_decay(tower))
    assert model.rope.freqs.shape[2] == HEADS


def test_a_rotation_that_is_not_known_is_refused() -> None:
    model = build(EVA["EVA-02"])
    model.rope.__class__ = type("OtherRope", (type(model.rope),), {})
    with pytest.raises(TypeError, match=r"RotaryEmbeddingMRope as the rotary positions, exactly .*OtherRope$"):
        alt.patch_model(model, 3)


@pytest.mark.parametrize("training", [False, True])
def test_hooks_on_the_rotary_positions_see_the_table(training: bool) -> None:
    """Training draws a scale of the places once, with a hook too."""
    family, batch = ROTARY["DINOv3ViTModel"], images(2)
    model = build(family).train(training)
    model.config.pos_embed_rescale = 2.0
    seen: list[Any] = []

    def run() -> Any:
        torch.manual_seed(3)
        return family.run(model, batch)

    hook = model.rope_embeddings.register_forward_hook(lambda module, inputs, table: seen.append((inputs[0], *table)))
    expected = run()
    with alt.patch_model(model, 0) as handle:
        assert max_difference(run(), expected) < 1e-12
        handle.r = REMOVED
        merged = run()
        assert len(seen) == 3
        assert bit_equal(seen[1], seen[0])
        assert bit_equal(seen[2], seen[0])
        hook.remove()
        assert bit_equal(run(), merged)


def test_a_hook_that_replaces_the_table_is_told_so() -> None:
    model = build(ROTARY["DINOv3ViTModel"])
    model.rope_embeddings.register_forward_hook(lambda module, inputs, table: (table[0] * 0, table[1]))
    changed = model(images(1)).pooler_output
    with alt.patch_model(model, 0), pytest.raises(ValueError, match=r"returned a table of its own.*not replace it$"):
        model(images(1))
    assert bit_equal(model(images(1)).pooler_output, changed)
