"""Orderings, tables, files, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alt.cli import build_app
from alt.entityworld.comparison_report import markdown, records, update_document, write
from alt.entityworld.comparison_tables import TABLES
from alt.entityworld.gpu_comparison import GpuPlan, run_gpu
from alt.entityworld.methods import METHODS
from alt.entityworld.orderings import Ordering, orderings
from alt.evaluate.spread import spread
from alt.tables import to_csv

STEPS = 1500


def run(**changes: float) -> dict[str, float]:
    """What a method finds if all is well."""
    found = {
        **{"seen": 70.0, "reversed": 40.0, "changed by reversal": 50.0, "seen motion": 60.0, "gmacs": 0.03},
        **{"2-shot": 50.0, "16-shot": 60.0, "planted": 90.0, "wrong": 10.0},
        **{"zero-shot transfer-a": 40.0, "zero-shot transfer-b": 42.0},
    }
    return found | {name.replace("_", " "): value for name, value in changes.items()}


def world(**methods: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    blind = run(seen=50, reversed=50, changed_by_reversal=0, seen_motion=20)
    results = {
        **{"CLIP-Mean": [blind] * 2, "MLP": [blind] * 2, "ALT no conv": [blind] * 2, "MIT": [run()] * 2},
        **{f"ALT r={r}": [run(seen=70 - r, gmacs=0.04 - 0.005 * r)] * 2 for r in (0, 2, 4, 6)},
        **{"ALT literal init": [run(**{"2-shot": 45.0})] * 2},
    }
    return results | methods


def verdicts(results: dict[str, list[dict[str, float]]]) -> dict[str, list[bool | None]]:
    found: dict[str, list[bool | None]] = {}
    for ordering in orderings(results, classes=60, steps=STEPS):
        if ordering.gated:
            found.setdefault(ordering.key, []).append(ordering.holds)
    return found


def test_all_hold_where_all_is_well() -> None:
    found = {key: holds for key, holds in verdicts(world()).items() if key not in ("h", "i", "j")}  # whole models
    assert found == {key: [True] * (1 + (key == "a")) for key in ("a", "b", "c", "d", "e", "f", "chance")}


@pytest.mark.parametrize(
    ("key", "method", "changes"),
    [
        ("a", "ALT no conv", {"changed by reversal": 0.2}),
        ("a", "MIT", {"reversed": 51.0}),
        ("b", "MLP", {"seen motion": 61.0}),
        ("b", "ALT r=2", {"seen motion": 54.0}),
        ("c", "ALT r=6", {"seen": 68.5}),
        ("c", "ALT r=4", {"gmacs": 0.05}),
        ("d", "ALT r=2", {"wrong": 18.5}),
        ("e", "ALT r=2", {"16-shot": 49.0}),
        ("f", "ALT literal init", {"2-shot": 50.5}),
        ("chance", "ALT r=2", {"seen": 8.0}),
    ],
)
def test_each_bites(key: str, method: str, changes: dict[str, float]) -> None:
    results = world()
    results[method] = [{**found, **changes} for found in results[method]]
    assert False in verdicts(results)[key]


def test_a_mean_decides_not_one_seed() -> None:
    results = world()
    results["MIT"] = [run(reversed=60.0), run(reversed=30.0)]
    assert verdicts(results)["a"] == [True, True]
    row = orderings(results, classes=60, steps=STEPS)[1]
    assert "25.0 ± 21.2" in row.found
    assert row.seeds == 2


def test_what_was_not_run_is_told() -> None:
    results = world()
    del results["ALT literal init"]
    assert verdicts(results)["f"] == [None]


def test_one_seed_has_no_spread() -> None:
    results = {name: runs[:1] for name, runs in world().items()}
    rows = orderings(results, classes=60, steps=STEPS)
    assert all("±" not in row.found for row in rows)
    assert "+" in next(row for row in rows if row.statement == "ALT is ahead of MIT").found


def test_differences_are_taken_seed_by_seed() -> None:
    """Two seeds far apart, the same gain in both: the spread of the gain is 0."""
    results = world()
    results["ALT r=2"] = [run(**{"2-shot": 30.0}), run(**{"2-shot": 60.0})]
    results["ALT literal init"] = [run(**{"2-shot": 28.0}), run(**{"2-shot": 58.0})]
    row = next(o for o in orderings(results, classes=60, steps=STEPS) if o.key == "f")
    assert "gain 2.0 ± 0.0" in row.found


def test_tables_mark_the_papers_numbers(tmp_path: Path) -> None:
    results = world()
    found = orderings(results, classes=60, steps=STEPS)
    files = write(tmp_path, results, found, {"what": "A world"})
    assert [path.name for path in files] == ["results.json", "results.csv", "results.md"]
    text = files[2].read_text(encoding="utf-8")
    assert text == markdown(results, found, {"what": "A world"})
    row = next(line for line in text.splitlines() if line.startswith("| and alignment of regions"))
    assert row == "| and alignment of regions | ALT r=2 | 68.0 ± 0.0 | 50.0 ± 0.0 | 41.0 ± 0.0 | 82.4 | 64.0 | 76.7 |"
    head = next(line for line in text.splitlines() if "full, the paper's" in line)
    assert head.index("seen, here") < head.index("full, the paper's")
    record = json.loads(files[0].read_text(encoding="utf-8"))
    assert record["results"]["MIT"] == results["MIT"]
    assert record["machine"].keys() >= {"cpu", "threads", "commit", "torch"}
    assert [Ordering(**row) for row in record["orderings"]] == found


def test_long_table_keeps_seeds() -> None:
    head, rows = records({"ALT": {"2-shot": spread([10.0, 12.0], (3, 4))}})
    assert to_csv(head, rows).splitlines()[1] == "ALT,2-shot,11.0,1.4142135623730951,2,10.0000 12.0000,3 4"


def test_every_row_of_the_tables_is_a_method() -> None:
    named = {method for _, rows in TABLES.values() for _, method, _ in rows}
    assert named <= METHODS.keys()


def test_no_name_of_a_method_holds_a_comma() -> None:
    """``--methods`` takes names between commas."""
    assert [name for name in METHODS if "," in name] == []


def test_the_gpu_run_in_three_steps(tmp_path: Path) -> None:
    """The same code as on a GPU: pre-training, then whole models trained, every strategy once."""
    plan = GpuPlan.preset("smoke")
    names = ["CLIP-Mean", "ALT r=4", "ALT r=4 frozen", "ALT r=4 adapters S"]
    kept: list[int] = []
    results, setting = run_gpu(
        plan, device="cpu", seeds=(0,), methods=names, done=lambda found: kept.append(len(found))
    )
    assert list(results) == names
    assert kept == [1, 2, 3, 4]
    assert setting["left_out"] == []
    assert results["ALT r=4"][0]["gmacs"] < results["CLIP-Mean"][0]["gmacs"]
    assert results["CLIP-Mean"][0]["seen"] == results["CLIP-Mean"][0]["reversed"]


def test_the_gpu_run_says_what_it_had_no_time_for() -> None:
    import dataclasses

    plan = dataclasses.replace(GpuPlan.preset("smoke"), seconds=0.0)
    results, setting = run_gpu(plan, device="cpu", seeds=(0,), methods=["CLIP-Mean"])
    assert results == {}
    assert setting["left_out"] == ["CLIP-Mean, seed 0: no time left"]


def test_a_gpu_run_takes_its_limits_from_outside() -> None:
    """Seconds and steps were constants, so that a shorter run was stopped in the middle."""
    plan = GpuPlan.preset("gpu")
    assert plan.with_limits() == plan
    limited = plan.with_limits(steps=7, pretraining_steps=1000, seconds=130.0)
    assert (limited.fine_tuning.steps, limited.pretraining.steps, limited.seconds) == (7, 1000, 130.0)
    assert limited.pretraining.warmup == round(plan.pretraining.warmup / 3)


def test_command(tmp_path: Path) -> None:
    arguments = [
        "compare",
        "--preset",
        "tiny",
        "--seeds",
        "1",
        "--steps",
        "2",
        "--methods",
        "CLIP-Mean, ALT no conv",
    ]
    done = CliRunner().invoke(build_app(), [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "CLIP-Mean" in done.output
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(record["results"]) == ["CLIP-Mean", "ALT no conv"]
    assert record["setting"]["plan"]["tokens"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--methods", "ALT, MIT"], 2, "--methods knows systems"),
        (["--preset", "gpu", "--device", "cpu"], 2, "needs a CUDA device"),
        (["--pretrained", "nowhere.safetensors"], 1, "found no nowhere.safetensors"),
        (["--preset", "tiny", "--seconds", "9"], 2, "--seconds belong to --preset gpu or smoke"),
    ],
)
def test_command_tells_what_is_wrong(arguments: list[str], status: int, words: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(build_app(), ["compare", "--out", str(tmp_path), *arguments])
    assert done.exit_code == status
    assert words in done.output
    assert "Traceback" not in done.output


def test_results_go_between_the_marks(tmp_path: Path) -> None:
    results = world()
    write(tmp_path, results, orderings(results, classes=60, steps=STEPS), {"what": "A world"})
    document = tmp_path / "page.md"
    marked = "before\n<!-- results: begin -->\nformer tables\n<!-- results: end -->\nafter\n"
    document.write_text(marked, encoding="utf-8")
    for _ in range(2):  # a second time it is replaced, not added to
        update_document(document, tmp_path / "results.json")
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "former tables" not in text
    assert text.count("### Orderings") == 1
    document.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the lines"):
        update_document(document, tmp_path / "results.json")


def test_the_page_shows_the_kept_runs(tmp_path: Path) -> None:
    """docs/embedded_benchmark.md is generated from benchmarks/results/entityworld.json, and what has to hold holds."""
    root = Path(__file__).resolve().parents[2]
    kept, page = root / "benchmarks" / "results" / "entityworld.json", root / "docs" / "embedded_benchmark.md"
    if not kept.is_file():
        pytest.skip("an sdist has no kept results")
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    update_document(copy, kept)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    record = json.loads(kept.read_text(encoding="utf-8"))
    found = orderings(record["results"], classes=record["setting"]["classes"], steps=STEPS)
    assert [json.loads(json.dumps(row._asdict())) for row in found] == record["orderings"]
    assert [row.statement for row in found if row.gated and row.holds is False] == []
    assert {len(runs) for runs in record["results"].values()} == {5}
