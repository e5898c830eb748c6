"""count_macs on whole video models: the paper's nine rows, the parts, the views, and the baselines."""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("open_clip")

import alt
from alt.cost import count_macs
from alt.evaluate.paper_costs import meta_model, paper_costs
from alt.paper import COSTS

NATIVE_TOWER = {
    "alt-b16": {8: 104.86},  # tests/test_cost.py holds this tower to the closed formula, exactly, at every r
    "alt-l14": {0: 648.10, 13: 262.45},
}
#: What the reconstruction gives in the paper's convention (P6 + G3), in the order of the printed rows.
CONVENTION = (141.0, 129.1, 109.8, 86.3, 219.6, 439.3, 413.0, 826.1, 1652.2)


@pytest.mark.parametrize("name", list(NATIVE_TOWER))
def test_native_count_of_the_tower_to_a_hundredth(name: str) -> None:
    """Image tower alone, 8 frames, r along the columns of the published reconstruction."""
    tower = meta_model(name, r=0).backbone.visual
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # L/14 at r = 13 runs out of tokens
        for r, expected in NATIVE_TOWER[name].items():
            alt.get_handle(tower).r = r
            assert count_macs(tower, frames=8).native_g == pytest.approx(expected, abs=0.01)


def test_the_papers_nine_rows() -> None:
    found = paper_costs()
    assert len(found) == len(COSTS) == 9
    for cost, expected in zip(found, CONVENTION, strict=True):
        assert abs(cost.deviation) <= 0.75, cost.printed
        assert cost.report.paper_convention_g == pytest.approx(expected, abs=0.1)
        assert cost.report.native_g <= cost.report.paper_convention_g
        assert cost.parameters == {"alt-b16": 124_026_368, "alt-l14": 426_836_992}[cost.printed.model]
    assert max(abs(cost.deviation) for cost in found) > 0.1  # a reconstruction, not a fit


def mini(**options: object) -> torch.nn.Module:
    with torch.device("meta"):
        classes = ([str(i) for i in range(7)], torch.empty(7, 48))
        corpus = torch.empty(11, 48) if options.get("queries") != "random" else None
        return alt.create_model("alt-mini", corpus=corpus, classes=classes, **options)


def test_parts_of_a_small_model_by_hand() -> None:
    t, w, d, n, entities, blocks = 4, 64, 48, 37, 11, 2
    report = count_macs(mini(r=2, layers=blocks))
    left = n - 4 * 2
    assert report.by_component["patch_embedding"] == t * 36 * 3 * 16 * w
    assert report.by_component["pooling"] == t * left * w * d
    assert report.by_component["alignment"] == t * left * entities * d
    assert report.by_component["head"] == 7 * d
    mlp = 8 * d * d
    attention = 4 * t * d * d + 2 * t * t * d
    block = (3 * d * t + t * mlp) + (attention + t * mlp) + (attention + t * mlp)
    assert report.by_component["adapter"] == t * mlp + blocks * block + mlp
    assert report.by_component["other"] == 0
    assert sum(report.by_component.values()) == report.native
    counts = [37, 35, 33, 31]
    assert report.by_convention["dense_merging"] == t * sum((m * m + m * (m - 2)) * w for m in counts)
    assert report.by_convention["dense_assignment"] == t * left * entities * d
    assert report.paper_convention == report.native + sum(report.by_convention.values())


def test_views_multiply_everything() -> None:
    one, three = count_macs(mini()), count_macs(mini(), views=3)
    assert three.native == 3 * one.native
    assert three.paper_convention == 3 * one.paper_convention
    assert three.by_component == {name: 3 * value for name, value in one.by_component.items()}


def test_falls_with_r_and_follows_it() -> None:
    model = mini(r=0)
    costs = []
    for r in (0, 1, 2, 4, 6):
        model.r = r
        costs.append(count_macs(model).native)
    assert costs == sorted(set(costs), reverse=True)


def test_class_token_alone_projects_and_aligns_one_row() -> None:
    report = count_macs(mini(r=0, align_tokens="cls"))
    assert report.by_component["pooling"] == 4 * 64 * 48
    assert report.by_component["alignment"] == 4 * 11 * 48


def test_random_queries_align_nothing() -> None:
    report = count_macs(mini(queries="random"))
    assert report.by_component["alignment"] == report.by_convention["dense_assignment"] == 0


@pytest.mark.parametrize(("name", "expected"), [("clip-one", 17.56), ("clip-mean", 140.5), ("clip-joint", 179.6)])
def test_baselines_at_b16(name: str, expected: float) -> None:
    with torch.device("meta"):
        model = alt.create_model(f"{name}-b16", frames=8, r=0)
    assert count_macs(model).native_g == pytest.approx(expected, abs=0.06)


def test_frames_are_the_models_own() -> None:
    model = mini()
    assert count_macs(model, frames=4) == count_macs(model)
    with pytest.raises(ValueError, match="frames must be 4, what the video model was made for, got 8"):
        count_macs(model, frames=8)
    with pytest.raises(ValueError, match="views must be an int >= 1, got 0"):
        count_macs(model, views=0)


@pytest.mark.parametrize(
    ("name", "frames", "gflops", "parameters"),
    [
        # Counted with the authors' code by fvcore, LayerNorm included, 400 classes to prompt.
        ("xclip-b16", 8, 144.3, 131.50),
        pytest.param("xclip-b32", 8, 38.2, 133.16, marks=pytest.mark.slow),
        pytest.param("xclip-l14", 8, 657.9, 452.02, marks=pytest.mark.slow),
        pytest.param("xclip-b32", 16, 74.2, 133.16, marks=pytest.mark.slow),
        pytest.param("xclip-b16", 16, 286.2, 131.51, marks=pytest.mark.slow),
        pytest.param("xclip-b16", 32, 570.0, 131.51, marks=pytest.mark.slow),
        pytest.param("xclip-l14-336", 16, 3086, 452.36, marks=pytest.mark.slow),  # as printed
    ],
)
def test_cost_and_size_of_x_clip(name: str, frames: int, gflops: float, parameters: float) -> None:
    width = 768 if "l14" in name else 512
    with torch.device("meta"):
        model = alt.create_model(name, frames=frames, classes=([str(i) for i in range(400)], torch.empty(400, width)))
    report = count_macs(model)
    counted = report.native + report.by_convention["layer_norm"]
    assert counted == report.paper_convention
    assert counted / 1e9 == pytest.approx(gflops, rel=0.005 if "336" in name else 0.001)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)


def test_parts_of_x_clip_by_hand() -> None:
    """Messages, integration and prompts are the adapter; merging makes only the tower cheaper."""
    t, w, d, n, classes, layers = 4, 64, 48, 37, 7, 4
    with torch.device("meta"):
        model = alt.create_model("xclip-mini", classes=([str(i) for i in range(classes)], torch.empty(classes, d)))
    report = count_macs(model)
    messages = layers * (t * 5 * w * w + 2 * t * t * w)
    integration = t * 12 * d * d + 2 * t * t * d
    patches = t * n * w * d
    block = classes * 2 * d * d + 2 * (n - 1) * d * d + 2 * classes * (n - 1) * d + classes * 8 * d * d
    assert report.by_component["adapter"] == messages + integration + patches + 2 * block
    assert report.by_component["attention"] == layers * t * 2 * (n + 1) ** 2 * w
    model.r = 2
    assert count_macs(model).native < report.native
