"""The benchmarks' own parts: rivals are right, gates turn away what is wrong, statistics and report are true."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import bench_train
import gates
import pytest
import report
import rival_systems
import rival_tower
import rivals
import shapes
import torch

from alt_kernels import (
    bipartite_soft_matching,
    cosine_gumbel_assign,
    proportional_attention,
    weighted_merge,
)


def tokens(channels: int = 16, count: int = 23) -> torch.Tensor:
    return torch.randn(3, count, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- rivals


def test_rival_merging_is_ours() -> None:
    x, r = tokens(), 5
    size = torch.randint(1, 6, x.shape[:2], generator=torch.Generator().manual_seed(1)).float()
    matching = bipartite_soft_matching(x, r, impl="reference")
    pairs = rivals.match(x, r)
    assert torch.equal(gates.rows_of_pairs(pairs, x.shape[1]), matching.output_row.long())
    want = weighted_merge(x, matching, size, impl="reference")
    for merge in (rivals.merge, rivals.merge_index_add):
        got, total = merge(x, size[..., None].double(), pairs)
        torch.testing.assert_close(got, want.x)
        torch.testing.assert_close(total[..., 0].float(), want.size, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "protected"), [(197, 1), (576, 0)])
def test_compiled_matching_names_the_pairs_of_the_eager_one(count: int, protected: int) -> None:
    """inductor's argmax of a sum names wrong columns on a CPU (pytorch issue 178964); here it follows a product."""
    reason = rivals.why_no_compile(torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    metric = torch.randn(4, count, 64, generator=torch.Generator().manual_seed(2))
    want = rivals.match(metric, 8, protected)
    got = rivals.compiled(rivals.match)(metric, 8, protected)
    for name, left, right in zip(want._fields, got, want, strict=True):
        assert torch.equal(left, right), name


def test_rival_attention_is_ours() -> None:
    q, k, v = (tokens(8).unflatten(-1, (2, 4)).transpose(1, 2) + i for i in range(3))
    size = torch.arange(1, 24).expand(3, -1).float()
    want = proportional_attention(q, k, v, size, impl="reference")
    for attention in (rivals.attention, rivals.attention_dense_mask, rivals.attention_broadcast_mask):
        torch.testing.assert_close(attention(q, k, v, size[..., None].double()), want)


def test_rival_assignment_is_ours_for_its_noise() -> None:
    x, entities = tokens()[0].requires_grad_(), tokens(count=31)[1]
    noise = rivals.noise_of_gumbel_softmax(7, 23, 31, x)
    ours = cosine_gumbel_assign(x, entities, tau=0.3, noise=noise, impl="reference").output
    grad = torch.randn_like(ours)
    torch.manual_seed(7)
    rival = rivals.assign(x, entities, 0.3)
    torch.testing.assert_close(rival, ours)
    torch.manual_seed(7)
    gradient = rivals.assign_gradient(x, entities, 0.3, grad)
    torch.testing.assert_close(gradient, torch.autograd.grad(ours, x, grad)[0])


@pytest.mark.parametrize("system", list(rival_systems.SYSTEMS))
def test_a_plain_training_step_is_ours(system: str) -> None:
    """Loss and gradients in float64, with merging: of the tower, of messages, prompts and places, of the adapter."""
    model = rival_systems.build(system, "mini", blocks=3, frames=3).double()
    x, labels = rival_systems.batch(model, 2)
    plain, ours = (bench_train.gradients(system, model, x.double(), labels, dense=dense) for dense in (True, False))
    assert len(ours) == 2 + len(rival_systems.SYSTEMS[system][2])
    for got, want in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_rival_tower_is_open_clip_unmerged_and_the_patched_tower_merged() -> None:
    transformer = pytest.importorskip("open_clip.transformer")
    alt = pytest.importorskip("alt")
    torch.manual_seed(0)
    tower = transformer.VisionTransformer(32, 8, 32, 3, 2, 4.0, output_dim=12).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(rival_tower.forward(tower, images, 0), tower(images))
        patched = copy.deepcopy(tower)
        alt.patch_clip(patched, r=3)
        merged = rival_tower.forward(tower, images, 3)
        torch.testing.assert_close(merged, patched(images))
        assert not torch.allclose(merged, tower(images), atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- gates


def test_matching_gate_knows_the_best_set_and_what_is_no_plan() -> None:
    metric = tokens().float()
    gate = gates.matching_gate(metric, 4)
    plan = bipartite_soft_matching(metric, 4, impl="reference")
    assert gate(plan) < 1e-6
    assert gate(bipartite_soft_matching(metric.roll(2, dims=0), 4, impl="reference")) > 1e-2  # another image's pairs
    assert gate(bipartite_soft_matching(metric, 3, impl="reference")) == float("inf")
    assert gate(bipartite_soft_matching(metric, 4, num_protected=0, impl="reference")) > 1e-2
    pairs = rivals.match(metric, 4)
    stolen = pairs._replace(source=torch.cat([torch.zeros_like(pairs.source[:, :1]), pairs.source[:, 1:]], 1))
    assert gate(stolen) == float("inf")  # the class token may not merge


def test_law_gate_turns_away_wrong_noise_temperature_and_values() -> None:
    x, entities = tokens(count=400)[0].float(), tokens(count=31)[1].float()
    gate = gates.law_gate(x, entities, 0.2)
    seed = torch.tensor(3)
    drawn = cosine_gumbel_assign(x, entities, tau=0.2, seed=seed).output
    assert gate(drawn) < 1e-6
    assert gate(cosine_gumbel_assign(x, entities, tau=0.2, noise=None).output) == float("inf")
    assert gate(cosine_gumbel_assign(x, entities, tau=0.1, seed=seed).output) == float("inf")
    assert gate(drawn + 0.1) > 1e-3


def test_error_is_relative_and_infinite_for_nan_and_shape() -> None:
    want = torch.tensor([1.0, -4.0])
    assert gates.error(torch.tensor([1.4, -4.0]), want) == pytest.approx(0.1)
    assert gates.error(torch.tensor([float("nan"), -4.0]), want) == float("inf")
    assert gates.error(torch.zeros(3), want) == float("inf")


# --------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(("r", "gmacs"), [(0, 140.5), (4, 122.6), (8, 104.9), (13, 83.0)])
def test_closed_formula_of_vit_b_16(r: int, gmacs: float) -> None:
    macs = shapes.vit_macs(8, tokens=197, width=768, depth=12, patch=16, r=r)
    assert macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- report


def raw_run() -> dict:
    ratio = {"median": 2.345, "low": 2.25, "high": 2.5, "rounds": 40}
    operation = {
        "title": "weighted_merge",
        "shape": "B=8",
        "ratio": {"plain torch": ratio},
        "over_floor": {"copy of x": ratio},
        "targets": {"plain torch": 20.0},
        "absent": {"plain torch, compiled": "torch.compile needs a C++ compiler"},
    }
    share = {"median": 0.981, "low": 0.95, "high": 1.012, "rounds": 15}
    tower = {
        "title": "ViT-B/16, float32",
        "shape": "batch 8, r = 8",
        "ratio": {"unpatched": ratio},
        "targets": {},
        "over_floor": {},
        "macs": {"0": 140e9, "8": 105e9},
        "tokens_left": {"0": 197, "8": 101},
        "speedup": {"0": ratio, "8": ratio, "8, plain torch": ratio},
        "saving_realised": {"8": share, "8, plain torch": share},
        "saving_target": 0.98,
    }
    memory = {
        "title": "cosine_gumbel_assign, peak memory",
        "shape": "M=808",
        "extra_bytes": {"ours": 2**20, "F.gumbel_softmax": 2**31},
        "over_inputs_and_outputs": {"ours": 0.25, "F.gumbel_softmax": 10.0},
        "target": 1.5,
    }
    facts = {"device": "cpu", "cpu": "Some CPU 9", "isa": "AVX2", "threads": 1, "torch": "2.11", "commit": "abc"}
    return {
        "machine_info": {"node": "a-host-name", "cpu": {"flags": ["fpu"]}, "alt": facts | {"full": True}},
        "commit_info": {"id": "abcdef", "branch": "main", "dirty": False},
        "benchmarks": [
            {
                "name": "test",
                "fullname": f"benchmarks/bench_{number}.py::test",
                "extra_info": info,
                "stats": {"median": 1.0, "data": [1.0] * 1000},
            }
            for number, info in enumerate((operation, tower, memory))
        ],
        "datetime": "2026-11-20T10:00:00",
        "version": "5.3.1",
    }


def test_kept_result_is_trimmed_and_shown(tmp_path: Path) -> None:
    source = tmp_path / "raw.json"
    source.write_text(json.dumps(raw_run()))
    kept = report.keep(source, tmp_path / "results")
    assert kept.relative_to(tmp_path / "results").as_posix() == "cpu-some-cpu-9-avx2/2026-11-20-abc.json"
    assert "a-host-name" not in kept.read_text()
    assert '"data"' not in kept.read_text()
    older = raw_run() | {"datetime": "2026-11-19T10:00:00"}
    older["machine_info"]["alt"]["cpu"] = "Older"
    kept.with_name("2026-11-19-abd.json").write_text(json.dumps(older))
    text = report.page(report.newest(tmp_path / "results"))
    assert "Some CPU 9, AVX2, 1 thread" in text
    assert "| plain torch | 2.35 [2.25, 2.50] | 20 | 2.35 x copy of x |" in text
    assert "not run: torch.compile needs a C++ compiler" in text
    assert "| 0 (our attention, nothing merged) | 197 | 140.0 | 1.000 | 2.345 [2.250, 2.500] |  |" in text
    assert "| 8 | 101 | 105.0 | 1.333 | 2.345 [2.250, 2.500] | 98 [95, 101] % (target 98 %) |" in text
    assert "| 0.25 (1 MiB) | 10.00 (2048 MiB) | 1.5 |" in text


def test_a_run_of_a_part_leaves_the_rest_as_it_was_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "1.json").write_text(json.dumps(raw_run()))
    later = raw_run() | {"datetime": "2026-11-21T10:00:00"}
    later["machine_info"]["alt"]["commit"] = "def"
    del later["benchmarks"][1:]
    later["benchmarks"][0]["extra_info"]["ratio"]["plain torch"] |= {"median": 3.0}
    (tmp_path / "cpu" / "2.json").write_text(json.dumps(later))
    text = report.page(report.newest(tmp_path))
    assert "commit def, 2026-11-21 for bench_0; commit abc, 2026-11-20 for bench_1, bench_2" in text
    assert text.count("| `weighted_merge`") == 1
    assert "3.00 [2.25, 2.50]" in text
    assert "ViT-B/16, float32" in text


def test_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import plots  # matplotlib

    plots.draw(raw_run(), tmp_path / "speedup.svg")
    assert (tmp_path / "speedup.svg").read_text().rstrip().endswith("</svg>")


def test_readme_has_the_towers_and_the_assignment_of_the_newest_device(tmp_path: Path) -> None:
    for device, day, name in (("old", "2026-11-19", "Older"), ("new", "2026-11-20", "Some CPU 9")):
        run = raw_run() | {"datetime": f"{day}T10:00:00"}
        run["machine_info"]["alt"]["cpu"] = name
        (tmp_path / device).mkdir()
        (tmp_path / device / "1.json").write_text(json.dumps(run))
    others = json.loads((tmp_path / "old" / "1.json").read_text()) | {"datetime": "2026-11-21T10:00:00"}
    others["benchmarks"] = [b for b in others["benchmarks"] if "saving_realised" not in b["extra_info"]]
    (tmp_path / "old" / "2.json").write_text(json.dumps(others))
    rows = report.readme_rows(report.newest(tmp_path)).splitlines()
    assert rows == [
        "| measured on Some CPU 9, AVX2, 1 thread | against | speed-up |",
        "| --- | --- | --: |",
        "| ViT-B/16, float32, r = 8, 1.33 x fewer operations | open_clip's unpatched tower | 2.35 [2.25, 2.50] |",
        "| ViT-B/16, float32, r = 8, merging in plain PyTorch | open_clip's unpatched tower | 2.35 [2.25, 2.50] |",
    ]
    assert report.readme_rows(report.newest(report.RESULTS)).count("\n") == 2 + 5


def test_check_finds_a_stale_readme_or_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    readme.write_text(f"before\n{report.BEGIN}\nold numbers\n{report.END}\nafter\n")
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("\nafter\n")
    page.write_text(page.read_text() + "a number of my own\n")
    assert report.main(["--check"]) == 1
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="expected one line"):
        report.main(["--check"])


def test_readme_and_docs_show_the_kept_results() -> None:
    assert report.main(["--check"]) == 0, "run `python benchmarks/report.py`"
