"""What `make gpu`'s sanitizer watches: that every kernel is launched, in both of its ways, and that this is noticed.

The launches of the Triton kernels are recorded here instead of made: what is computed has tests of its own.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alt_kernels.library import OPS
from alt_kernels.triton import aot

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from gpu import driver
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> driver.Launches:
    """The driver's steps with the Triton launchers in the place of the CPU's kernels, up to the launch."""
    from triton.runtime import interpreter

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
        with driver.watched() as seen:
            for dtype in driver.DTYPES:
                driver.steps("cpu", dtype, "auto")
    finally:
        library._destroy()
    return seen


def test_every_kernel_is_launched_in_both_of_its_ways(recorded: driver.Launches) -> None:
    assert driver.not_launched(recorded) == []


def test_a_kernel_that_is_not_launched_is_named(recorded: driver.Launches) -> None:
    """Without it, and without one of its ways."""
    kernels = {case.kernel.__name__ for stem in aot.modules() for case in aot.cases(stem)}
    for name in kernels:
        assert name in driver.not_launched([launch for launch in recorded if launch[0] != name])
    for kernel, constant in driver.WAYS:
        some = [launch for launch in recorded if launch[0] != kernel or launch[1][constant]]
        assert f"{kernel} with {constant}=False" in driver.not_launched(some)


def test_a_wrong_result_ends_the_driver() -> None:
    want = torch.ones(3, dtype=torch.float64)
    driver.close(torch.ones(3), want, "op")
    with pytest.raises(SystemExit, match="op: off by 1"):
        driver.close(torch.zeros(3), want, "op")
    with pytest.raises(SystemExit, match="op: off by nan"):
        driver.close(torch.full((3,), torch.nan), want, "op")
