"""MAXI's matching, filter, bags and losses against brute force in float64, and a case by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import alt
from alt.data.seeds import make_generator
from alt.train.bags import (
    BagObjective,
    DictionaryObjective,
    Form,
    bag_loss,
    bag_prompts,
    dictionary_loss,
    draw_texts,
    keep_share,
    match_texts,
)
from alt.train.objective import ClipBatch

from . import jobs

FORMS: tuple[Form, ...] = ("sum", "pairwise", "instance", "max", "one")


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(videos: Tensor, texts: Tensor, matches: list[int], form: str, sigma: float) -> float:
    """The equation with Python's numbers, one term after the other."""
    count, size = texts.shape[:2]

    def e(i: int, j: int, n: int) -> float:
        v, t = videos[i].tolist(), texts[j, n].tolist()
        product = sum(a * b for a, b in zip(v, t, strict=True))
        return math.exp(product / math.sqrt(sum(a * a for a in v) * sum(b * b for b in t)) / sigma)

    def bag(i: int, j: int) -> float:
        terms = [e(i, j, n) for n in range(size)]
        return {"max": max(terms), "one": terms[0]}.get(form, sum(terms))

    losses = []
    for i in range(count):
        below = sum(bag(i, k) for k in range(count))
        positive = [j for j in range(count) if (j == i if form == "instance" else matches[j] == matches[i])]
        if form == "pairwise":
            losses += [-math.log(bag(i, j) / below) for j in positive]
        else:
            losses.append(-math.log(sum(bag(i, j) for j in positive) / below))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("form", FORMS)
def test_losses_equal_brute_force(form: Form) -> None:
    videos, texts, matches = draw(5, 6), draw(5, 3, 6, seed=4), [0, 1, 0, 2, 0]
    for sigma in (0.5, 0.02):
        found = bag_loss(videos, texts, torch.tensor(matches), form=form, sigma=sigma)
        assert found.item() == pytest.approx(brute_force(videos, texts, matches, form, sigma), rel=1e-12)
    shuffled = texts if form == "one" else texts[:, [2, 0, 1]]
    again = bag_loss(videos, shuffled, torch.tensor(matches), form=form, sigma=0.02)
    assert again.item() == pytest.approx(found.item(), rel=1e-12)
    one = bag_loss(videos, texts[:, :1], torch.arange(5), form=form, sigma=0.1)
    cosines = torch.nn.functional.cosine_similarity(videos[:, None], texts[None, :, 0], dim=-1)
    assert one.item() == pytest.approx(torch.nn.functional.cross_entropy(cosines / 0.1, torch.arange(5)).item())


def test_two_by_two_by_two_by_hand() -> None:
    """Unit vectors along the axes, sigma = 1 / ln 2: a text like its clip weighs 2, another one 1."""
    x, y = [1.0, 0.0], [0.0, 1.0]
    videos, texts = torch.tensor([x, y]), torch.tensor([[x, x], [x, y]])
    expected: dict[Form, float] = {
        "sum": -(math.log(4 / 7) + math.log(3 / 5)) / 2,  # clip 0: bags weigh 4 and 3; clip 1: 2 and 3
        "pairwise": -(math.log(4 / 7) + math.log(3 / 5)) / 2,
        "instance": -(math.log(4 / 7) + math.log(3 / 5)) / 2,
        "max": -(math.log(2 / 4) + math.log(2 / 3)) / 2,
        "one": -(math.log(2 / 4) + math.log(1 / 2)) / 2,
    }
    for form, value in expected.items():
        found = bag_loss(videos, texts, torch.tensor([0, 1]), form=form, sigma=1 / math.log(2))
        assert found.item() == pytest.approx(value, rel=1e-6), form
    same = torch.tensor([0, 0])
    assert bag_loss(videos, texts, same, sigma=1 / math.log(2)).item() == pytest.approx(0, abs=1e-6)
    pairs = -(math.log(4 / 7) + math.log(3 / 7) + math.log(2 / 5) + math.log(3 / 5)) / 4
    assert bag_loss(videos, texts, same, form="pairwise", sigma=1 / math.log(2)).item() == pytest.approx(pairs)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_at_the_papers_temperature(form: Form) -> None:
    videos, texts = draw(4, 8).float().requires_grad_(), draw(4, 2, 8, seed=4).float().requires_grad_()
    bag_loss(videos, texts, torch.tensor([0, 1, 1, 2]), form=form).backward()
    for tensor in (videos, texts):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_cross_entropy_in_the_space_of_the_dictionary() -> None:
    """By hand with unit vectors along the axes, sigma = 1 / ln 2: a name like its clip weighs 2, its opposite 1/2."""
    x, y = [1.0, 0.0], [0.0, 1.0]
    videos, names = torch.tensor([x, [0.0, 5.0]]), torch.tensor([x, y, [-1.0, 0.0]])
    found = dictionary_loss(videos, names, torch.tensor([0, 2]), sigma=1 / math.log(2))
    assert found.item() == pytest.approx(-(math.log(2 / 3.5) + math.log(1 / 4)) / 2, rel=1e-6)

    videos, names, matches = draw(5, 6).requires_grad_(), draw(7, 6, seed=4).requires_grad_(), [0, 6, 0, 2, 2]
    for sigma in (0.5, 0.02):
        loss = 0.0
        for video, match in zip(videos.tolist(), matches, strict=True):
            weights = []
            for name in names.tolist():
                product = sum(a * b for a, b in zip(video, name, strict=True))
                lengths = math.sqrt(sum(a * a for a in video) * sum(b * b for b in name))
                weights.append(math.exp(product / lengths / sigma))
            loss -= math.log(weights[match] / sum(weights)) / 5
        found = dictionary_loss(videos, names, torch.tensor(matches), sigma=sigma)
        assert found.item() == pytest.approx(loss, rel=1e-12)
    torch.autograd.gradcheck(lambda v, t: dictionary_loss(v, t, torch.tensor(matches), sigma=0.5), (videos, names))
    small = [tensor.detach().bfloat16().requires_grad_() for tensor in (videos, names)]
    dictionary_loss(*small, torch.tensor(matches)).backward()  # at the paper's temperature
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in small)
    with pytest.raises(ValueError, match=r"expected \[D, d\] and matches \[B\] for videos \[5, 6\], got \[7, 6\]"):
        dictionary_loss(videos, names, torch.tensor([0]))


def test_its_objective_compares_every_clip_with_all_names() -> None:
    model, clips = Towers(), draw(2, 3, seed=5)
    objective = DictionaryObjective(torch.arange(7)[:, None], torch.tensor([4, 0, 6]), sigma=0.5)
    found = objective(model, ClipBatch(clips, -torch.ones(2), torch.tensor([2, 0])), 1)
    wanted = dictionary_loss(clips @ model.video, model.words, torch.tensor([6, 4]), sigma=0.5)
    torch.testing.assert_close(found.loss, wanted, rtol=0, atol=0)
    assert found.hits is None
    with pytest.raises(ValueError, match="DictionaryObjective: expected clip numbers in its batches, got none"):
        objective(model, ClipBatch(clips, -torch.ones(2)), 1)
    with pytest.raises(ValueError, match="matches: expected numbers of 6 names, got 6"):
        DictionaryObjective(torch.arange(6)[:, None], torch.tensor([6]))


def test_matching_by_hand_and_by_brute_force() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    found = match_texts(torch.tensor([[5.0, 1.0], [1.0, 2.0]]), texts)
    assert found.text.tolist() == [0, 1]  # the last two texts are equally like the second clip: the first counts
    assert found.similarity.tolist() == pytest.approx([5 / math.sqrt(26), 2 / math.sqrt(5)])
    videos, texts = draw(20, 5), draw(9, 5, seed=8)
    found = match_texts(videos, texts)
    for i, video in enumerate(videos):
        cosines = [float(video @ text / (video.norm() * text.norm())) for text in texts]
        assert found.text[i] == max(range(9), key=cosines.__getitem__)
        assert found.similarity[i].item() == pytest.approx(max(cosines))


def test_the_filter_keeps_the_best_matches() -> None:
    similarity = torch.tensor([0.3, 0.9, 0.3, 0.1, 0.5])
    assert [keep_share(similarity, p).tolist() for p in (0, 0.2, 0.5, 0.6, 1)] == [
        *([], [1], [0, 1, 4], [0, 1, 4], [0, 1, 2, 3, 4]),
    ]
    many = draw(101)
    kept = [set(keep_share(many, p).tolist()) for p in (0.3, 0.5, 0.9)]
    assert [len(numbers) for numbers in kept] == [30, 51, 91]
    assert kept[0] < kept[1] < kept[2]
    assert many[sorted(kept[1])].min() >= many[sorted(set(range(101)) - kept[1])].max()


def test_bags_are_repeated_as_a_whole() -> None:
    generator = make_generator("bags", seed=1)
    for count, size in ((3, 16), (16, 16), (40, 16), (1, 4)):
        counts = torch.bincount(draw_texts(count, size, generator), minlength=count)
        assert counts.sum() == size
        assert counts.min() >= size // count
        assert counts.max() <= -(-size // count)
    assert bag_prompts("applying cream", ["rub", "rubbing cream"]) == [
        *("a photo of a applying cream. rub.", "a photo of a applying cream. rubbing cream."),
    ]
    assert bag_prompts("applying cream", []) == ["a photo of a applying cream."]


class Towers(torch.nn.Module):
    """Two matrices in the place of two towers."""

    def __init__(self) -> None:
        super().__init__()
        self.video = torch.nn.Parameter(draw(3, 4))
        self.words = torch.nn.Parameter(draw(7, 4, seed=9))

    def encode(self, clips: Tensor) -> Tensor:
        return clips @ self.video

    def embed(self, tokens: Tensor, **_: Any) -> tuple[Tensor, None]:
        return tokens, None

    def text(self, ids: Tensor, unit: bool) -> Tensor:
        return self.words[ids[:, 0]]


def objective_on_a_share(folder: str, rank: int, world: int) -> list[Tensor]:
    """The loss of a part of four clips and its gradients, averaged as DDP does."""
    import torch.distributed as dist

    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    model, clips = Towers(), draw(4, 3, seed=5)
    bags = [torch.tensor([[i], [i + 1], [i + 2]]) for i in range(4)]
    objective = BagObjective(bags, torch.tensor([0, 1, 0, 2]), size=3, sigma=0.5)
    numbers = torch.arange(4).chunk(world)[rank]
    loss = objective(model, ClipBatch(clips[numbers], -torch.ones_like(numbers), numbers), 1).loss
    loss.backward()
    found = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for gradient in found if world > 1 else ():
        dist.all_reduce(gradient)
        gradient /= world
    return found


def test_two_processes_compare_the_clips_of_both(tmp_path: Path) -> None:
    whole = objective_on_a_share("", 0, 1)
    started = [jobs.start(objective_on_a_share, str(tmp_path), rank, 2) for rank in range(2)]
    for part in map(jobs.finish, started):
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)


def test_the_objective_trains_both_towers_with_the_texts_of_its_clips() -> None:
    model: Any = alt.create_model("vifi-mini", pretrained="entity-world").train()
    encoder = alt.models.create_text_encoder("vifi-mini", pretrained="entity-world")
    bags = [encoder.tokenise_classes(texts, "none")[0] for texts in (["cup", "lifting cup"], ["ball"], ["box"])]
    objective = BagObjective(bags, torch.tensor([0, 1, 2]), size=2)
    clips = draw(2, 4, 3, 24, 24).float()
    loss = objective(model, ClipBatch(clips, torch.tensor([-1, -1]), torch.tensor([2, 0])), 5).loss
    z, texts = model(clips).embedding, encoder.embed(["box", "cup", "lifting cup"])
    torch.testing.assert_close(loss, bag_loss(z, texts[torch.tensor([[0, 0], [1, 2]])], torch.tensor([2, 0])))
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in (model.backbone.visual.proj, *model.text.parameters())
    )
    with pytest.raises(ValueError, match="BagObjective: expected clip numbers in its batches, got none"):
        objective(model, ClipBatch(clips, torch.tensor([0, 1])), 5)
    with pytest.raises(ValueError, match="ids: expected a bag for each of 2 clips, got 3 bags"):
        BagObjective(bags, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="ids: expected at least one text for clip 0, got none"):
        BagObjective([bags[0][:0], *bags[1:]], torch.tensor([0, 1, 2]))(
            model, ClipBatch(clips, torch.tensor([-1, -1]), torch.tensor([2, 0])), 5
        )
