"""Protocols on toy logits whose answer is known, and the linear probe on a separable toy."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

pytest.importorskip("torchmetrics")

from alt.evaluate.linear_probe import ProbeConfig, fingerprint, fit_probe, linear_probe
from alt.evaluate.protocols import draw_classes, few_shot, random_subsets, restrict, zero_shot
from alt.evaluate.run import Collected, result_of
from tests.philox import choose_by_hand

LABELS = [0] * 20 + [1] * 17 + [2] * 16


def test_the_draw_of_classes_by_hand() -> None:
    pool = list(range(5, 225))
    for seed in (0, 1, 2):
        assert draw_classes(pool, 160, [seed]) == [sorted(pool[i] for i in choose_by_hand(220, 160, seed))]


def test_few_shot_runner_trains_once_a_shot_and_seed() -> None:
    calls = []

    def train_and_test(rows: list[int], shots: int, seed: int) -> float:
        calls.append((len(rows), shots, seed))
        return 10.0 * shots + seed

    table = few_shot(LABELS, train_and_test, shots=(2, 4), seeds=(1, 2, 3))
    assert calls == [(6, 2, 1), (6, 2, 2), (6, 2, 3), (12, 4, 1), (12, 4, 2), (12, 4, 3)]
    assert table[2].mean == pytest.approx(22.0)
    assert table[2].std == pytest.approx(1.0)
    assert str(table[4]) == "42.0 ± 1.0"
    with pytest.raises(ValueError, match="shots: expected 17 samples of every class, class 2 has 16"):
        few_shot(LABELS, train_and_test, shots=(17,))


def collected(classes: int = 10, each: int = 3, views: int = 2) -> Collected:
    """Every video of an even class is right; one of an odd class takes the class before it for the better one."""
    labels = torch.arange(classes).repeat_interleave(each)
    logits = torch.zeros(len(labels), views, classes)
    logits[torch.arange(len(labels)), :, labels] = 1.0
    odd = labels % 2 == 1
    logits[odd, :, labels[odd] - 1] = 2.0
    return Collected(logits, labels)


NAMES = [f"class {i}" for i in range(10)]


def test_a_subset_restricts_the_class_list_not_only_the_videos() -> None:
    part, names = restrict(collected(), NAMES, [7, 1, 5])
    assert names == ["class 7", "class 1", "class 5"]
    assert part.logits.shape == (9, 2, 3)
    # With the classes that misled them gone, all odd classes are right.
    assert result_of(part, names).top1 == 100.0
    assert result_of(collected(), NAMES).top1 == 50.0
    both, names = restrict(collected(), NAMES, [0, 1, 5])
    assert result_of(both, names).per_class == {"class 0": 100.0, "class 1": 0.0, "class 5": 100.0}


def test_random_subsets_known_answer_spread_and_seeds() -> None:
    found, results = random_subsets(collected(), NAMES, size=6, draws=3, seed=4)
    for result, value in zip(results, found.values, strict=True):
        kept = [int(name.split()[1]) for name in result.per_class]
        misled = sum(c % 2 == 1 and c - 1 in kept for c in kept)
        assert len(kept) == 6
        assert result.videos == 18
        assert value == result.top1 == pytest.approx(100 * (6 - misled) / 6)
    assert [r.setting["draw"] for r in results] == [4, 5, 6] == list(found.seeds)
    assert found.mean == pytest.approx(sum(found.values) / 3)
    assert random_subsets(collected(), NAMES, size=6, draws=3, seed=4)[0] == found
    assert len({tuple(r.per_class) for r in results}) > 1


def test_the_draws_of_classes_stay_what_they_are() -> None:
    """Other numbers would change every published result on random subsets."""
    assert draw_classes(range(10), 4, [0, 1, 2]) == [[0, 2, 5, 7], [2, 3, 6, 8], [3, 7, 8, 9]]
    assert [sum(draw) for draw in draw_classes(range(220), 160, [0, 1, 2])] == [16848, 17894, 18309]


def test_random_subsets_of_the_unseen_classes_only() -> None:
    _, results = random_subsets(collected(), NAMES, size=3, draws=5, candidates=[1, 3, 5, 7, 9])
    for result in results:
        assert all(int(name.split()[1]) % 2 for name in result.per_class)
        assert result.top1 == 100.0
    with pytest.raises(ValueError, match="size: expected 2 to 5 classes, got 6"):
        random_subsets(collected(), NAMES, size=6, candidates=[1, 3, 5, 7, 9])


def test_zero_shot_is_mean_and_deviation_over_splits() -> None:
    results = []
    for right in (4, 6, 8):
        labels = torch.zeros(10, dtype=torch.long)
        logits = torch.zeros(10, 2)
        logits[:right, 0] = 1
        logits[right:, 1] = 1
        results.append(result_of(Collected(logits[:, None], labels), ["x", "y"]))
    found = zero_shot(results)
    assert (found.mean, found.std) == (pytest.approx(60.0), pytest.approx(20.0))
    assert str(found) == "60.0 ± 20.0"
    assert zero_shot(results[:1]).std is None


class Output(NamedTuple):
    logits: Tensor
    embedding: Tensor


class Toy(nn.Module):
    """Normalisation with running statistics: a model that is not in evaluation mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.map = nn.Linear(3, 8)

    def forward(self, clips: Tensor) -> Output:
        z = self.map(self.norm(clips.mean(dim=(1, 3, 4))))
        return Output(z, z)


def separable(n: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    clips = 0.1 * torch.randn(n, 2, 3, 2, 2, generator=generator)
    clips[torch.arange(n), :, labels] += 4.0
    return TensorDataset(clips, labels)


def test_linear_probe_separates_a_separable_toy_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = Toy().train()
    before = fingerprint(model)
    config = ProbeConfig(lr=5e-2, batch_size=16)
    result = linear_probe(model, separable(96, 1), separable(60, 2), ["r", "g", "b"], config=config)
    assert result.top1 == 100.0
    assert fingerprint(model) == before == result.setting["backbone"]
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    again = linear_probe(model, separable(96, 1), separable(60, 2), ["r", "g", "b"], config=config)
    assert again == result


def test_the_papers_rate_needs_only_more_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    z = torch.nn.functional.one_hot(labels, 8).float() + 0.05 * torch.randn(600, 8, generator=generator)
    head = fit_probe((z, labels), 3, ProbeConfig(batch_size=8))
    assert (head(z).argmax(1) == labels).all()


def test_fingerprint_sees_a_single_bit() -> None:
    model = Toy()
    before = fingerprint(model)
    with torch.no_grad():
        model.map.bias[0] = torch.nextafter(model.map.bias[0], torch.tensor(9.0))
    assert fingerprint(model) != before


def test_a_model_that_changes_is_no_probe() -> None:
    class Cheat(Toy):
        def forward(self, clips: Tensor) -> Output:
            self.norm.running_mean += 1
            return super().forward(clips)

    with pytest.raises(RuntimeError, match="were not frozen"):
        linear_probe(Cheat(), separable(6, 1), separable(6, 2), ["r", "g", "b"])
