"""Random calls of every operation: the short form of ``make fuzz``, and the results of every x86 level."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from alt_kernels import testing

from .calls import OPERATIONS, call, run_children
from .levels import LEVELS, build, find_compiler, runnable

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs GCC on x86")


def test_random_calls_return_or_are_refused() -> None:
    outcomes = [call(number, 5) for number in range(200)]
    ran = Counter(outcome.operation for outcome in outcomes if outcome.results is not None)
    assert min(ran[name] for name in OPERATIONS) >= 5, ran
    assert sum(outcome.results is None for outcome in outcomes) >= 20, "nothing was damaged"


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("level", LEVELS)
def test_random_calls_under_sanitizers(level: str) -> None:
    if not runnable(level):
        pytest.skip(f"this processor has no {level}")
    ran, refused, failures = run_children(range(500), 1, build(level, sanitize=True))
    assert not failures, failures
    assert ran + refused == 500
    assert refused >= 50


def band(best: torch.Tensor) -> float:
    """Two orders of summing n terms differ by about n eps of the largest result; n is at most 200 tokens here.

    In half precision results are rounded, and so are the weights of attention before their product.
    """
    wide = testing.accumulate_dtype(best.dtype)
    stored = 0.0 if wide == best.dtype else 2 * torch.finfo(best.dtype).eps
    return (stored + 200 * torch.finfo(wide).eps) * float(best.double().abs().max()) if best.numel() else 0.0


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_the_results_of_the_best(level: str, tmp_path: Path) -> None:
    """The same calls with the shipped library, which takes the best level of this processor."""
    if not runnable(level):
        pytest.skip(f"this processor has no {level}")
    count, file = 400, tmp_path / "results.pt"
    command = [sys.executable, "-m", "tests.fuzz.calls", "--seed", "2", "--calls", str(count), "--save", str(file)]
    subprocess.run(command, check=True, env={**os.environ, **build(level)})
    compared = 0
    for number, (operation, found) in enumerate(torch.load(file)):
        expected = call(number, 2, valid=True)
        assert expected.operation == operation
        assert expected.results is not None
        for ours, best in zip(found, expected.results, strict=True):
            assert ours.shape == best.shape
            assert ours.dtype == best.dtype
            compared += 1
            if not best.is_floating_point():
                assert torch.equal(ours, best), (number, operation)
                continue
            difference = (ours.double() - best.double()).abs()
            assert (difference <= band(best)).all(), (number, operation, best.dtype, difference.max(), band(best))
    assert compared > count
