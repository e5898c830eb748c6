"""How class texts are made: the mean over templates, one of them per step, learned vectors; and stochastic depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import alt
from alt.entityworld.mini_clip import load_mini_clip
from alt.models import LearnedPrompts, load_model, save_model
from alt.models.config import XClipConfig
from alt.models.drop_path import DropPath
from alt.models.prompts import draw
from alt.models.xclip import XClip
from alt.train.config import OptimSection
from alt.train.optim import parameter_groups

from .tiny_models import CLASSES, FRAMES, WIDTH, clips, randomised, tiny_visual
from .tiny_models import draw as numbers

NAMES = ["cup", "box"]
TEMPLATES = ["lifting {}", "pushing {}", "{}"]


def shown() -> Tensor:
    return numbers(2, 4, 3, 24, 24, dtype=torch.float32)


def mini(family: str, **options: Any) -> Any:
    return alt.create_model(f"{family}-mini", pretrained="entity-world", **options)


@pytest.mark.parametrize(("family", "options"), [("clip-mean", {}), ("xclip", {"prompt_layers": 0})])
def test_one_template_per_step(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Training scores with the template that the seed draws, evaluation with the mean over them."""
    encoder = alt.create_text_encoder("alt-mini", pretrained="entity-world")
    model = mini(family, prompting="random", **options)
    plain = mini(family, **options)
    for one in (model, plain):
        one.name_classes(NAMES, encoder, TEMPLATES)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(shown()).logits, plain.eval()(shown()).logits)
    stack = encoder.embed_templates(NAMES, TEMPLATES, unit=model.unit_texts)
    picked = set()
    for seed in range(8):
        found = model.train()(shown(), seed=torch.tensor(seed)).logits
        plain.set_classes(NAMES, draw(stack, seed))
        torch.testing.assert_close(found, plain(shown()).logits)
        picked.add(round(float(found[0, 0].detach()), 3))
    assert len(picked) == len(TEMPLATES)
    again = load_model(save_model(model, tmp_path / "model.safetensors"))
    torch.testing.assert_close(again.eval()(shown()).logits, model.eval()(shown()).logits)
    with pytest.raises(ValueError, match="prompting: 'random' draws one template per training step"):
        again.train()(shown())


def test_learned_vectors_in_front_of_names(tmp_path: Path) -> None:
    """They alone learn of the held tower, at the rate of new modules, and are those of LearnedPrompts."""
    clip = load_mini_clip()
    model = mini("clip-mean", prompting="learned", prompt_vectors=4, text="held", classes=NAMES)
    with torch.no_grad():
        model.text.prompt_adapter.add_(0.3 * numbers(*model.text.prompt_adapter.shape, dtype=torch.float32))
    prompts = LearnedPrompts(clip.clip, clip.tokenizer, NAMES, length=4)
    prompts.vectors.data.copy_(model.text.prompt_adapter)
    logits = model.train()(shown()).logits
    z = F.normalize(model(shown()).embedding, dim=-1)
    torch.testing.assert_close(logits, model.logit_scale * z @ prompts().T, rtol=1e-4, atol=1e-4)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert model.text.prompt_adapter.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in model.text.clip.parameters())
    rates = {name: group["lr"] for group in parameter_groups(model, OptimSection(lr=1.0)) for name in group["members"]}
    assert rates["text.prompt_adapter"] == 10.0
    with torch.no_grad():
        model.text.prompt_adapter.sub_(model.text.prompt_adapter.grad.sign())
    trained = model(shown()).logits
    assert (trained - logits).abs().max() > 1e-2
    torch.testing.assert_close(model.eval()(shown()).logits, trained)
    again = load_model(save_model(model, tmp_path / "model.safetensors")).eval()
    assert torch.equal(again(shown()).logits, model(shown()).logits)
    torch.testing.assert_close(again.train()(shown()).logits, trained)


def test_refusals() -> None:
    for options, words in (
        (
            {"prompting": "learned"},
            "prompting: 'learned' needs text='held' or 'trained', .* got head='cosine' with text='c",
        ),
        ({"prompting": "random", "text": "held"}, "prompting: 'random' needs text='cached'"),
        ({"prompting": "random", "head": "linear"}, "prompting: 'random' needs a head with texts"),
        ({"prompting": "all"}, "prompting must be one of ensemble, random, learned, got 'all'"),
    ):
        with pytest.raises(ValueError, match=words):
            mini("clip-mean", **options)
    for count in (14, 16):
        with pytest.raises(
            ValueError, match=f"'class text 0' does not fit behind {count} context vectors in 16 tokens"
        ):
            mini("vifi", prompting="learned", prompt_vectors=count, classes=NAMES)
    with pytest.raises(ValueError, match="drop_path must be from 0 to below 1, got 1"):
        mini("xclip", drop_path=1.0)


# --- stochastic depth ---


def tiny_xclip(**options: Any) -> Any:
    config = XClipConfig(**{"backbone": "tiny", "frames": FRAMES, "heads": 2, "prompt_heads": 2, **options})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model: Any = randomised(XClip(config, tiny_visual(), 10.0).double())
    model.set_classes([f"class {i}" for i in range(CLASSES)], numbers(CLASSES, WIDTH, seed=6))
    return model


@pytest.mark.parametrize("r", [0, 3])
def test_drop_path_leaves_out_branches_in_training_alone(r: int) -> None:
    model, plain = tiny_xclip(r=r, drop_path=0.5), tiny_xclip(r=r)
    assert list(model.state_dict()) == list(plain.state_dict())
    blocks = model.backbone.host.blocks(model.backbone.tower)
    assert [block.drop_path_adapter.p for block in blocks] == [0.0, 0.5]
    torch.testing.assert_close(model.eval()(clips()).logits, plain.eval()(clips()).logits, rtol=0, atol=0)
    kept: dict[str, list[Tensor]] = {"branch": [], "message": []}

    def record(name: str) -> Any:
        def hook(_module: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
            scale = (out / given[0]).flatten(1)  # 0 or 1 / (1 - p) = 2, one number per frame
            torch.testing.assert_close(scale, scale[:, :1].expand_as(scale))
            kept[name].append(scale[:, 0])

        return hook

    blocks[1].drop_path_adapter.register_forward_hook(record("branch"))
    blocks[1].message_adapter.drop_path.register_forward_hook(record("message"))
    model.train()
    for _ in range(20):
        model(clips())
    found = torch.cat(kept["branch"])
    assert len(found) == 20 * 2 * 2 * FRAMES  # attention and MLP of every frame
    assert set(found.tolist()) == set(torch.cat(kept["message"]).tolist()) == {0.0, 2.0}
    assert (found == 0).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / len(found) ** 0.5)
    assert isinstance(blocks[0].drop_path_adapter, DropPath)


def test_dropped_branches_leave_a_block_as_it_was() -> None:
    """With p near 1 the last block changes nothing: the frames are those of a tower without it."""
    model, plain = tiny_xclip(drop_path=0.999999), tiny_xclip()
    block: Any = model.backbone.host.blocks(model.backbone.tower)[1]
    last: Any = plain.backbone.host.blocks(plain.backbone.tower)[1]
    last.attn.out_proj.weight.data.zero_()
    last.attn.out_proj.bias.data.zero_()
    last.mlp.c_proj.weight.data.zero_()
    last.mlp.c_proj.bias.data.zero_()
    assert block.drop_path_adapter.training
    torch.testing.assert_close(model.encode(clips()).frame, plain.encode(clips()).frame, rtol=0, atol=1e-12)
