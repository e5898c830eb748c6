"""The image tower over frames: open_clip's own computation, with merged tokens, sizes and regions."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

import alt
from alt.models.region_encoder import RegionEncoder

from .tiny_models import FRAMES, IMAGE, PATCH, TOKENS, WIDTH, clips, tiny_visual


def encoder(r: Any = 3, **options: Any) -> RegionEncoder:
    return RegionEncoder(tiny_visual(**options), r).eval()


def tiny_clip() -> Any:
    vision = {"image_size": IMAGE, "patch_size": PATCH, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    return open_clip.CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=text).double().eval()


@pytest.mark.parametrize("final_ln_after_pool", [False, True])
def test_class_row_is_what_encode_image_returns(final_ln_after_pool: bool) -> None:
    clip = tiny_clip()
    clip.visual.final_ln_after_pool = final_ln_after_pool
    x = clips()
    expected = clip.encode_image(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    merged = copy.deepcopy(clip)
    alt.patch_clip(merged, 3)
    expected_merged = merged.encode_image(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    region = RegionEncoder(clip.visual, 0).eval()
    torch.testing.assert_close(region(x).x[:, :, 0], expected, rtol=0, atol=1e-12)
    region.r = 3
    torch.testing.assert_close(region(x).x[:, :, 0], expected_merged, rtol=0, atol=1e-12)
    assert (expected - expected_merged).abs().max() > 1e-3


def test_norm_and_projection_are_applied_to_every_token() -> None:
    visual = tiny_visual().eval()
    x = clips()
    taken = visual.forward_intermediates(
        x.flatten(0, 1), indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
    )
    rows = torch.cat([taken["image_intermediates_prefix"][-1], taken["image_intermediates"][-1]], 1) @ visual.proj
    tokens = RegionEncoder(visual, 0)(x)
    torch.testing.assert_close(tokens.x, rows.unflatten(0, x.shape[:2]), rtol=0, atol=1e-12)
    assert tokens.size is not None
    assert bool((tokens.size == 1).all())


def test_frames_are_encoded_alone() -> None:
    region, x = encoder(), clips(batch=2)
    together = region(x, trace=True)
    for b in range(2):
        for t in range(FRAMES):
            alone = region(x[b : b + 1, t : t + 1], trace=True)
            torch.testing.assert_close(together.x[b, t], alone.x[0, 0], rtol=0, atol=1e-12)
            assert torch.equal(together.source[b, t], alone.source[0, 0])


@pytest.mark.parametrize("r", [0, 3, 0.25, [4, 0], [0, 5]])
def test_sizes_and_source_describe_the_rows(r: Any) -> None:
    region = encoder(r)
    tokens = region(clips(), trace=True)
    assert tokens.x.shape == (2, FRAMES, region.num_tokens, WIDTH)
    assert tokens.source is not None
    assert tokens.size is not None
    assert tokens.size.dtype == torch.float32
    assert tokens.source.dtype == torch.int64
    assert tokens.source.shape == (2, FRAMES, TOKENS)
    for source, size in zip(tokens.source.flatten(0, 1), tokens.size.flatten(0, 1), strict=True):
        assert torch.equal(torch.bincount(source, minlength=region.num_tokens).float(), size)
        assert source[0] == 0
        assert size[0] == 1


def test_class_rows_alone_are_the_first_of_all() -> None:
    region, x = encoder(), clips()
    alone, everything = region(x, rows="class"), region(x)
    assert alone.x.shape[2] == alone.size.shape[2] == 1
    assert alone.source is everything.source is None
    torch.testing.assert_close(alone.x, everything.x[:, :, :1], rtol=0, atol=1e-12)
    assert region(x, rows="class", trace=True).x.shape == everything.x.shape


def test_r_may_be_set_at_any_time() -> None:
    region, x = encoder(0), clips()
    before = {name: value.clone() for name, value in region.state_dict().items()}
    plain = region(x).x
    for r in (1, 2, 4, 5):
        region.r = r
        assert region(x).x.shape[2] == region.num_tokens == TOKENS - 2 * r
        torch.testing.assert_close(region(x).x, encoder(r)(x).x, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="can lose"):
        region.r = 8  # 16 patches: 8, then 4
    assert region(x).x.shape[2] == 5
    region.r = 0
    assert torch.equal(region(x).x, plain)
    assert all(torch.equal(before[name], value) for name, value in region.state_dict().items())


def test_copies_and_pickles_compute_the_same() -> None:
    region, x = encoder(), clips()
    expected = region(x, trace=True)
    for twin in (copy.deepcopy(region), pickle.loads(pickle.dumps(region))):
        result = twin(x, trace=True)
        assert all(torch.equal(a, b) for a, b in zip(result[:3], expected[:3], strict=True))
        twin.r = 1
        assert region.r == 3  # nothing is shared
    file = io.BytesIO()
    torch.save(region, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x).x, expected.x)


def test_state_dict_is_the_towers() -> None:
    plain, region = tiny_visual(), encoder()
    assert {f"visual.{name}": tuple(v.shape) for name, v in plain.state_dict().items()} == {
        name: tuple(v.shape) for name, v in region.state_dict().items()
    }
    other = encoder()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.load_state_dict(region.state_dict())
    assert torch.equal(other(clips()).x, region(clips()).x)


def gradients(region: RegionEncoder, x: Tensor) -> dict[str, Tensor]:
    region.zero_grad()
    (region(x).x ** 3).sum().backward()
    return {name: p.grad.clone() for name, p in region.named_parameters() if p.grad is not None}


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    plain = gradients(encoder().train(), clips())
    checkpointed = RegionEncoder(tiny_visual(), 3, grad_checkpointing=True).train()
    assert checkpointed.visual.transformer.grad_checkpointing
    again = gradients(checkpointed, clips())
    assert len(plain) == len(list(checkpointed.parameters()))
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-10 * float(gradient.abs().max() + 1))


def test_autocast_stays_near_float32() -> None:
    region, x = RegionEncoder(tiny_visual(torch.float32), 0).eval(), clips(dtype=torch.float32)
    expected = region(x).x
    with torch.autocast("cpu", torch.bfloat16):
        low = region(x)
    assert low.size.dtype == torch.float32
    assert (low.x.float() - expected).abs().max() < 0.05 * expected.abs().max()
    region.r = 3
    with torch.autocast("cpu", torch.bfloat16):
        (region.train()(x).x.float() ** 2).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in region.parameters() if p.grad is not None)


def test_compiles_to_one_graph() -> None:
    region, x = encoder(), clips()
    compiled = torch.compile(region, fullgraph=True, backend="aot_eager")
    expected, result = region(x, trace=True), compiled(x, trace=True)
    torch.testing.assert_close(result.x, expected.x, rtol=0, atol=1e-12)
    assert torch.equal(result.source, expected.source)
    assert torch.equal(result.size, expected.size)


@pytest.mark.parametrize("final_ln_after_pool", [False, True])
def test_mean_pooling_keeps_the_contract(final_ln_after_pool: bool) -> None:
    """Row 0 is what the tower returns, weighted by size; the others are its projected regions."""
    options = {"pool_type": "avg", "final_ln_after_pool": final_ln_after_pool}
    x = clips()
    merged = tiny_visual(**options).eval()
    handle = alt.patch_clip(merged, 3)
    expected = merged(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    region = RegionEncoder(tiny_visual(**options), 3).eval()
    tokens, alone = region(x, trace=True), region(x, rows="class")
    torch.testing.assert_close(tokens.frame, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.frame, expected, rtol=0, atol=1e-12)
    trunk, _ = handle.encode(x.flatten(0, 1))
    regions = (merged.ln_post(trunk[:, 1:]) @ merged.proj).unflatten(0, x.shape[:2])
    torch.testing.assert_close(tokens.regions, regions, rtol=0, atol=1e-12)
    assert tokens.x.shape[2] == tokens.size.shape[2] == region.num_tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool_type": "none"}, "pool_type='none'"),
        ({"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}, "attentional pooler"),
    ],
)
def test_other_poolings_are_refused(options: dict[str, Any], words: str) -> None:
    visual = tiny_visual(**options)
    with pytest.raises(
        TypeError, match=f"image tower: expected an open_clip VisionTransformer .* got one with .*{words}"
    ):
        RegionEncoder(visual, 1)
    assert type(visual).__name__ == "VisionTransformer"


def test_other_towers_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"supports open_clip's VisionTransformer and .* the image tower.* got .*Linear"
    ):
        RegionEncoder(nn.Linear(2, 2))
    headless = tiny_visual()
    headless.proj = None
    with pytest.raises(TypeError, match="without a projection"):
        RegionEncoder(headless, 1)
    patched = tiny_visual()
    RegionEncoder(patched, 1)
    with pytest.raises(ValueError, match="already patched"):
        RegionEncoder(patched, 1)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(1, 2, 3, 16, 20), ValueError, r"expected \[B, T, 3, 16, 16\].* got \[1, 2, 3, 16, 20\]"),
        (torch.zeros(2, 3, 16, 16), ValueError, r"got \[2, 3, 16, 16\]"),
        (torch.zeros(1, 0, 3, 16, 16), ValueError, "at least one frame"),
        (torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), TypeError, "normalised as CLIP's images are, got uint8"),
        ([1], TypeError, "got list"),
    ],
)
def test_clips_that_do_not_fit(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"clips: .*{words}"):
        encoder()(x)
