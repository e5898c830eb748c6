"""Metrics against numbers worked out by hand, whatever the batches."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchmetrics")

from alt.evaluate.metrics import Result, VideoMetrics, mean_average_precision, multi_label_result

NAMES = ["a", "b", "c", "d", "e", "f", "g"]
# Row by row: label, and the classes from best to worst.
RANKED = [
    (0, [0, 1, 2, 3, 4, 5, 6]),  # right
    (0, [1, 0, 2, 3, 4, 5, 6]),  # among five
    (1, [0, 2, 3, 4, 5, 1, 6]),  # sixth
    (2, [2, 0, 1, 3, 4, 5, 6]),  # right
    (6, [0, 1, 2, 3, 6, 4, 5]),  # fifth
]


def scores_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.zeros(len(RANKED), len(NAMES))
    for row, (_, order) in enumerate(RANKED):
        scores[row, order] = torch.arange(len(NAMES), 0, -1).float()
    return scores, torch.tensor([label for label, _ in RANKED])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_hand_computed_whatever_the_batches(batch: int) -> None:
    metrics = VideoMetrics(NAMES)
    scores, labels = scores_and_labels()
    for s, y in zip(scores.split(batch), labels.split(batch), strict=True):
        metrics.update(s, y)
    result = metrics.compute(seed=3)
    assert result.top1 == pytest.approx(40.0)
    assert result.top5 == pytest.approx(80.0)
    assert result.per_class == {"a": 50.0, "b": 0.0, "c": 100.0, "d": None, "e": None, "f": None, "g": 0.0}
    assert result.mean_class_accuracy == pytest.approx(37.5)
    expected = [[0] * 7 for _ in range(7)]
    expected[0][0] = expected[0][1] = expected[1][0] = expected[2][2] = expected[6][0] = 1
    assert result.confusion == expected
    assert (result.videos, result.setting) == (5, {"seed": 3})


def test_average_precision_by_hand() -> None:
    # class 0: ranks of its positives 1 and 3 of 4 -> (1/1 + 2/3) / 2; class 1: rank 2 of 4 -> 1/2; class 2: none.
    scores = torch.tensor([[9.0, 1.0, 0.0], [8.0, 7.0, 0.0], [7.0, 9.0, 0.0], [1.0, 2.0, 0.0]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert mean_average_precision(scores, targets) == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert mean_average_precision(scores * 1e6 - 3e6, targets) == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)


def test_average_precision_of_single_labels_is_one_against_the_rest() -> None:
    scores, labels = scores_and_labels()
    metrics = VideoMetrics(NAMES)
    metrics.update(scores, labels)
    one_hot = torch.nn.functional.one_hot(labels, 7)
    assert metrics.compute().mean_average_precision == pytest.approx(mean_average_precision(scores, one_hot))


def test_five_best_of_fewer_classes_is_everything() -> None:
    metrics = VideoMetrics(["x", "y", "z"])
    metrics.update(torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), torch.tensor([0, 0]))
    result = metrics.compute()
    assert (result.top1, result.top5) == (50.0, 100.0)


def test_reset_and_json_round_trip(tmp_path) -> None:
    metrics = VideoMetrics(NAMES)
    metrics.update(torch.randn(3, 7), torch.tensor([1, 1, 1]))
    metrics.reset()
    scores, labels = scores_and_labels()
    metrics.update(scores, labels)
    result = metrics.compute(views="1x3")
    assert Result.load(result.save(tmp_path / "deep" / "r.json")) == result
    lines = result.save_per_class(tmp_path / "c.csv").read_text().splitlines()
    assert lines[:4] == ["class,videos,accuracy", "a,2,50.00", "b,1,0.00", "c,1,100.00"]
    assert lines[4] == "d,0,"


@pytest.mark.parametrize(
    ("scores", "labels", "error", "message"),
    [
        (torch.zeros(2, 6), torch.zeros(2, dtype=torch.long), ValueError, r"expected shape \[B, 7\]"),
        (torch.zeros(2, 7), torch.zeros(3, dtype=torch.long), ValueError, r"labels: expected shape \[2\]"),
        (torch.zeros(2, 7), torch.tensor([0, 7]), ValueError, "from 0 to 6, got 7"),
        (torch.zeros(2, 7), torch.tensor([-1, 0]), ValueError, "from 0 to 6, got -1"),
        (torch.zeros(2, 7), torch.zeros(2), TypeError, "integer dtype"),
        (torch.full((1, 7), float("nan")), torch.tensor([0]), ValueError, "finite"),
    ],
)
def test_bad_input_is_one_sentence(scores, labels, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        VideoMetrics(NAMES).update(scores, labels)
    assert "\n" not in str(caught.value)


def test_nothing_evaluated_and_bad_names() -> None:
    with pytest.raises(ValueError, match="no video was evaluated"):
        VideoMetrics(NAMES).compute()
    with pytest.raises(ValueError, match="distinct names, got 'a'"):
        VideoMetrics(["a", "a"])
    with pytest.raises(ValueError, match="at least 2"):
        VideoMetrics(["a"])


def test_videos_with_several_labels() -> None:
    """By hand: class a ranks its two videos 1st and 3rd, (1 + 2/3) / 2; b has its one 2nd, 1/2; c has none."""
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.4, 0.2], [0.7, 0.3, 0.95]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    found = multi_label_result(scores, targets, ["a", "b", "c"], split="x")
    assert found.per_class == {"a": pytest.approx(250 / 3), "b": pytest.approx(50.0), "c": None}
    assert found.mean_average_precision == pytest.approx((250 / 3 + 50) / 2)
    assert found.top1 == pytest.approx(100 / 3)  # the first video alone: c wins the third, a the second
    assert found.top5 == 100
    assert (found.videos, found.confusion, found.setting) == (3, [], {"split": "x"})
    with pytest.raises(ValueError, match=r"expected \[N, 2\], got \[3, 3\]"):
        multi_label_result(scores, targets, ["a", "b"])
