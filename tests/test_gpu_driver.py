"""What `make gpu`'s sanitizer watches: that every kernel is launched, in both of its ways, and that this is noticed.

The launches of the Triton kernels are recorded here instead of made: what is computed has tests of its own.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import driver, sanitize, session, tests

from alt_kernels.library import OPS
from alt_kernels.triton import launch_configs
from tools import aot

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["default", "any, sm_90"])
def by_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, driver.Launches]:
    """The driver's steps with the Triton launchers in the place of the CPU's kernels, up to the launch.

    With the configurations of the default, and with those that a GPU of another architecture takes up.
    """
    from triton.runtime import interpreter

    monkeypatch.setattr(launch_configs, "device_name", lambda: request.param)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda self, *args, **kwargs: None)
    # Nothing is computed: uninitialised results are zeros, which are a plan's indices as well.
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, make=make, **kwargs: make(*args, **kwargs).zero_())
    monkeypatch.setattr(driver, "close", lambda *_: None)
    monkeypatch.setattr(driver, "is_plan", lambda *_: None)

    def routed(name: str) -> Any:
        op = OPS[name]
        launch = getattr(importlib.import_module(f"alt_kernels.triton.{op.triton}"), name)

        def run(*args: Any) -> Any:
            double = any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args)
            return (op.reference if double else launch)(*args)

        return run

    library = torch.library.Library("alt_kernels", "IMPL")
    try:
        for name, op in OPS.items():
            if op.triton:
                library.impl(name, routed(name), "CPU", allow_override=True)
        found = {}
        for dtype in driver.DTYPES:
            with driver.watched() as found[dtype]:
                driver.steps("cpu", dtype, "auto")
    finally:
        library._destroy()
    return found


@pytest.fixture
def recorded(by_dtype: dict[torch.dtype, driver.Launches]) -> driver.Launches:
    return [launch for launches in by_dtype.values() for launch in launches]


def test_the_assignment_goes_both_ways_in_every_dtype(by_dtype: dict[torch.dtype, driver.Launches]) -> None:
    """Hard and soft, the entities of a row in one program and in several: other code for 16 bits than for 32."""
    for dtype, launches in by_dtype.items():
        ways = {(way["SOFT"], way["SPLIT"]) for name, way in launches if name == "_assign"}
        assert ways == {(soft, split) for soft in (True, False) for split in (True, False)}, dtype


def test_every_kernel_is_launched_in_both_of_its_ways(recorded: driver.Launches) -> None:
    assert driver.not_launched(recorded) == []


def test_a_kernel_that_is_not_launched_is_named(recorded: driver.Launches) -> None:
    """Without it, and without one of its ways."""
    kernels = {case.kernel.__name__ for stem in aot.modules() for case in aot.cases(stem)}
    for name in kernels:
        assert name in driver.not_launched([launch for launch in recorded if launch[0] != name])
    for kernel, constant in driver.WAYS:
        some = [launch for launch in recorded if launch[0] != kernel or driver._way(launch[1][constant])]
        assert f"{kernel} with {constant}=False" in driver.not_launched(some)


def test_the_driver_of_one_dtype(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As its kernels are compiled beside those of the others."""
    done: list[torch.dtype] = []
    monkeypatch.setattr(driver, "steps", lambda device, dtype, impl: done.append(dtype))
    driver.main("cpu", "float16")
    assert done == [torch.float16]
    assert "every kernel ran" in capsys.readouterr().out
    assert [getattr(torch, name) for name in sanitize.WARM] == list(driver.DTYPES)


def test_every_tool_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is stopped with what it had found, and the next one runs; what it printed counts."""
    ran: list[list[str]] = []

    def finish(command: list[str], seconds: float, **_: Any) -> tuple[int, str]:
        ran.append(command)
        if "memcheck" in command:
            return 124, "========= Invalid __global__ read of size 4 bytes\n"
        return 0, "every kernel ran\n========= ERROR SUMMARY: 0 errors\n"

    monkeypatch.setattr(sanitize, "finish", finish)
    monkeypatch.setattr(sanitize.shutil, "which", lambda name: f"/tools/{name}")
    budget = session.Budget(500)
    there = session.Session(torch.device("cuda"), Path("unused"), 500, {})
    record = sanitize.run(there, budget)
    assert list(record["checks"]) == ["none", *sanitize.TOOLS]
    assert record["failed"] == ["memcheck"]
    assert budget.left_out == ["memcheck: not finished when the time was up"]
    with_tool = [command for command in ran if command[0].endswith("compute-sanitizer")]
    assert all(command[3:5] == ["--report-api-errors", "no"] for command in with_tool)
    assert [command[2] for command in with_tool] == list(sanitize.TOOLS)


@pytest.mark.parametrize(("status", "text"), [(124, "float32: triton\n"), (1, "assignment: off by 1\n")])
def test_without_the_driver_no_tool_runs(monkeypatch: pytest.MonkeyPatch, status: int, text: str) -> None:
    """Which is a failure, whether it was too slow or wrong; each tool is named."""
    monkeypatch.setattr(sanitize, "finish", lambda *_, **__: (status, text))
    monkeypatch.setattr(sanitize.shutil, "which", lambda name: f"/tools/{name}")
    budget = session.Budget(500)
    record = sanitize.run(session.Session(torch.device("cuda"), Path("unused"), 500, {}), budget)
    assert record["failed"] == list(record["checks"]) == ["none"]
    assert all(any(what.startswith(f"{name}: ") for what in budget.left_out) for name in sanitize.TOOLS)


def test_a_wrong_result_ends_the_driver() -> None:
    want = torch.ones(3, dtype=torch.float64)
    driver.close(torch.ones(3), want, "op")
    with pytest.raises(SystemExit, match="op: off by 1"):
        driver.close(torch.zeros(3), want, "op")
    with pytest.raises(SystemExit, match="op: off by nan"):
        driver.close(torch.full((3,), torch.nan), want, "op")


def test_every_test_that_needs_a_gpu_is_run() -> None:
    """Each file with one is among what the section `test` runs, which is there."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        name = path.relative_to(ROOT).as_posix()
        if "mark.gpu" in path.read_text() and path.name != "test_gpu_driver.py":
            assert any(what.startswith(name) or name.startswith(what) for what in tests.FOLDERS), name
    for what in tests.IGNORED:
        files = [ROOT / what] if what.endswith(".py") else list((ROOT / what).rglob("*.py"))
        assert files
        assert not any("mark.gpu" in path.read_text() for path in files), what
    for what in tests.FOLDERS:
        place, _, name = what.partition("::")
        assert (ROOT / place).exists()
        assert not name or f"def {name}(" in (ROOT / place).read_text()
