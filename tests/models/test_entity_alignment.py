"""Alignment of tokens to entities: who is chosen, what flows back, and how a query is made of the chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt.models.blocks import Mlp
from alt.models.entity_alignment import EntityAlignment

from .tiny_models import draw, randomised

WIDTH, ENTITIES = 16, 7
REDUCTIONS = ("mean", "mlp_then_mean", "attn", "set")


def corpus(count: int = ENTITIES) -> Tensor:
    return F.normalize(draw(count, WIDTH, seed=5), dim=1)


def alignment(training: bool = False, **options: Any) -> EntityAlignment:
    torch.manual_seed(0)
    module = randomised(EntityAlignment(WIDTH, **options).double())
    module.set_entities(corpus())
    return module.train(training)


def tokens(batch: int = 2, frames: int = 3, n: int = 9) -> Tensor:
    return draw(batch, frames, n, WIDTH, seed=4)


def cosines(x: Tensor, entities: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(entities, dim=-1).T


def test_evaluation_is_the_plain_argmax() -> None:
    module, x = alignment(), tokens()
    queries, index = module(x, 10.0)
    assert torch.equal(index, cosines(x, module.entities).argmax(-1))
    assert torch.equal(module(x, 10.0, seed=torch.tensor(1))[0], queries)
    torch.testing.assert_close(queries, module._mlp(module.entities[index].mean(2)))


def test_noise_is_drawn_in_training_only_and_by_the_seed() -> None:
    module, x = alignment(training=True), tokens(n=40)
    index = [module(x, 1.0, seed=torch.tensor(s))[1] for s in (1, 1, 2)]
    assert torch.equal(index[0], index[1])
    assert not torch.equal(index[0], index[2])
    torch.manual_seed(3)
    first, second = module(x, 1.0)[1], module(x, 1.0)[1]
    assert not torch.equal(first, second)  # a new draw every call
    torch.manual_seed(3)
    assert torch.equal(module(x, 1.0)[1], first)
    quiet = alignment(training=True, gumbel="off")
    assert torch.equal(quiet(x, 1.0)[1], cosines(x, quiet.entities).argmax(-1))


@pytest.mark.parametrize(("scale", "tau"), [(1.0, 1.0), (8.0, 1.0), (8.0, 4.0)])
def test_entities_are_chosen_as_often_as_the_softmax_says(scale: float, tau: float) -> None:
    """F10: the pick frequency is softmax(scale cos / tau): the noise is not divided by tau."""
    draws = 20_000
    module = alignment(training=True, tau=tau)
    x = draw(1, 1, 1, WIDTH, seed=9)
    index = module(x.expand(1, 1, draws, -1), scale, seed=torch.tensor(17))[1]
    share = torch.bincount(index.flatten(), minlength=ENTITIES) / draws
    p = (cosines(x, module.entities) * scale / tau).softmax(-1).flatten()
    assert ((share - p).abs() < 3 * (p * (1 - p) / draws).sqrt()).all()


@pytest.mark.parametrize("hard", [True, False])
def test_gradient_is_that_of_the_soft_assignment(hard: bool) -> None:
    """F10, Eq. 5: one-hot rows forward, the softmax's gradient backward; the corpus gets none."""
    module, x = alignment(training=True, hard=hard), tokens().requires_grad_()
    noise = draw(2, 3, 9, ENTITIES, seed=8)
    queries, index = module(x, 6.0, noise=noise)
    direction = draw(*queries.shape, seed=1)
    (gradient,) = torch.autograd.grad((queries * direction).sum(), x)

    soft = (cosines(x, module.entities) * 6.0 + noise).softmax(-1)
    one_hot = F.one_hot(index, ENTITIES).double() + soft - soft.detach()
    if hard:
        assert torch.equal(index, soft.argmax(-1))
        torch.testing.assert_close(one_hot.sum(-1), torch.ones(2, 3, 9).double())
    expected = module._mlp(((one_hot if hard else soft) @ module.entities).mean(2))
    (dense,) = torch.autograd.grad((expected * direction).sum(), x)
    torch.testing.assert_close(queries, expected)
    torch.testing.assert_close(gradient, dense)
    assert gradient.abs().max() > 1e-4
    assert not module.entities.requires_grad
    assert "entities" not in dict(module.named_parameters())


def test_choice_does_not_depend_on_lengths() -> None:
    module, x = alignment(), tokens()
    index = module(x, 1.0)[1]
    assert torch.equal(module(x * 7.0, 1.0)[1], index)
    module.set_entities(corpus() * draw(ENTITIES, 1, seed=2).abs())
    assert torch.equal(module(x, 1.0)[1], index)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction: Any) -> None:
    module, x = alignment(reduction=reduction), tokens()
    queries, index = module(x, 10.0)
    chosen = module.entities[index]
    mlp = module._mlp
    for b in range(2):
        for t in range(3):
            rows = chosen[b, t]
            if reduction == "mean":
                expected = mlp(rows.mean(0))
            elif reduction == "mlp_then_mean":
                expected = torch.stack([mlp(row) for row in rows]).mean(0)
            elif reduction == "attn":
                assert module.score is not None
                score = torch.stack([row @ module.score for row in rows])
                expected = mlp(sum(w * row for w, row in zip(score.softmax(0), rows, strict=True)))
            else:
                expected = mlp(module.entities[sorted(set(index[b, t].tolist()))].mean(0))
            torch.testing.assert_close(queries[b, t], expected)


def test_reductions_differ_and_attention_costs_d_parameters() -> None:
    results = [alignment(reduction=reduction)(tokens(), 10.0)[0] for reduction in REDUCTIONS]
    for i, a in enumerate(results):
        assert all((a - b).abs().max() > 1e-4 for b in results[:i])
    counts = {r: sum(p.numel() for p in EntityAlignment(WIDTH, reduction=r).parameters()) for r in REDUCTIONS}
    assert counts == dict.fromkeys(REDUCTIONS, 8 * WIDTH**2 + 5 * WIDTH) | {"attn": 8 * WIDTH**2 + 6 * WIDTH}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_order_of_the_tokens_does_not_matter(reduction: Any) -> None:
    """F11. Token order after merging depends on the content, so nothing may depend on it."""
    module, x = alignment(reduction=reduction), tokens()
    order = torch.randperm(x.shape[2])
    queries, index = module(x, 10.0)
    shuffled, shuffled_index = module(x[:, :, order], 10.0)
    torch.testing.assert_close(shuffled, queries, rtol=0, atol=1e-6)
    assert torch.equal(shuffled_index, index[:, :, order])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_token_is_the_class_mode(reduction: Any) -> None:
    x = tokens()
    of_class, index = alignment(reduction=reduction, align_tokens="cls")(x, 10.0)
    of_one, one_index = alignment(reduction=reduction)(x[:, :, :1], 10.0)
    assert torch.equal(of_class, of_one)
    assert torch.equal(index, one_index)
    assert index.shape == (2, 3, 1)
    regions = x.clone()
    regions[:, :, 1:] = draw(2, 3, 8, WIDTH, seed=99)
    assert torch.equal(alignment(reduction=reduction, align_tokens="cls")(regions, 10.0)[0], of_class)


def test_how_many_tokens_choose_an_entity_counts_in_the_mean_and_not_in_the_set() -> None:
    few = corpus()[[0, 1]].expand(1, 1, 2, -1)
    many = corpus()[[0, 0, 0, 1]].expand(1, 1, 4, -1)
    for reduction, same in (("mean", False), ("set", True)):
        module = alignment(reduction=reduction)
        assert torch.allclose(module(few, 10.0)[0], module(many, 10.0)[0]) is same, reduction


def test_residual_starts_with_the_entities_themselves() -> None:
    x = tokens().float()
    for reduction in REDUCTIONS:
        module = EntityAlignment(WIDTH, reduction=reduction).eval()
        module.set_entities(corpus())
        chosen = module.entities[module(x, 10.0)[1]]
        if reduction != "set":
            torch.testing.assert_close(module(x, 10.0)[0], chosen.mean(2))
    literal = EntityAlignment(WIDTH, residual=False).eval()
    literal.set_entities(corpus())
    queries, index = literal(x, 10.0)
    torch.testing.assert_close(queries, literal.mlp(literal.entities[index].mean(2)))
    assert queries.abs().max() < 0.05  # std 0.02 twice


def test_mlp() -> None:
    mlp = Mlp(WIDTH, zero_output=False).double()
    x = draw(3, WIDTH)
    hidden = x @ mlp.up.weight.T + mlp.up.bias
    expected = (hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))) @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x), expected)
    assert mlp.up.weight.shape == (4 * WIDTH, WIDTH)
    assert bool((Mlp(WIDTH, zero_output=True)(x.float()) == 0).all())


def test_corpus_is_kept_with_the_model() -> None:
    module = alignment()
    fresh = EntityAlignment(WIDTH).double().eval()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(tokens(), 10.0)[0], module(tokens(), 10.0)[0])
    smaller = EntityAlignment(WIDTH).double()
    smaller.set_entities(corpus(3))
    with pytest.raises(RuntimeError, match="size mismatch for entities"):
        smaller.load_state_dict(module.state_dict())
    values = corpus()
    module.set_entities(values)
    values.zero_()
    assert module.entities.abs().max() > 0  # its own copy


@pytest.mark.parametrize(
    ("embeddings", "error", "words"),
    [
        (torch.zeros(3, WIDTH + 1), ValueError, "as wide as the model's joint space, got"),
        (torch.zeros(0, WIDTH), ValueError, "at least one entity"),
        (torch.full((2, WIDTH), float("nan")), ValueError, "finite"),
        (torch.zeros(3, WIDTH, dtype=torch.int64), TypeError, "got torch.int64"),
        ("words", TypeError, "got str"),
    ],
)
def test_corpora_that_do_not_fit(embeddings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"corpus: expected .*{words}"):
        EntityAlignment(WIDTH).set_entities(embeddings)


def test_no_corpus() -> None:
    with pytest.raises(ValueError, match="corpus: entity queries need one"):
        EntityAlignment(WIDTH)(tokens().float(), 10.0)
