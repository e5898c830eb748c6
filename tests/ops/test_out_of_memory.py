"""A compiled kernel without memory says so, with the bytes that it asked for."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from alt_kernels import backends, bipartite_soft_matching, cosine_gumbel_assign, weighted_merge

pytestmark = pytest.mark.skipif(not backends()["cpp"].available, reason="the C++ kernels are not built")
GIB = 1 << 30


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """Lets this process map ``more`` bytes than it has mapped."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    kept = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)


def test_the_message_reaches_the_caller(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.zeros(1).expand(2**40, 1)
    with at_most(GIB), pytest.raises(RuntimeError, match=r"^out of memory: cannot allocate \d{13} bytes$"):
        cosine_gumbel_assign(x, torch.randn(3, 1))
    assert not capfd.readouterr().err, "a stack of C++ frames on stderr"


def test_an_output_that_does_not_fit() -> None:
    plan = bipartite_soft_matching(torch.randn(1, 4, 2), 1, num_protected=0)
    wide = torch.zeros(1, 1, 1).expand(1, 4, 2**29)  # 3 rows of 2 GiB
    with at_most(GIB), pytest.raises(RuntimeError, match=r"out of memory: cannot allocate \d+ bytes"):
        weighted_merge(wide, plan, impl="cpp")


def test_a_copy_that_does_not_fit(capfd: pytest.CaptureFixture[str]) -> None:
    metric = torch.zeros(1, 1, 1).expand(4, 2**13, 2**17)  # rows of stride 0 are copied
    with at_most(GIB), pytest.raises(RuntimeError, match=r"out of memory: cannot allocate \d+ bytes"):
        bipartite_soft_matching(metric, 1, impl="cpp")
    assert not capfd.readouterr().err


@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_memory_of_a_thread(threads: int) -> None:
    """Raised inside the body of a parallel loop, from which an exception would lose its message."""
    metric = torch.zeros(1, 1, 2**17).expand(4, 2**13, 2**17)
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with at_most(GIB), pytest.raises(RuntimeError, match=r"^out of memory: cannot allocate \d+ bytes$"):
            bipartite_soft_matching(metric, 1, impl="cpp")
    finally:
        torch.set_num_threads(kept)
