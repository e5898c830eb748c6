"""Peaks of allocations whose size is known, in processes with a past and in fresh ones."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from alt.measure import call_fresh_process, can_measure_peak, measure_peak, peak_memory

MIB = 2**20
linux = pytest.mark.skipif(not can_measure_peak(), reason="Linux keeps the high-water mark in /proc/self")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt and malloc_trim are glibc's")


def spike() -> None:
    torch.ones(2**24)  # 64 MiB, gone at once


@linux
def test_peak_memory_sees_what_is_freed_again() -> None:
    spike()
    peak = measure_peak(spike)
    assert 60 * MIB < peak.bytes < 72 * MIB
    assert "VmHWM" in peak.how


@linux
def test_a_result_counts_and_what_was_held_does_not() -> None:
    held = torch.ones(2**24)
    assert measure_peak(lambda: held.add_(1)).bytes < 8 * MIB
    assert 60 * MIB < measure_peak(lambda: torch.ones(2**24)).bytes < 72 * MIB


@glibc
def test_a_heap_that_kept_freed_memory_hides_no_peak() -> None:
    """Resident pages that others freed would serve the call, and its peak would be 0: so it was after a long run."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.free(libc.malloc(31 * MIB))  # from now on smaller blocks lie in the heap
    blocks = [libc.malloc(28 * MIB) for _ in range(6)]
    for block in blocks:
        ctypes.memset(block, 1, 28 * MIB)
    top = libc.malloc(MIB)  # the heap cannot shrink below it
    try:
        for block in blocks:
            libc.free(block)
        assert 60 * MIB < measure_peak(spike).bytes < 72 * MIB
    finally:
        libc.free(top)


def test_a_gpu_is_asked_for_its_allocators_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    held, most = 100, 100

    def run() -> None:
        nonlocal most
        most = 350

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: most)
    assert measure_peak(run, "cuda") == (250, "CUDA caching allocator, peak less start")


def test_a_system_without_a_mark_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(peak_memory, "_CLEAR", peak_memory.Path("/no/clear_refs"))
    assert not can_measure_peak()
    with pytest.raises(RuntimeError, match="device: expected one whose peak memory can be read, got cpu"):
        measure_peak(spike)


def test_a_fresh_process_answers_in_json_or_says_why_not() -> None:
    code = "import json, os; print('noise'); print(json.dumps({'threads': os.environ['OMP_NUM_THREADS']}))"
    assert call_fresh_process(["-c", code], threads=3) == {"threads": "3"}
    with pytest.raises(RuntimeError, match="status 1: ValueError: too large"):
        call_fresh_process(["-c", "raise ValueError('too large')"])


@glibc
def test_both_settings_of_malloc_are_taken() -> None:
    """In processes of their own: the settings stay."""
    code = "import json; from alt.measure import {0}; print(json.dumps({0}()))"
    assert call_fresh_process(["-c", code.format("keep_freed_memory")]) == "freed memory is kept"
    assert call_fresh_process(["-c", code.format("return_freed_memory")]) is True
