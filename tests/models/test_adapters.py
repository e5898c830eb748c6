"""Adapters in the tower: their equation in a block, nothing changed at the start, and in and out again."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import alt
from alt.cost import count_macs
from alt.hosts import find_host
from alt.models.adapters import BlockAdapter, insert_adapters, inserted_kind, remove_adapters
from alt.models.blocks import Mlp

from .tiny_models import IMAGE, clips, draw, randomised, tiny_visual

FRAMES, W = 3, 32


def tower(kind: str | None, r: Any = 3, random: bool = True, **options: Any) -> Any:
    """A patched tower of two blocks; ``random``: adapters away from their start."""
    visual = tiny_visual(**options)
    alt.patch_clip(visual, r)
    if kind is not None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            insert_adapters(visual, kind, FRAMES)
        if random:
            for block in visual.transformer.resblocks:
                randomised(block.adapter, 0.3)
    return visual


def images() -> Tensor:
    return clips().flatten(0, 1)


def bottleneck(part: Mlp, x: Tensor) -> Tensor:
    return F.gelu(x @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias


def attention(block: Any, x: Tensor) -> Tensor:
    """The block's own self-attention by torch's module."""
    return block.attn(x, x, x, need_weights=False)[0]


def aim_block(block: Any, x: Tensor) -> Tensor:
    """A block of AIM without merging, from its paper; x [B T, n, w]."""
    adapter = block.adapter
    if adapter.temporal is not None:
        batch, n = x.shape[0] // FRAMES, x.shape[1]
        h = block.ln_1(x).view(batch, FRAMES, n, W).permute(0, 2, 1, 3).reshape(batch * n, FRAMES, W)
        h = bottleneck(adapter.temporal, attention(block, h))
        x = x + h.view(batch, n, FRAMES, W).permute(0, 2, 1, 3).reshape(x.shape)
    y = attention(block, block.ln_1(x))
    x = x + y + bottleneck(adapter.spatial, y)
    normed = block.ln_2(x)
    out = x + block.mlp(normed)
    return out if adapter.beside is None else out + 0.5 * bottleneck(adapter.beside, normed)


@pytest.mark.parametrize("kind", ["s", "sm", "stm"])
def test_a_block_without_merging_is_aims(kind: str) -> None:
    visual = tower(kind, r=0)
    x, _ = alt.get_handle(visual).encode(images())
    expected = visual._embeds(images())
    for block in visual.transformer.resblocks:
        expected = aim_block(block, expected)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["s", "sm", "stm"])
@pytest.mark.parametrize("r", [0, 3])
def test_nothing_changes_at_the_start(kind: str, r: int) -> None:
    plain, adapted = tower(None, r), tower(kind, r, random=False)
    assert torch.equal(adapted(images()), plain(images()))
    assert not torch.equal(tower(kind, r)(images()), plain(images()))


@pytest.mark.parametrize("kind", ["s", "sm", "stm"])
def test_clips_own_state_is_untouched(kind: str) -> None:
    before = tiny_visual().state_dict()
    visual = tower(kind)
    after = visual.state_dict()
    assert {name for name in after if ".adapter." not in name} == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    count = sum(p.numel() for name, p in visual.named_parameters() if ".adapter." in name)
    hidden = W // 4
    assert count == 2 * len(kind) * (2 * W * hidden + hidden + W)


def test_in_and_out_again() -> None:
    plain, visual = tower(None), tower("stm")
    assert inserted_kind(visual) == "stm"
    assert inserted_kind(plain) is None
    remove_adapters(visual)
    assert inserted_kind(visual) is None
    assert visual.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(visual(images()), plain(images()))
    insert_adapters(visual, "s", FRAMES)
    alt.unpatch(visual)
    remove_adapters(visual)
    assert torch.equal(visual(images()), tiny_visual()(images()))
    assert visual.__dict__.keys() == tiny_visual().__dict__.keys()


def before(block: Any, x: Tensor, *, merged: bool, num_protected: int = 1) -> Tensor:
    """The adapter's part before attention, asked as a patched block asks it."""
    visual = tower(None)
    parts = find_host(visual).block_parts(block, visual, 1)
    return block.adapter.before_attention(parts, x, merged=merged, num_protected=num_protected)


@pytest.mark.parametrize("num_protected", [0, 2])
def test_temporal_attention_of_any_number_of_protected_tokens(num_protected: int) -> None:
    block = tower("stm", r=(3, 0)).transformer.resblocks[1]
    x = draw(2 * FRAMES, 14, W)
    found = before(block, x, merged=True, num_protected=num_protected)
    changed = (found - x).abs().amax(-1) > 1e-9
    assert changed[:, :num_protected].all()
    assert not changed[:, num_protected:].any()


def test_temporal_attention_of_class_tokens_once_tokens_have_merged() -> None:
    """Regions of different frames in the same row are not joined: there only the class token looks at other frames."""
    visual = tower("stm", r=(3, 0))
    second = visual.transformer.resblocks[1]
    x = draw(2 * FRAMES, 14, W)
    moved = x.clone()
    moved[1, 5, ::2] += 1.0  # a region of the second frame
    found, changed = (before(second, one, merged=True) for one in (x, moved))
    assert torch.equal(found[:, 1:], x[:, 1:])
    assert torch.equal((changed - moved)[:, 1:], torch.zeros_like(x[:, 1:]))
    assert torch.equal(changed[:, 0], found[:, 0])
    moved = x.clone()
    moved[1, 0, ::2] += 1.0  # its class token
    changed = before(second, moved, merged=True)
    for frame in (0, 2):  # the other frames of the clip see it, no other clip does
        assert (changed - found)[frame, 0].abs().max() > 1e-6
    assert torch.equal(changed[3:], found[3:])
    # before the first merge, rows are places: a patch sees the same place in the other frames
    moved = x.clone()
    moved[1, 5, ::2] += 1.0
    found, changed = (before(second, one, merged=False) for one in (x, moved))
    difference = (changed - found).abs().amax(-1) > 1e-9
    assert difference.nonzero().tolist() == [[0, 5], [1, 5], [2, 5]]


def test_blocks_are_told_whether_tokens_have_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    original = BlockAdapter.before_attention

    def spy(self: Any, parts: Any, x: Tensor, *, merged: bool, num_protected: int) -> Tensor:
        told.append((x.shape[1], merged))
        return original(self, parts, x, merged=merged, num_protected=num_protected)

    monkeypatch.setattr(BlockAdapter, "before_attention", spy)
    tower("stm", r=3)(images())
    assert told == [(17, False), (14, True)]
    told.clear()
    tower("stm", r=0)(images())
    assert told == [(17, False), (17, False)]


@pytest.mark.parametrize("r", [0, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(r: int, checkpointing: bool) -> None:
    visual = tower("stm", r).train()
    visual.requires_grad_(False)
    for block in visual.transformer.resblocks:
        block.adapter.requires_grad_(True)
    visual.set_grad_checkpointing(checkpointing)
    visual(images()).square().sum().backward()
    for name, parameter in visual.named_parameters():
        if ".adapter." not in name:
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().max() > 0, name
    if checkpointing:
        again = tower("stm", r).train()
        again(images()).square().sum().backward()
        for (name, a), (_, b) in zip(visual.named_parameters(), again.named_parameters(), strict=True):
            if ".adapter." in name:
                torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)


def test_copies_and_pickles() -> None:
    visual = tower("stm")
    expected = visual(images())
    for other in (copy.deepcopy(visual), pickle.loads(pickle.dumps(visual))):
        assert torch.equal(other(images()), expected)
        with torch.no_grad():
            other.transformer.resblocks[0].adapter.spatial.up.bias.add_(1.0)
        assert not torch.equal(other(images()), expected)
    assert torch.equal(visual(images()), expected)
    buffer = io.BytesIO()
    torch.save(visual.state_dict(), buffer)
    buffer.seek(0)
    fresh = tower("stm", random=False)
    fresh.load_state_dict(torch.load(buffer))
    assert torch.equal(fresh(images()), expected)


def test_hooks_on_attention_take_the_other_path_with_the_same_result() -> None:
    visual, expected = tower("stm"), tower("stm")(images())
    calls = []
    visual.transformer.resblocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(visual(images()), expected, rtol=0, atol=1e-10)
    assert len(calls) == 2  # over time, and over space


def test_compiles() -> None:
    torch._dynamo.reset()
    visual = tower("stm", dtype=torch.float32).eval()
    found = torch.compile(visual, backend="aot_eager", fullgraph=True)(images().float())
    torch.testing.assert_close(found, visual(images().float()), rtol=1e-4, atol=1e-4)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"call alt\.patch_clip"):
        insert_adapters(tiny_visual(), "s", FRAMES)
    with pytest.raises(ValueError, match="must be one of s, sm, stm, stm-shared, got 'st'"):
        insert_adapters(tower(None), "st", FRAMES)
    with pytest.raises(ValueError, match=r"already has adapters \(s\)"):
        insert_adapters(tower("s"), "sm", FRAMES)
    with pytest.raises(ValueError, match="takes whole clips of 3 frames, got 4 images"):
        tower("stm")(torch.zeros(4, 3, IMAGE, IMAGE, dtype=torch.float64))
    tower("sm")(torch.zeros(4, 3, IMAGE, IMAGE, dtype=torch.float64))  # nothing over time: any number


def test_cost_at_b16() -> None:
    """S and SM at r = 8 cost 4.33 and 8.4 GMACs more than none."""
    costs = []
    for strategy in ("frozen", "s", "sm"):
        with torch.device("meta"):
            model = alt.create_model("clip-mean-b16", r=8, strategy=strategy)
        costs.append(count_macs(model).native_g)
    assert costs[1] - costs[0] == pytest.approx(4.33, abs=0.01)
    assert costs[2] - costs[0] == pytest.approx(8.4, abs=0.05)
