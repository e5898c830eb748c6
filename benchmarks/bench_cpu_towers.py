"""Every form of a tower on one CPU thread: eager, compiled and exported, unmerged, patched, and with plain ToMe.

The question is what a user gets who chooses the fastest form of each: is the fastest of ours the fastest of the table?
The rival to beat is plain ToMe, written from its equations (`rival_tower`) and exported to a runtime. Every entrant
runs once in each round. The share of the saving is (1 - t_r/t_0) / (1 - F_r/F_0) with t_0 of the unmerged tower in the
same form.

A tower takes minutes to export and to compile. So none runs unless it is named:

    pytest benchmarks/bench_cpu_towers.py --alt-towers open_clip --benchmark-disable    export, compile, check
    pytest benchmarks/bench_cpu_towers.py --alt-towers open_clip --benchmark-only       measure, with what is there
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import rival_tower
import rivals
import torch
import tower_forms
from bench_patch_clip import angle
from runtimes import RUNTIMES, why_no_runtime
from tower_forms import COMPILED, FROZEN, OURS, PLAIN, UNMERGED, Entrant

import alt
from alt.measure import paired_ratio, saving_realised
from alt.patch.twin import patched_twin

ROUNDS = (7, 21)
HEADLINE = 8


@pytest.mark.parametrize("name", list(tower_forms.SUBJECTS))
def test_forms(contest: Any, benchmark: Any, pytestconfig: pytest.Config, full: bool, name: str) -> None:
    options = pytestconfig.option
    if name not in options.alt_towers:
        pytest.skip(f"a table of many minutes: --alt-towers {name}")
    removed, subject = options.alt_r, tower_forms.SUBJECTS[name]
    tower = tower_forms.build(subject)
    images = torch.randn(1, 3, subject.pixels, subject.pixels, generator=torch.Generator().manual_seed(6))
    absent = {form: why_no_runtime(form) for form in RUNTIMES}
    absent |= dict.fromkeys((COMPILED, FROZEN), rivals.why_no_compile(images.device))
    forms = tuple(form for form in tower_forms.FORMS if absent.get(form) is None)
    torch.compiler.reset()
    found = tower_forms.entrants(removed, forms)
    modules = {(e.who, e.r): tower_forms.module_of(e.who, tower, e.r) for e in found}
    calls = {e: tower_forms.start(e, name, modules[e.who, e.r], images) for e in found}
    exact = tower_forms.build(subject).double()
    want = {r: definition(exact, images.double(), r) for r in {0, *removed}}
    del exact
    shown = Entrant(OURS, HEADLINE if HEADLINE in removed else removed[-1], forms[0])
    gates = {"ours" if e == shown else str(e): angle(want[e.r]) for e in found}
    seconds = contest(
        f"{subject.title}, every form",
        calls.pop(shown),
        rivals={str(e): call for e, call in calls.items()},
        gates=gates,
        bound=1e-6,
        why_bound="1 - cosine to the float64 definition; measured 2e-13 for patched towers in float32",
        shape=f"batch 1, {subject.pixels} x {subject.pixels}",
        rounds=options.alt_rounds or ROUNDS[full],
    )
    record = benchmark.extra_info
    record["absent"] = {form: why for form, why in absent.items() if why is not None}
    if not seconds:
        return
    times = {e: seconds["ours" if e == shown else str(e)] for e in found}
    record["forms"] = table(times, costs(tower, removed))
    for key in ("ratio", "over_floor", "targets"):  # of every entrant over `shown`, which is not the question
        del record[key]


def definition(exact: torch.nn.Module, images: torch.Tensor, r: int) -> torch.Tensor:
    with torch.inference_mode():
        return rival_tower.forward(exact, images, r)


def costs(tower: torch.nn.Module, removed: tuple[int, ...]) -> dict[int, float]:
    """Returns the multiply-accumulates of one image at 0 and at each r."""
    handle, found = patched_twin(tower), {}
    for r in (0, *removed):
        handle.r = r
        found[r] = alt.count_macs(handle.tower, frames=1).native
    return found


def table(times: dict[Entrant, list[float]], macs: dict[int, float]) -> dict[str, Any]:
    """Returns the cells of the table, and per r our fastest form against the fastest of the others."""
    medians = {e: statistics.median(t) for e, t in times.items()}
    cells = []
    for e in times:
        ratio = macs[e.r] / macs[0]
        share = saving_realised(times[Entrant(UNMERGED, 0, e.form)], times[e], ratio)._asdict() if ratio < 1 else None
        cell = {"row": tower_forms.row_name(e.who, e.r), "form": e.form, "ms": 1e3 * medians[e]}
        cells.append(cell | {"flop_ratio": 1 / ratio, "saving_realised": share})
    best = {}
    for r in sorted({e.r for e in times if e.who == OURS}):
        ours = min((e for e in times if e.who == OURS and e.r == r), key=medians.__getitem__)
        others = (e for e in times if e.who == UNMERGED or (e.who == PLAIN and e.r == r))
        other = min(others, key=medians.__getitem__)
        ratio = paired_ratio(times[other], times[ours])
        best[str(r)] = {"ours": ours.form, "other": str(other), "ratio": ratio._asdict()}
    return {"cells": cells, "best": best}
