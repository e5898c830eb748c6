"""``alt.benchmark``: speed and cost of a tower unpatched, at r = 0 and at each r."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt
from alt.evaluate import tower_speed
from alt.measure import Sample
from alt.patch.apply import is_patched
from tests.hosts.families import FAMILIES, build, timm_tower


def test_it_measures_each_state_and_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that shows 1 second per GMAC, exactly the saving in operations is realised."""
    model = build(FAMILIES["CLIPModel"], torch.float32).train()
    calls: list[tuple[bool, bool, tuple[int, ...]]] = []
    costs: dict[Any, int] = {}

    def count(run: Any, device: torch.device) -> Sample:
        tower, images = run.func, run.args[0]
        run()
        assert torch.is_inference_mode_enabled()
        calls.append((is_patched(tower), tower.training, tuple(images.shape)))
        key = alt.get_handle(tower).r if is_patched(tower) else None
        if key not in costs:
            costs[key] = alt.count_macs(tower, 1).native
        return Sample(costs[key] * 1e-9, 0.0, 0)

    monkeypatch.setattr(tower_speed, "time_call", count)
    report = alt.benchmark(model, batch_size=3, r=[4, (3, 2)], seconds=0)
    assert not is_patched(model.vision_model)
    assert model.training
    assert len(calls) == 4 * (6 + 1)
    assert {training for _, training, _ in calls} == {False}
    assert {shape for *_, shape in calls} == {(3, 3, 32, 32)}
    assert [row.r for row in report.rows] == [None, 0, 4, (3, 2)]
    assert [row.tokens for row in report.rows] == [17, 17, 9, 12]
    for row in report.rows:
        assert row.gmacs == costs[row.r] / 1e9
        assert row.images_per_second == pytest.approx(3 / row.gmacs)
        assert row.speed_up.median == pytest.approx(report.rows[0].gmacs / row.gmacs)
    assert [row.saving_realised is None for row in report.rows] == [True, True, False, False]
    assert report.rows[2].saving_realised is not None
    assert report.rows[2].saving_realised.median == pytest.approx(1)
    assert report.machine["device"] == "cpu"
    lines = str(report).splitlines()
    assert lines[2].startswith("| unpatched | 17 |")
    assert lines[4].endswith("| 100 % |")


def test_a_patched_model_is_measured_with_its_options_at_another_size() -> None:
    """The real clock: positive speeds, costs of the size, and the handle's own r as before."""
    model = timm_tower(dynamic_img_size=True).eval()
    with alt.patch_model(model, 2, metric="projection") as handle:
        report = alt.benchmark(model, (3, 24, 48), 1, r=(3,), seconds=0)
        assert (handle.r, handle.metric) == (2, "projection")
    assert report.image_size == (24, 48)
    assert [row.tokens for row in report.rows] == [19, 19, 13]
    assert report.rows[0].gmacs == alt.count_macs(model, 1, image_size=(24, 48)).native / 1e9
    assert report.rows[0].gmacs > alt.count_macs(model, 1).native / 1e9
    assert all(row.images_per_second > 0 and row.speed_up.rounds == 6 for row in report.rows)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an int, got float"),
        ({"input_size": 224}, TypeError, r"input_size must be \(H, W\) or \(3, H, W\) in pixels, got int"),
        ({"input_size": (1, 32, 32)}, ValueError, r"input_size must be .* got \(1, 32, 32\)"),
        ({"r": 8}, TypeError, r"r must be a list of the numbers to measure, such as \(4, 8\), got int"),
        ({"r": (-1,)}, ValueError, "r must be at least 0, got -1"),
    ],
)
def test_bad_input_is_one_sentence(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        alt.benchmark(timm_tower(), **arguments)


def test_another_model_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        alt.benchmark(torch.nn.Linear(2, 2))
