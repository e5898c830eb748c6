"""Views are added up as softmaxes, and evaluate() sees every video once."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

pytest.importorskip("torchmetrics")

from alt.evaluate import collect_logits, evaluate
from alt.evaluate.views import Views, logits_of_views, sum_of_softmax


class Output(NamedTuple):
    logits: Tensor
    embedding: Tensor


class Toy(nn.Module):
    """Logits are a linear map of the clip's mean colour; dropout would make training mode random."""

    classes = ("red", "green", "blue")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.dropout = nn.Dropout(0.5)
        self.sizes: list[int] = []

    def forward(self, clips: Tensor) -> Output:
        assert clips.dim() == 5
        self.sizes.append(len(clips))
        mean = clips.mean(dim=(1, 3, 4))
        return Output(self.dropout(self.scale * mean), mean)


def clips(n: int, views: int = 1, seed: int = 0) -> Tensor:
    x = torch.randn(n, views, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x if views > 1 else x[:, 0]


def test_scores_are_the_sum_of_softmaxes_over_crops_and_clips() -> None:
    x = clips(5, views=6)
    model = Toy().eval()
    logits = logits_of_views(model, x)
    manual = torch.zeros(5, 3)
    for view in range(6):
        manual += torch.softmax(model(x[:, view]).logits, dim=-1)
    torch.testing.assert_close(sum_of_softmax(logits), manual)
    torch.testing.assert_close(sum_of_softmax(logits).sum(-1), torch.full((5,), 6.0))


def test_a_sum_of_softmaxes_is_not_a_softmax_of_sums() -> None:
    logits = torch.tensor([[[10.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
    assert sum_of_softmax(logits).argmax() == 1
    assert logits.sum(1).argmax() == 0


def test_views_in_smaller_passes_are_the_same() -> None:
    x, model = clips(3, views=4), Toy().eval()
    whole = logits_of_views(model, x)
    model.sizes.clear()
    torch.testing.assert_close(logits_of_views(model, x, at_once=5), whole)
    assert model.sizes == [5, 5, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_every_video_once_with_an_uneven_last_batch(batch_size: int) -> None:
    x = clips(7)
    labels = x.mean(dim=(1, 3, 4)).argmax(1)
    labels[0] = (labels[0] + 1) % 3  # one of seven is wrong
    model = Toy().train()
    seen: list[tuple[int, int]] = []
    result = evaluate(model, TensorDataset(x, labels), batch_size=batch_size, progress=lambda *at: seen.append(at), r=4)
    assert result.videos == 7
    assert result.top1 == pytest.approx(100 * 6 / 7)
    assert result.setting == {"views": 1, "precision": "fp32", "r": 4}
    assert seen[-1] == (7, 7)
    assert model.training
    assert model.dropout.training


def test_modes_of_submodules_come_back_even_after_an_error() -> None:
    model = Toy().train()
    model.dropout.eval()
    with pytest.raises(ValueError, match="expected shape"):
        evaluate(model, TensorDataset(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
    assert model.training
    assert not model.dropout.training


def test_collected_logits_are_those_of_the_views() -> None:
    x, y = clips(4, views=2), torch.tensor([0, 1, 2, 0])
    model = Toy().eval()
    collected = collect_logits(model, TensorDataset(x, y), batch_size=3)
    torch.testing.assert_close(collected.logits, logits_of_views(model, x).detach())
    assert torch.equal(collected.labels, y)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="the dataset is empty"):
        evaluate(Toy(), TensorDataset(torch.zeros(0, 2, 3, 4, 4), torch.zeros(0, dtype=torch.long)))
    with pytest.raises(ValueError, match="precision: expected 'fp32' or 'bf16', got 'int4'"):
        evaluate(Toy(), TensorDataset(clips(2), torch.tensor([0, 1])), precision="int4")
    with pytest.raises(ValueError, match="one column per class"):
        evaluate(Toy(), TensorDataset(clips(2), torch.tensor([0, 1])), classes=["x", "y"])


@pytest.mark.parametrize(("text", "views"), [("1x3", (1, 3)), ("8x1x3", (1, 3)), ("3 x 4", (3, 4)), ("32×3×1", (3, 1))])
def test_views_are_read_as_tables_print_them(text: str, views: tuple[int, int]) -> None:
    assert Views.parse(text) == views
    assert Views.parse(text).total == views[0] * views[1]


@pytest.mark.parametrize(("text", "message"), [("3", "such as 1x3"), ("2x1", "1 or 3 spatial"), ("1x0", "at least 1")])
def test_bad_views(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views.parse(text)
