"""Shared fixtures: seeds, thread limits, poisoned memory, hypothesis settings."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# Inductor's cache on disk does not see that the schema of an op has changed: a graph of an older checkout would run.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
# Triton reads this at its first import (open_clip imports it too): its kernels then run on CPU tensors. On a machine
# with a GPU ALT_KERNELS_TEST_DEVICE=cuda compiles them instead; the tests of `make gpu` are run so.
if os.environ.get("ALT_KERNELS_TEST_DEVICE", "cpu") != "cuda":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import gc
import importlib.util
import random
from collections.abc import Callable, Iterator

import hypothesis
import numpy
import pytest
import torch

# The same examples in every run: a failure means changed code. HYPOTHESIS_PROFILE=explore draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


if importlib.util.find_spec("pytest_benchmark") is None:  # the benchmarks need the extra [bench]
    collect_ignore_glob = ["test_benchmarks.py", "test_gpu_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_device = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_device)


def pytest_collection_finish() -> None:
    """The modules that collecting imported live to the end: a full collection in a test need not visit them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  some libraries under test draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def few_objects() -> None:
    """For tests whose code collects garbage hundreds of times: what earlier tests left alive is not visited again."""
    pytest_collection_finish()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``threads(n)`` sets torch's number of threads for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_empty() -> Iterator[None]:
    """New uninitialised memory is NaN (integers: the largest value), in Python and in the C++ kernels alike.

    A kernel that leaves an element of its result unwritten, or reads one too many, then shows it.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
