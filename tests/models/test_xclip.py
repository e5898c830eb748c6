"""X-CLIP: messages, prompts, merging, and what it is as a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import alt
from alt.models.config import XClipConfig
from alt.models.messages import FrameMessages
from alt.models.video_model import Tokens
from alt.models.video_prompts import VideoPrompts
from alt.models.xclip import XClip

from .tiny_models import CLASSES, FRAMES, TOKENS, WIDTH, clips, draw, randomised, tiny_visual

TOWER = 32


def tiny_xclip(**options: Any) -> Any:
    config = XClipConfig(**{"backbone": "tiny", "frames": FRAMES, "heads": 2, "prompt_heads": 2, **options})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = randomised(XClip(config, tiny_visual(), 10.0).double())
    model.set_classes([f"class {i}" for i in range(CLASSES)], 3 * draw(CLASSES, WIDTH, seed=6))
    return model.eval()


def same(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- messages ---


def test_messages_by_hand() -> None:
    """m = W z_cls + b; M + MHA(LN M), attention head by head over the frames of one clip."""
    module: Any = randomised(FrameMessages(8, 2, FRAMES).double())
    x = draw(2 * FRAMES, 5, 8)
    m = (x[:, 0] @ module.project.weight.T + module.project.bias).view(2, FRAMES, 8)
    normed = F.layer_norm(m, (8,), module.norm.weight, module.norm.bias)
    q, k, v = F.linear(normed, module.attention.in_proj_weight, module.attention.in_proj_bias).chunk(3, -1)
    heads = [(q[..., h] @ k[..., h].transpose(1, 2) / 2).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
    same(module(x), (m + module.attention.out_proj(torch.cat(heads, -1))).view(2 * FRAMES, 1, 8))
    with pytest.raises(ValueError, match="takes whole clips of 3 frames, got 4 images"):
        module(x[:4])


def without_messages(model: Any) -> Any:
    plain = copy.deepcopy(model)
    for block in plain.backbone.tower.transformer.resblocks:
        del block.message_adapter
    return plain


@pytest.mark.parametrize("r", [0, 3])
def test_messages_tell_every_frame_of_the_others_and_are_dropped(r: int) -> None:
    model, x = tiny_xclip(r=r), clips()
    other = x.clone()
    other[:, 2] = clips(seed=12)[:, 2]
    with torch.no_grad():
        alone = model.encode(x).frame
        assert model.encode(x, trace=True).x.shape[2] == TOKENS - 2 * r
        assert (model.encode(other).frame - alone)[:, :2].abs().max() > 1e-6
        same(model.encode(x[:, [2, 0, 1]]).frame, alone[:, [2, 0, 1]])  # messages have no order
        plain = without_messages(model)
        assert (plain.encode(x).frame - alone).abs().max() > 1e-3
        same(plain.encode(other).frame[:, :2], plain.encode(x).frame[:, :2], 0)


def test_a_message_that_no_key_hears_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size 0 masks a key: with it for the guests, the tower is plain CLIP."""
    from alt.patch import step

    model, x, real = tiny_xclip(), clips(), step.self_attention

    def masked(attention: Any, joined: Tensor, size: Any, *rest: Any, **options: Any) -> Any:
        size = joined.new_ones(joined.shape[:2], dtype=torch.float32)
        size[:, TOKENS:] = 0
        return real(attention, joined, size, *rest, **options)

    monkeypatch.setattr(step, "self_attention", masked)
    with torch.no_grad():
        same(model.encode(x).frame, without_messages(model).encode(x).frame, 1e-6)


# --- prompts ---


def test_prompts_by_hand() -> None:
    module: Any = randomised(VideoPrompts(TOWER, WIDTH, 2, 2, 0.1).double())
    texts, places = draw(CLASSES, WIDTH), draw(2, 6, WIDTH, seed=4)
    kv = F.layer_norm(places, (WIDTH,), module.norm.weight, module.norm.bias)
    c = texts.expand(2, -1, -1)
    for block in module.blocks:
        q = F.layer_norm(c, (WIDTH,), block.norm.weight, block.norm.bias) @ block.query.weight.T
        k, v = kv @ block.key.weight.T, kv @ block.value.weight.T
        y = [(q[..., h] @ k[..., h].mT / 8**0.5).softmax(-1) @ v[..., h] for h in (slice(0, 8), slice(8, 16))]
        c = c + block.out(torch.cat(y, -1))
        hidden = block.ffn.up(F.layer_norm(c, (WIDTH,), block.ffn_norm.weight, block.ffn_norm.bias))
        c = c + block.ffn.down(hidden * torch.sigmoid(1.702 * hidden))
    same(module(texts, places), texts + module.alpha * c)
    assert VideoPrompts(TOWER, WIDTH, 2, 2, 0.1).alpha.tolist() == pytest.approx([0.1] * WIDTH)


def test_texts_differ_per_video_and_alpha_0_is_the_plain_head() -> None:
    model, x = tiny_xclip(), clips()
    output, tokens = model(x), model.encode(x)
    texts = model.texts_of(tokens)
    assert texts.shape == (2, CLASSES, WIDTH)
    assert (texts[0] - texts[1]).abs().max() > 1e-4
    z = F.normalize(output.embedding, dim=-1)
    same(output.logits, 10 * torch.einsum("bd,bcd->bc", z, F.normalize(texts, dim=-1)))
    with torch.no_grad():
        model.prompts.alpha.zero_()
    same(model(x).logits, 10 * z @ F.normalize(model.head.embeddings, dim=-1).T)


# --- merging ---


def test_places_count_merged_tokens_by_their_size() -> None:
    """The mean over all places and frames is the mean of the merged tokens weighted by their sizes."""
    for r in (0, 3):
        model, x = tiny_xclip(r=r), clips()
        tokens = model.encode(x, trace=True)
        assert tokens.context.shape == (2, TOKENS - 1, WIDTH)
        last, call = model.backbone.handle.encode(x.flatten(0, 1))
        read = model.prompts.read(last)[:, 1:]
        weight = (torch.ones(6, TOKENS) if call.size is None else call.size)[:, 1:, None]
        mean = (weight * read).sum(1) / weight.sum(1)
        same(tokens.context.mean(1), mean.view(2, FRAMES, WIDTH).mean(1))
        source = tokens.source[:, :, 1:] - 1
        by_place = torch.stack([read.view(2, FRAMES, -1, WIDTH)[b].gather(1, source[b, ..., None].expand(-1, -1, WIDTH))
                                for b in range(2)]).mean(1)  # fmt: skip
        same(tokens.context, by_place)
        same(model.forward_tokens(tokens).logits, model(x).logits)


def test_merging_changes_little_and_r_can_be_set_at_any_time() -> None:
    model, x = tiny_xclip(), clips()
    whole = model(x).logits
    model.r = 3
    assert (model(x).logits - whole).abs().max() > 1e-6
    model.r = 0
    same(model(x).logits, whole, 0)


# --- the model ---


def test_parts_may_be_left_out() -> None:
    x = clips()
    mean = tiny_xclip(messages=False, layers=0, prompt_layers=0)
    same(mean(x).embedding, mean.encode(x).frame.mean(1))
    assert not [name for name, _ in mean.named_parameters() if not mean.is_backbone_parameter(name)]
    integrated = tiny_xclip(messages=False, prompt_layers=0)
    same(integrated(x).embedding, integrated.integration(integrated.encode(x).frame))
    with pytest.raises(
        ValueError, match="prompt_layers: a linear head has no class texts to prompt; expected 0, got 2"
    ):
        tiny_xclip(head="linear")
    with pytest.raises(ValueError, match="prompt_heads: expected a divisor of the joint width 16, got 3"):
        tiny_xclip(prompt_heads=3)
    with pytest.raises(
        ValueError, match=r"tokens: prompts read every place of a clip; expected the result of encode\(\)"
    ):
        tiny_xclip().forward_tokens(draw(2, FRAMES, 1, WIDTH))


def test_only_positions_of_frames_know_their_order() -> None:
    model, x = tiny_xclip(), clips()
    assert (model(x).logits - model(x.flip(1)).logits).abs().max() > 1e-4
    with torch.no_grad():
        model.integration.positions.zero_()
    same(model(x).logits, model(x.flip(1)).logits)


def test_everything_learns_and_new_parameters_learn_faster() -> None:
    from alt.train.config import OptimSection
    from alt.train.optim import parameter_groups

    model = tiny_xclip(r=3).train()
    model(clips()).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    groups = parameter_groups(model, OptimSection(lr=1.0))
    rates = {name: group["lr"] for group in groups for name in group["members"]}
    new = {name for name, rate in rates.items() if rate == 10}
    assert new == {n for n in rates if n.startswith(("integration.", "prompts.")) or "message_adapter" in n}
    assert sum("message_adapter" in name for name in new) == 2 * 8
    frozen = tiny_xclip(strategy="frozen")
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == new


def test_tokens_alone_are_enough_without_prompts() -> None:
    model = tiny_xclip(prompt_layers=0)
    tokens = model.encode(clips())
    assert isinstance(tokens, Tokens)
    same(model.forward_tokens(tokens.x).logits, model(clips()).logits)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny_xclip(r=3)
    model.save_pretrained(tmp_path)
    again = alt.load_model(tmp_path / "model.safetensors").eval()
    assert again.config == model.config
    assert torch.equal(again(clips()).logits, model(clips()).logits)
    with pytest.raises(ValueError, match=r"frames: .* has weights for 3 frames, got 2"):
        alt.load_model(tmp_path / "model.safetensors", frames=2)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        model = tiny_xclip(r=3, grad_checkpointing=checkpointing).train()
        model(clips()).logits.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        same(a, b, 1e-12)
