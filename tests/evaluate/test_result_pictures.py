"""The pictures of a result show its numbers: counts, the matrix in percent, the lowest classes first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchmetrics")

from alt.evaluate import result_pictures
from alt.evaluate.metrics import Result, VideoMetrics, multi_label_result
from alt.evaluate.result_pictures import draw_confusion, draw_per_class, list_confusions


def result(counts: list[list[int]], names: list[str]) -> Result:
    metrics = VideoMetrics(names)
    pairs = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) for _ in range(count)]
    metrics.update(torch.eye(len(names))[[j for _, j in pairs]], torch.tensor([i for i, _ in pairs]))
    return metrics.compute()


THREE = result([[5, 3, 0], [4, 16, 0], [0, 0, 0]], ["run", "$walk$", "never"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Draws, and returns the axes."""
    kept: list[Any] = []
    drawing = result_pictures.drawing

    @contextmanager
    def keep(*arguments: Any) -> Any:
        with drawing(*arguments) as axes:
            kept[:] = axes
            yield axes

    monkeypatch.setattr(result_pictures, "drawing", keep)

    def draw(function: Callable[[Result, Path], Path], found: Result, path: Path) -> list[Any]:
        assert function(found, path) == path
        assert path.read_bytes()[:4] == b"\x89PNG"
        return kept

    return draw


def test_confusions_are_sorted_by_videos() -> None:
    assert list_confusions(THREE) == [("$walk$", "run", 4, 20.0), ("run", "$walk$", 3, 37.5)]


def test_the_confusion_matrix(drawn: Callable[..., list[Any]], tmp_path: Path) -> None:
    matrix, bars = drawn(draw_confusion, THREE, tmp_path / "a.png")
    shown = matrix.images[0].get_array()
    assert shown.tolist() == [[62.5, 37.5, 0], [20, 80, 0], [0, 0, 0]]  # percent of a row; a class without a video
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["run", "$walk$", "never"]
    assert not any(label.get_parse_math() for label in matrix.get_yticklabels())
    assert [bar.get_width() for bar in bars.patches] == [4, 3]
    assert [text.get_text() for text in bars.texts] == ["4 (20 %)", "3 (38 %)"]
    many = result(torch.eye(61, dtype=torch.long).tolist(), [f"class {i}" for i in range(61)])
    matrix, bars = drawn(draw_confusion, many, tmp_path / "b.png")
    assert "class 0" not in [label.get_text() for label in matrix.get_yticklabels()]
    assert bars.get_title(loc="left") == "no confusion"


def test_accuracy_per_class(drawn: Callable[..., list[Any]], tmp_path: Path) -> None:
    curve, bars = drawn(draw_per_class, THREE, tmp_path / "a.png")
    assert [bar.get_width() for bar in bars.patches] == [62.5, 80]  # the lowest first, and none without a video
    assert curve.texts[0].get_text() == "mean 71.2 %"
    scores, targets = torch.tensor([[3.0, 1, 2], [1, 2, 3]]), torch.tensor([[1, 0, 1], [1, 0, 0]])
    several = multi_label_result(scores, targets, ["x", "y", "z"])
    curve, bars = drawn(draw_per_class, several, tmp_path / "b.png")
    assert bars.get_xlabel() == "average precision, percent"
    assert len(bars.patches) == 2
    with pytest.raises(ValueError, match="expected one label per video for a confusion matrix, got several"):
        draw_confusion(several, tmp_path / "c.png")
