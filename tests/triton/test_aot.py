"""Compilation ahead of time: a few cases in the fast suite, all of them, with the check, in the slow one.

Every compilation runs in a process of its own, since the interpreter that this one uses excludes the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools import aot
from tools.aot_case import AotCase

ROOT = Path(__file__).resolve().parents[2]
CASE = AotCase("case C=8", None, {"x": "*bf16"}, {"C": 8, "R": 2, "FLAG": True}, 4, 2, dots=True)


def run(*arguments: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.aot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def resources(target: int = 90, case: AotCase = CASE, **values: object) -> aot.Resources:
    fine = {
        "registers": 64,
        "stack": 0,
        "spills": 0,
        "shared": 2048,
        "accesses": 4,
        "wide": 3,
        "instructions": 200,
        "stores": 2,
    }
    matrix = Counter({80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[target] for _ in range(8))
    return aot.Resources("module", case, target, **{**fine, "matrix": matrix, **values})  # type: ignore[arg-type]


def test_a_kernel_compiles_for_every_target_without_a_gpu(tmp_path: Path) -> None:
    """The copy of ViT-B rows: no spill, every access to tokens of 16 bytes."""
    table = tmp_path / "table.md"
    done = run("--only", "weighted_merge: unmerge C=768 bf16", "--out", str(table), "--check", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "3 compilations, 0 complaints" in done.stderr
    row = next(line for line in table.read_text().splitlines() if line.startswith("| unmerge C=768 bf16"))
    columns = [column.strip() for column in row.strip("|").split("|")]
    assert columns[4] == "0", "stack"
    assert columns[6] == "none", "matrix instructions"
    # Each thread copies R rows of 8 channels, in as many loads and stores; the others read the plan.
    assert columns[7].startswith("8 of"), "16-byte accesses"


def test_a_matrix_instruction_is_counted() -> None:
    """Attention's first half-precision case, on the target whose check is the strictest: a warp group's own dot."""
    cases = [case for case in aot.cases("proportional_attention") if case.dots and "bf16" in case.name]
    done = run("--only", cases[0].name, "--target", "90", "--jobs", "1")
    assert "HGMMA" in done.stdout, done.stdout + done.stderr


def test_the_interpreter_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", True)
    assert aot.main(["--only", "weighted_merge"]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_no_such_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    assert aot.main(["--only", "no such kernel", "--jobs", "1"]) == 2
    assert "no case has 'no such kernel' in its name" in capsys.readouterr().err


def test_the_names_of_the_cases(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No two alike but for their configuration: a complaint names its case."""
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    assert aot.main(["--list"]) == 0
    assert "weighted_merge: merge C=768 bf16" in capsys.readouterr().out.splitlines()
    for stem in aot.modules():
        named = [(c.name, c.num_warps, c.num_stages, str(c.constants)) for c in aot.cases(stem)]
        assert len(set(named)) == len(named)


def test_what_the_check_complains_of() -> None:
    assert resources().complaints() == []
    assert resources(stack=8).complaints() == ["spills (8 bytes of stack, 0 local accesses)"]
    assert resources(spills=2).complaints() == ["spills (0 bytes of stack, 2 local accesses)"]
    for target, instruction in ((80, "HMMA"), (90, "HGMMA"), (100, "UTC*MMA")):
        assert resources(target).complaints() == []
        sentence = [f"a half-precision dot without {instruction}"]
        assert resources(target, matrix=Counter()).complaints() == sentence
        assert resources(target, matrix=Counter(), case=CASE._replace(dots=False)).complaints() == []
    # Hopper runs a warp's own instruction as well, at a fraction of the speed: it does not count.
    assert resources(90, matrix=Counter(HMMA=64)).complaints() != []


def test_defects_that_no_reason_excuses() -> None:
    """A compiler once made an empty kernel of a case for sm_100: no spill, and no dot was expected of it."""
    assert resources(instructions=9).complaints() == ["an empty kernel (9 instructions, 2 stores)"]
    assert resources(stores=0).defects() == ["an empty kernel (200 instructions, 0 stores)"]
    assert resources(80, shared=170_000).defects() == ["170000 bytes of shared memory, of which there are 166912"]
    assert resources(90, shared=170_000).defects() == []


def test_samples_hold_every_kernel_and_together_everything() -> None:
    work = [(stem, i, target) for stem, i, _ in aot.select_cases() for target in aot.TARGETS]
    kernels = {(aot.cases(stem)[i].kernel.__name__, target) for stem, i, target in work}
    everything = set()
    for turn in range(4):
        sample = aot.sample_cases(work, 4, turn)
        assert {(aot.cases(stem)[i].kernel.__name__, target) for stem, i, target in sample} == kernels
        assert len(sample) < 0.4 * len(work)
        everything |= set(sample)
    assert everything == set(work)
    assert aot.sample_cases(work, 1, 5) == work


def test_the_exit_status_is_that_of_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A complaint fails, one with a written reason does not."""
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    excused = CASE._replace(reason="the tile is smaller than a warp group's")
    for results, status in (
        ([resources()], 0),
        ([resources(), resources(stack=16)], 1),
        ([resources(stack=16, case=excused)], 0),
        ([resources(matrix=Counter())], 1),
        ([resources(stores=0, case=excused)], 1),
    ):
        monkeypatch.setattr(aot, "compile_all", lambda *_, results=results: results)
        assert aot.main(["--only", "x", "--check"]) == status
    assert "module: case C=8 on sm_90: a half-precision dot without HGMMA" in capsys.readouterr().err


def test_the_table() -> None:
    """One value where the targets agree, all of them where they do not; complaints and reasons are printed."""
    group = [resources(t, CASE._replace(reason="why")) for t in aot.TARGETS]
    group[1] = group[1]._replace(registers=70, stack=8)
    row = next(line for line in aot.table(group).splitlines() if line.startswith("| case C=8"))
    assert row == (
        "| case C=8 | R=2 | 4 × 2 | 64 / 70 / 64 | 0 / 8 / 0 | 2,048 | HMMA 8 / HGMMA 8 / UTCHMMA 8 | 3 of 4 |"
        " spills (8 bytes of stack, 0 local accesses) on sm_90; reason: why |"
    )


@pytest.mark.slow
def test_every_kernel_and_configuration() -> None:
    """No spill and no missing matrix instruction without a reason, no kernel that is launched and not compiled."""
    done = run("--check", timeout=3000)
    assert done.returncode == 0, done.stderr
