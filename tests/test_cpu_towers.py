"""The table of every form of a tower: its entrants compute the same, its cells and the kept file are true."""

from __future__ import annotations

import json
from pathlib import Path

import measure_tower_parts
import pytest
import report
import report_forms
import rival_tower
import runtimes
import torch
import tower_forms
from bench_cpu_towers import table
from tower_forms import COMPILED, EAGER, OURS, PLAIN, UNMERGED, Entrant, Subject

from tests.test_benchmarks import raw_run

REMOVED = (0, 3)


def tiny(name: str) -> Subject:
    """A subject of the table with two narrow blocks."""
    if name == "open_clip":
        transformer = pytest.importorskip("open_clip.transformer")
        return Subject("tiny", lambda: transformer.VisionTransformer(32, 8, 32, 2, 2, 4.0, output_dim=12), 32)
    if name == "transformers":
        transformers = pytest.importorskip("transformers")
        config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes = {"image_size": 32, "patch_size": 8}
        return Subject(
            "tiny", lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config, **sizes)), 32
        )
    timm = pytest.importorskip("timm")
    full = {"timm": "vit_base_patch16_clip_224", "siglip": "vit_base_patch16_siglip_384"}[name]
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return Subject("tiny", lambda: timm.create_model(full, **sizes), 32)


@pytest.mark.parametrize("name", list(tower_forms.SUBJECTS))
def test_plain_merging_and_ours_are_one_function_in_every_tower(name: str) -> None:
    subject = tiny(name)
    tower = tower_forms.build(subject).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = {
        (who, r): tower_forms.start(Entrant(who, r, EAGER), name, tower_forms.module_of(who, tower, r), images)()
        for who, r in ((UNMERGED, 0), (OURS, 0), (OURS, 3), (PLAIN, 0), (PLAIN, 3))
    }
    for who in (OURS, PLAIN):
        torch.testing.assert_close(found[who, 0], found[UNMERGED, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[OURS, 3], found[PLAIN, 3], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found[OURS, 3], found[OURS, 0], atol=1e-6)
    again = tower_forms.build(subject)  # the weights of an exported file are those of every later run
    assert all(torch.equal(a.double(), b) for a, b in zip(again.parameters(), tower.parameters(), strict=True))


@pytest.mark.slow
def test_exported_forms_compute_the_same_and_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    monkeypatch.setattr(runtimes.export_once, "__defaults__", (tmp_path,))
    tower = tower_forms.build(tiny("siglip"))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for who, r in ((UNMERGED, 0), (OURS, 3), (PLAIN, 3)):
        module = tower_forms.module_of(who, tower, r)
        with torch.no_grad():
            want = rival_tower.forward(tower, images, r)
        for form in runtimes.RUNTIMES:
            got = tower_forms.start(Entrant(who, r, form), "siglip", module, images)()
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    kept = sorted(tmp_path.iterdir())
    assert [file.name.rpartition("-")[0] for file in kept] == [
        "siglip-ours-r3",
        "siglip-plain-ToMe-r3",
        "siglip-unmerged",
    ]
    times = [file.stat().st_mtime_ns for file in kept]
    runtimes.export_once("siglip-unmerged", torch.nn.Identity(), images)
    monkeypatch.setattr(runtimes, "source_hash", lambda: "0" * 12)
    assert [file.stat().st_mtime_ns for file in kept] == times
    runtimes.export_once("siglip-unmerged", tower_forms.module_of(UNMERGED, tower, 0), images)
    assert not kept[2].exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_entrants_are_every_form_of_ours_and_plain_tome_in_the_runtimes() -> None:
    found = [str(e) for e in tower_forms.entrants((0, 8), (EAGER, COMPILED, "ONNX Runtime"))]
    assert found == [
        *("unmerged, eager", "unmerged, compiled", "unmerged, ONNX Runtime"),
        *("ours, r = 0, eager", "ours, r = 0, compiled", "ours, r = 0, ONNX Runtime"),
        *(
            "ours, r = 8, eager",
            "ours, r = 8, compiled",
            "ours, r = 8, ONNX Runtime",
            "plain ToMe, r = 8, ONNX Runtime",
        ),
    ]


def made_table() -> dict:
    times = {
        Entrant(UNMERGED, 0, EAGER): [0.4] * 7,
        Entrant(UNMERGED, 0, "ONNX Runtime"): [0.3] * 7,
        Entrant(OURS, 8, EAGER): [0.3] * 7,
        Entrant(OURS, 8, "ONNX Runtime"): [0.2] * 7,
        Entrant(PLAIN, 8, "ONNX Runtime"): [0.25] * 7,
    }
    return table(times, {0: 100.0, 8: 75.0})


def test_shares_are_of_the_same_form_and_the_best_of_ours_meets_the_best_of_the_others() -> None:
    found = made_table()
    shares = {(c["row"], c["form"]): c["saving_realised"] for c in found["cells"]}
    assert shares["unmerged", EAGER] is None
    assert shares["ours, r = 8", EAGER]["median"] == pytest.approx(1.0)
    assert shares["ours, r = 8", "ONNX Runtime"]["median"] == pytest.approx(4 / 3)
    assert shares["plain ToMe, r = 8", "ONNX Runtime"]["median"] == pytest.approx(2 / 3)
    best = found["best"]["8"]
    assert (best["ours"], best["other"]) == ("ONNX Runtime", "plain ToMe, r = 8, ONNX Runtime")
    assert best["ratio"]["median"] == pytest.approx(1.25)


def test_a_part_measured_later_joins_the_kept_file_of_the_same_commit(tmp_path: Path) -> None:
    def keep(name: str, **info: object) -> Path:
        run = raw_run()
        title = {"title": f"CLIP of {name}, every form", "shape": "batch 1", "forms": made_table(), "absent": {}}
        run["benchmarks"] = run["benchmarks"][:1]
        run["benchmarks"][0] |= {"fullname": f"benchmarks/bench_cpu_towers.py::test_forms[{name}]"}
        run["benchmarks"][0]["extra_info"] = title | info
        (tmp_path / "raw.json").write_text(json.dumps(run))
        return report.keep(tmp_path / "raw.json", tmp_path / "results")

    first = keep("timm")
    assert keep("open_clip", absent={"OpenVINO": "openvino is not installed"}) == first
    assert keep("open_clip") == first  # measured again: replaced
    record = report.newest(tmp_path / "results")["cpu-some-cpu-9-avx2"]
    lines = report_forms.sections(record)
    assert sum("CLIP of" in line for line in lines) == 2
    text = report.page({"cpu-some-cpu-9-avx2": record})
    assert "|  | FLOP ratio | eager | ONNX Runtime |" in text
    assert "| ours, r = 8 | 1.333 | 300 (100 %) | 200 (133 %) |" in text
    assert "| plain ToMe, r = 8 | 1.333 |  | 250 (67 %) |" in text
    assert "| 8 | ONNX Runtime | plain ToMe, r = 8, ONNX Runtime | 1.250 [1.250, 1.250] |" in text
    assert "not installed" not in text


def test_parts_are_the_shortest_time_of_every_operator() -> None:
    first = [("aten::addmm", 9000.0), ("aten::gelu", 500.0), ("aten::addmm", 1000.0)]
    second = [("aten::addmm", 2000.0), ("aten::gelu", 700.0), ("aten::addmm", 8000.0)]
    parts = measure_tower_parts.shortest([first, second])
    assert {part: time for part, time in parts.items() if time} == {"products": 3.0, "GELU": 0.5}
    with pytest.raises(ValueError, match="the same operators in every call"):
        measure_tower_parts.shortest([first, [*second[1:], second[0]]])


def test_every_operator_of_a_patched_tower_has_its_part() -> None:
    tower = tower_forms.build(tiny("timm"))
    module = tower_forms.module_of(OURS, tower, 3)
    call = tower_forms.start(Entrant(OURS, 3, EAGER), "timm", module, torch.zeros(1, 3, 32, 32))
    names = [name for name, _ in measure_tower_parts.profile_torch(call, 1)[0]]
    found = {name: measure_tower_parts.part_of(name) for name in names}
    assert found["alt_kernels::proportional_attention"] == "attention"
    assert found["alt_kernels::merge_layer_norm"] == "matching and merging"
    assert {"products", "GELU", "sums and LayerNorm"} <= set(found.values())
