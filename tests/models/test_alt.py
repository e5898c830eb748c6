"""The whole model: equations 7 to 10, the order of frames, switches, copies, training."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt.corpus import Corpus, Entity
from alt.models.alt import AltModel
from alt.models.strategy import apply_strategy
from alt.models.video_model import Tokens
from alt.models.weights import load_model, save_model

from .tiny_models import CLASSES, ENTITIES, FRAMES, WIDTH, clips, draw, tiny_alt, tiny_visual

ALIGNED = 11


def z_of(model: AltModel, x: Tensor) -> Tensor:
    return model(x).embedding


def test_outputs() -> None:
    model = tiny_alt()
    output = model(clips())
    assert output.logits.shape == (2, CLASSES)
    assert output.embedding.shape == (2, WIDTH)
    assert output.index is not None
    assert output.index.shape == (2, FRAMES, ALIGNED)
    assert output.index.dtype == torch.int64
    tokens = model.encode(clips(), trace=True)
    for given in (tokens, tokens.x, Tokens(tokens.x)):
        again = model.forward_tokens(given)
        torch.testing.assert_close(again.embedding, output.embedding, rtol=0, atol=1e-12)
        assert torch.equal(again.index, output.index)


def test_equations_7_to_9() -> None:
    for init, keys in (("residual", "cls"), ("residual", "mlp_tokens"), ("literal", "cls"), ("literal", "mlp_tokens")):
        model = tiny_alt(init=init, keys=keys)
        x = model.encode(clips()).x
        queries, _ = model.alignment(x, 10.0)
        cls, tokens = x[:, :, 0], x.mean(2)
        frames = cls
        if keys == "mlp_tokens":
            frames = model.key_mlp(tokens) + (cls if init == "residual" else 0)
        mean = model.adapter(queries, frames).mean(1)
        expected = model.output_mlp(mean) + (mean + cls.mean(1) if init == "residual" else 0)
        torch.testing.assert_close(z_of(model, clips()), expected, rtol=0, atol=1e-12)


def test_residual_model_starts_in_the_joint_space() -> None:
    """Before any training z is the mean of the aligned entities and of what CLIP says of the frames."""
    model = tiny_alt(random=False)
    x, output = model.encode(clips()).x, model(clips())
    entities = model.alignment.entities[output.index]
    torch.testing.assert_close(output.embedding, entities.mean((1, 2)) + x[:, :, 0].mean(1), rtol=0, atol=1e-12)
    literal = tiny_alt(random=False, init="literal")
    assert literal(clips()).embedding.abs().max() < 0.1


@pytest.mark.parametrize("queries", ["entity", "random"])
@pytest.mark.parametrize("keys", ["cls", "mlp_tokens"])
def test_frame_order_is_seen_by_the_convolution_alone(queries: Any, keys: Any) -> None:
    x, order = clips(dtype=torch.float32), torch.tensor([2, 0, 1])
    blind = tiny_alt(torch.float32, convolution=False, queries=queries, keys=keys)
    assert (z_of(blind, x) - z_of(blind, x[:, order])).abs().max() <= 1e-5
    seeing = tiny_alt(torch.float32, queries=queries, keys=keys)
    assert (z_of(seeing, x) - z_of(seeing, x[:, order])).abs().max() > 1e-3
    placed = tiny_alt(torch.float32, convolution=False, temporal_pos=True, queries=queries, keys=keys)
    assert (z_of(placed, x) - z_of(placed, x[:, order])).abs().max() > 1e-3


def test_one_frame() -> None:
    output = tiny_alt(frames=1)(clips(frames=1))
    assert output.index.shape == (2, 1, ALIGNED)
    assert torch.isfinite(output.logits).all()


def test_clips_of_a_batch_do_not_see_one_another() -> None:
    model, x = tiny_alt(), clips(batch=3)
    together = model(x)
    for b in range(3):
        torch.testing.assert_close(model(x[b : b + 1]).logits[0], together.logits[b], rtol=0, atol=1e-12)


def test_without_merging_and_alignment_of_regions() -> None:
    """The paper's row 'without token merging and without region alignment': the class token alone is aligned."""
    model = tiny_alt(r=0, align_tokens="cls")
    output, tokens = model(clips()), model.encode(clips())
    assert tokens.x.shape[2] == 1  # no other row is projected
    assert output.index.shape == (2, FRAMES, 1)
    everything = tiny_alt(r=0)
    everything.load_state_dict(model.state_dict())
    x = everything.encode(clips()).x
    torch.testing.assert_close(model.forward_tokens(x).embedding, output.embedding, rtol=0, atol=1e-12)
    torch.testing.assert_close(everything.forward_tokens(x[:, :, :1]).embedding, output.embedding, rtol=0, atol=1e-12)
    assert model.encode(clips(), trace=True).source.shape == (2, FRAMES, 17)


def test_keys_of_tokens_cost_one_more_mlp() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in tiny_alt(**options).parameters())

    d = WIDTH
    assert count(keys="mlp_tokens") - count(keys="cls") == 8 * d**2 + 5 * d
    tower = sum(p.numel() for p in tiny_visual().parameters())
    assert count(layers=3) == tower + 3 * (32 * d**2 + 39 * d) + 16 * d**2 + 10 * d


def test_random_queries_know_no_entity() -> None:
    model = tiny_alt(queries="random")
    output = model(clips())
    assert output.index is None
    assert not any("entities" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="queries='random' aligns nothing"):
        model.set_corpus(draw(ENTITIES, WIDTH))
    model.train()(clips()).embedding.sum().backward()
    assert model.queries.grad.abs().max() > 0
    entity, other = tiny_alt(), tiny_alt()
    other.set_corpus(draw(ENTITIES, WIDTH, seed=77))
    assert (z_of(entity, clips()) - z_of(other, clips())).abs().max() > 1e-3  # entity queries do


def test_heads() -> None:
    """F15: cosine does not know the length of z, the literal product does, a linear head has no texts."""
    x = clips()
    cosine, literal = tiny_alt(), tiny_alt(head="literal")
    z = z_of(cosine, x)
    texts = cosine.head.embeddings
    torch.testing.assert_close(cosine(x).logits, 10 * F.cosine_similarity(z[:, None], texts[None], dim=-1))
    torch.testing.assert_close(literal(x).logits, z @ texts.T)
    scale = cosine.logit_scale
    torch.testing.assert_close(cosine.head(3 * z, scale), cosine.head(z, scale))
    torch.testing.assert_close(literal.head(3 * z, scale), 3 * literal.head(z, scale))
    assert not cosine.logit_scale.requires_grad
    assert not any("logit_scale" in name or "head" in name for name, _ in cosine.named_parameters())

    linear = tiny_alt(head="linear", classes=False)
    linear.set_classes(["a", "b"])
    torch.testing.assert_close(linear(x).logits, z_of(linear, x) @ linear.head.weight.T + linear.head.bias)
    before = linear.head.weight.clone()
    linear.set_classes(["a", "b"])
    assert not torch.equal(linear.head.weight, before)
    assert {"head.weight", "head.bias"} <= {name for name, p in linear.named_parameters() if p.requires_grad}


def test_similarity_scale() -> None:
    """None is CLIP's logit scale; it decides how much the noise counts, and in evaluation nothing."""
    x = clips()
    own, same, literal = tiny_alt(), tiny_alt(sim_scale=10.0), tiny_alt(sim_scale=1.0)
    assert torch.equal(own(x).index, literal(x).index)
    seed = torch.tensor(5)
    for model in (own, same, literal):
        model.train()
    assert torch.equal(own(x, seed=seed).index, same(x, seed=seed).index)
    best = own.eval()(x).index

    def share(model: AltModel) -> float:
        picks = [(model(x, seed=torch.tensor(s)).index == best).double().mean() for s in range(30)]
        return float(torch.stack(picks).mean())

    assert share(own.train()) > share(literal) + 0.2


def test_noise_of_a_step() -> None:
    model, x = tiny_alt(sim_scale=1.0).train(), clips()
    one = model(x, seed=torch.tensor(1))
    assert torch.equal(one.logits, model(x, seed=torch.tensor(1)).logits)
    assert not torch.equal(one.index, model(x, seed=torch.tensor(2)).index)
    assert not torch.equal(model(x).index, model(x).index)
    noise = torch.zeros(2, FRAMES, ALIGNED, ENTITIES, dtype=torch.float64)
    noise[..., 3] = 100.0
    assert bool((model(x, noise=noise).index == 3).all())
    assert bool((model.eval()(x, noise=noise).index == 3).all())
    assert torch.equal(model(x, seed=torch.tensor(1)).logits, model(x, seed=torch.tensor(2)).logits)


def test_gradient_reaches_everything_but_texts() -> None:
    model = tiny_alt().train()
    model(clips(), seed=torch.tensor(1)).logits.logsumexp(1).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert unused == []
    assert {name for name, _ in model.named_buffers()} == {"logit_scale", "head.embeddings", "alignment.entities"}
    # with the class token's own way to z cut, the tower still learns through the aligned entities
    x = draw(2, FRAMES, 4, WIDTH, seed=4).requires_grad_()
    model.forward_tokens(x, seed=torch.tensor(1)).embedding.sum().backward()
    assert x.grad[:, :, 1:].abs().max() > 1e-6


def test_r_at_test_time() -> None:
    model, x = tiny_alt(), clips()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for r in (0, 1, 4, 3):
        model.r = r
        assert model.r == model.config.r == r
        seen.append(model(x))
        assert seen[-1].index.shape[2] == 17 - 2 * r
    assert torch.equal(seen[-1].logits, tiny_alt()(x).logits)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_handle_alone_keeps_r(tmp_path: Path) -> None:
    """What is set on the tower's handle is what the configuration says, is saved, and is loaded."""
    model = tiny_alt()
    model.backbone.handle.r = 1
    assert model.r == model.config.r == 1
    copied = copy.deepcopy(model)
    model.backbone.handle.r = (2, 0)
    assert model.config.r == (2, 0)
    assert copied.config.r == 1
    loaded = load_model(save_model(model, tmp_path / "model.safetensors")).eval()
    assert loaded.r == loaded.config.r == (2, 0)
    assert torch.equal(loaded(clips()).logits, model(clips()).logits)
    apply_strategy(model, "frozen")
    assert (model.config.strategy, model.config.r) == ("frozen", (2, 0))


def test_state_dict_into_a_new_model() -> None:
    model, x = tiny_alt(), clips()
    fresh = tiny_alt(random=False, corpus=False, classes=False)
    assert fresh.head.num_classes == 0
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x).logits, model(x).logits)
    linear = tiny_alt(head="linear", classes=False)
    linear.set_classes(["a", "b", "c"])
    other = tiny_alt(head="linear", random=False, classes=False)
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other(x).logits, linear(x).logits)
    assert other.head.weight.requires_grad


def test_copies_and_pickles() -> None:
    model, x = tiny_alt(), clips()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x).logits, model(x).logits)
        assert twin.classes == model.classes
        assert twin.config == model.config
        twin.r = 0
        assert model.r == 3


def test_checkpointing_gives_the_same_gradients() -> None:
    def gradients(**options: Any) -> dict[str, Tensor]:
        model = tiny_alt(**options).train()
        model(clips(), seed=torch.tensor(1)).logits.logsumexp(1).sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain, again = gradients(), gradients(grad_checkpointing=True)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-10 * float(gradient.abs().max() + 1))


def test_a_training_step_under_autocast() -> None:
    model = tiny_alt(torch.float32).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(clips(dtype=torch.float32), seed=torch.tensor(1))
        loss = F.cross_entropy(output.logits, torch.tensor([0, 1]))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    exact = tiny_alt(torch.float32, r=0)
    expected = z_of(exact, clips(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        low = z_of(exact, clips(dtype=torch.float32)).float()
    assert (F.cosine_similarity(low, expected) > 0.99).all()


def test_compiles_to_one_graph() -> None:
    model, x = tiny_alt(torch.float32).train(), clips(dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in (torch.tensor(1), torch.tensor(2)):
        expected, result = model(x, seed=seed), compiled(x, seed=seed)
        assert torch.equal(result.index, expected.index)
        torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_learns_a_batch() -> None:
    model = tiny_alt(torch.float32, random=False).train()
    x, labels = clips(batch=6, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 4, 0])
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = F.cross_entropy(model(x, seed=torch.tensor(step)).logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(model.eval()(x).logits.argmax(1), labels)


def test_what_belongs_to_clip() -> None:
    model = tiny_alt(queries="random")
    ours = {name for name, _ in model.named_parameters() if not model.is_backbone_parameter(name)}
    clip = {name for name, _ in model.named_parameters()} - ours
    assert clip == {f"backbone.visual.{name}" for name, _ in tiny_visual().named_parameters()}
    for inside in ("spatial_adapter.down.weight", "attn.lora_A.default.weight"):
        assert not model.is_backbone_parameter(f"backbone.visual.transformer.resblocks.0.{inside}")
    assert model.is_backbone_parameter("_orig_mod.backbone.visual.conv1.weight")


def test_corpus_object_path_or_tensor(tmp_path: Path) -> None:
    entities = [Entity(f"unit {i}", "a thing", "object", "test") for i in range(ENTITIES)]
    rows = F.normalize(draw(ENTITIES, WIDTH, seed=5, dtype=torch.float32), dim=1)
    corpus = dataclasses.replace(Corpus.from_entities(entities), embeddings=rows)
    model, x = tiny_alt(corpus=False), clips()
    model.set_corpus(corpus)
    assert model.corpus is corpus
    by_object = model(x)
    corpus.save(tmp_path / "corpus.json")
    model.set_corpus(tmp_path / "corpus.json")
    assert model.corpus.texts == corpus.texts
    assert torch.equal(model(x).index, by_object.index)
    model.set_corpus(rows)
    assert model.corpus is None
    assert torch.equal(model(x).index, by_object.index)
    model.set_corpus(rows[:2])
    assert int(model(x).index.max()) < 2
    with pytest.raises(ValueError, match="corpus: it has no embeddings yet"):
        model.set_corpus(Corpus.from_entities(entities))


def test_no_classes_give_no_logits() -> None:
    output = tiny_alt(classes=False)(clips())
    assert output.logits.shape == (2, 0)
    assert output.embedding.shape == (2, WIDTH)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda m: m(clips(frames=2)),
            ValueError,
            "clips: expected 3 frames per clip, .* got 2",
        ),
        (lambda m: m(clips()[..., :8]), ValueError, r"clips: expected \[B, T, 3, 16, 16\]"),
        (lambda m: m.forward_tokens(draw(1, 2, 4, WIDTH)), ValueError, "tokens: expected 3 frames"),
        (lambda m: m.forward_tokens(draw(1, 3, 4, 8)), ValueError, r"tokens: expected tokens \[B, 3, n, 16\]"),
        (lambda m: m.set_corpus(draw(4, 8)), ValueError, "corpus: expected embeddings .* as wide as"),
        (lambda m: m.set_corpus(draw(0, WIDTH)), ValueError, "corpus: expected at least one entity"),
        (lambda m: m.set_classes([], draw(0, WIDTH)), ValueError, "names: expected at least one class"),
        (lambda m: m.set_classes("abc", draw(3, WIDTH)), TypeError, "names: expected a sequence"),
        (lambda m: m.set_classes(["a"]), TypeError, "embeddings: a cosine head needs a tensor"),
        (lambda m: m.set_classes(["a"], draw(2, WIDTH)), ValueError, r"\[1, 16\], got \[2, 16\]"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(tiny_alt())
    with pytest.raises(ValueError, match="corpus: entity queries need one"):
        tiny_alt(corpus=False)(clips())
