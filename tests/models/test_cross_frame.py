"""Attention across frames: the sum over neighbouring frames, its ends, and what merging and saving make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import alt
from alt.hosts import find_host
from alt.models import load_weights
from alt.models.cross_frame import NeighbourKeys
from alt.patch.attention import self_attention

from .tiny_models import draw, tiny_visual


def attention_of(tower: Any) -> Any:
    host = find_host(tower)
    return host.block_parts(host.blocks(tower)[0], tower, 0).attention


def maxi(**options: Any) -> Any:
    return alt.create_model("maxi-mini", pretrained="entity-world", classes=["lifting cup"], **options).eval()


def by_the_sum(attention: Any, x: Tensor, size: Tensor | None, frames: int) -> Tensor:
    """The equation, frame by frame: the mean over the frames that exist of q_t k_{t+i}."""
    projected = attention.project(x, None)
    scale = projected.q.shape[-1] ** -0.5 if projected.scale is None else projected.scale
    rows = []
    for image, (q, v) in enumerate(zip(projected.q, projected.v, strict=True)):
        t = image % frames
        near = [image + i for i in (-1, 0, 1) if 0 <= t + i < frames]
        logits = torch.stack([q @ projected.k[other].transpose(-1, -2) * scale for other in near]).mean(0)
        if size is not None:
            logits = logits + size[image].double().log()
        rows.append(logits.softmax(-1) @ v)
    return attention.join_heads(torch.stack(rows), x)


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@pytest.mark.parametrize("sized", [False, True], ids=["", "sizes"])
def test_it_is_the_sum_of_the_paper(frames: int, sized: bool) -> None:
    attention, x = attention_of(tiny_visual()), draw(6, 5, 32)
    size = draw(6, 5).abs().float() + 0.5 if sized else None
    found = self_attention(attention, x, size, mix_keys=NeighbourKeys(frames, True))
    torch.testing.assert_close(found, by_the_sum(attention, x, size, frames), rtol=0, atol=1e-12)
    still = x[:1].expand_as(x)
    same = None if size is None else size[:1].expand_as(size)
    plain = self_attention(attention, still, same)
    torch.testing.assert_close(
        self_attention(attention, still, same, mix_keys=NeighbourKeys(frames, True)), plain, rtol=0, atol=1e-12
    )


def test_a_case_by_hand() -> None:
    keys = torch.tensor([1.0, 2.0, 6.0, 4.0]).view(4, 1, 1, 1)
    assert NeighbourKeys(4, True)(keys).flatten().tolist() == [1.5, 3, 4, 5]
    assert NeighbourKeys(2, True)(keys).flatten().tolist() == [1.5, 1.5, 5, 5]
    assert NeighbourKeys(1, True)(keys).flatten().tolist() == [1, 2, 6, 4]
    large = torch.full((3, 1, 1, 1), 60000.0, dtype=torch.float16)
    assert torch.equal(NeighbourKeys(3, True)(large), large)


def test_the_last_blocks_attend_across_frames_and_all_blocks_merge_clip_by_clip() -> None:
    clips = draw(2, 4, 3, 24, 24, dtype=torch.float32)
    seen: dict[str, list[Tensor]] = {}
    for name, options in (("plain", {}), ("across", {"cross_frame": 2})):
        model = maxi(**options)
        tower = model.backbone.tower
        blocks = model.backbone.host.blocks(tower)
        found = seen[name] = []
        hooks = [block.register_forward_hook(lambda *call, found=found: found.append(call[2])) for block in blocks]
        model(clips)
        for hook in hooks:
            hook.remove()
    same = [torch.equal(a, b) for a, b in zip(seen["plain"], seen["across"], strict=True)]
    assert same == [True, True, False, False]
    model.r = 3
    plans = model.backbone.handle.encode(clips.flatten(0, 1))[1].matchings
    assert len(plans) == 4
    for plan in plans:
        indices = plan.indices.unflatten(0, (2, 4))
        assert torch.equal(indices, indices[:, :1].expand_as(indices))
        assert not torch.equal(indices[0], indices[1])


def test_it_has_no_parameters_and_is_saved(tmp_path: Path) -> None:
    model, clips = maxi(cross_frame=1, r=2), draw(2, 4, 3, 24, 24, dtype=torch.float32)
    assert model.state_dict().keys() == maxi(r=2).state_dict().keys()
    loaded = alt.load_model(alt.save_model(model, tmp_path / "maxi.safetensors")).eval()
    assert torch.equal(loaded(clips).logits, model(clips).logits)
    assert not torch.equal(loaded(clips).logits, maxi(r=2)(clips).logits)
    model.train()(clips).logits.sum().backward()


def test_weights_of_another_cross_frame_are_read_and_its_own_is_kept(tmp_path: Path) -> None:
    """It has no weights, so a run may start from one without it, and the other way round."""
    across, plain = maxi(cross_frame=1, r=2), maxi(r=2)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.1)
    plain.refresh_texts()
    clips = draw(1, 4, 3, 24, 24, dtype=torch.float32)
    path = alt.save_model(plain, tmp_path / "plain.safetensors")
    load_weights(across, path)
    assert across.config.cross_frame == 1
    assert all(torch.equal(a, b) for a, b in zip(across.parameters(), plain.parameters(), strict=True))
    assert not torch.equal(across(clips).logits, plain(clips).logits)
    again = maxi(r=2)
    load_weights(again, alt.save_model(across, tmp_path / "across.safetensors"))
    assert again.config.cross_frame == 0
    assert torch.equal(again(clips).logits, plain(clips).logits)


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="cross_frame: expected at most the 4 blocks of the tower, got 5"):
        maxi(cross_frame=5)
    model = maxi(cross_frame=1)
    with pytest.raises(ValueError, match="takes whole clips of 4 frames, got 3 images"):
        model.backbone.handle.encode(draw(3, 3, 24, 24, dtype=torch.float32))
    block = model.backbone.host.blocks(model.backbone.tower)[-1]
    block.attn.register_forward_hook(lambda *call: None)
    with pytest.raises(TypeError, match="across frames needs a plain attention module, got one with a hook"):
        model(draw(1, 4, 3, 24, 24, dtype=torch.float32))
