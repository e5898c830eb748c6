"""How `make gpu` takes times: which sets go round, what a graph holds, and what is put right when a capture fails."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shapes
import torch
from gpu import cases, clock, graphs, inputs, session

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
H100_CACHE = 50 * 2**20

pytestmark = pytest.mark.usefixtures("few_objects")


class Device:
    """A GPU that keeps a diary: what is captured is a list of calls, and its clock advances by what they take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.stream: Any = "main"
        self.recording: list[float] | None = None
        self.forbidden = False
        self.mended: list[Any] = []
        self.waits: list[int] = []
        self.captured: list[int] = []
        self.released: list[str] = []  # what was captured by then, whenever cached memory was given back
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Any) -> float:
                return 1e3 * (other.at - self.at)

        class Stream:
            def __init__(self, where: torch.device) -> None:
                assert where == GPU

            def wait_stream(self, other: Any) -> None:
                pass

        class Graph:
            def __init__(self) -> None:
                self.calls: list[float] = []

            def replay(self) -> None:
                device.now += sum(self.calls)

        @contextlib.contextmanager
        def stream(other: Any) -> Iterator[None]:
            before, device.stream = device.stream, other
            yield
            device.stream = before

        class Capture:
            """As `torch.cuda.graph`: where the end of the capture fails, the stream stays the capture's."""

            def __init__(self, graph: Graph, pool: Any, stream: Any) -> None:
                self.graph, self.stream = graph, stream

            def __enter__(self) -> None:
                self.before, device.stream = device.stream, self.stream
                device.recording = []

            def __exit__(self, *_: Any) -> None:
                self.graph.calls, device.recording = device.recording or [], None
                if device.forbidden:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                device.captured.append(len(self.graph.calls))
                device.stream = self.before

        generator = types.SimpleNamespace(
            clone_state=lambda: "fresh state", graphsafe_set_state=lambda state: self.mended.append(state)
        )
        main = types.SimpleNamespace(wait_stream=lambda other: None)
        self.stream = self.main = main
        fakes = {
            **{"Event": Event, "Stream": Stream, "CUDAGraph": Graph, "graph": Capture, "stream": stream},
            **{"current_stream": lambda where: device.stream, "synchronize": lambda where=None: None},
            **{"graph_pool_handle": lambda: (0, 7), "default_generators": [generator], "_sleep": self.waits.append},
            "set_stream": lambda other: setattr(device, "stream", other),
            "empty_cache": lambda: self.released.append(f"after {len(self.captured)} captures"),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        ended = lambda index, pool: self.mended.append(("ended", index, pool))  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended, raising=False)
        released = lambda index, pool: self.mended.append(("released", index, pool))  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_releasePool", released, raising=False)

    def call(self, seconds: float) -> Any:
        def run() -> None:
            if self.recording is not None:
                self.recording.append(seconds)
            else:
                self.now += seconds

        return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_a_replay_is_long_and_counts_its_calls(gpu: Device) -> None:
    """A pilot of one pass, then as many passes as take three milliseconds of the GPU's own time."""
    timed = clock.interleave({"fast": [gpu.call(5e-6)] * 10, "slow": [gpu.call(1.9e-3)]}, GPU, rounds=6, seconds=100)
    assert gpu.captured == [10, 600, 1, 2]
    assert timed["fast"].how == timed["slow"].how == "graph"
    assert timed["fast"].median == pytest.approx(5e-6)
    assert timed["slow"].median == pytest.approx(1.9e-3)
    assert len(timed["fast"].seconds) == 6, "the round before the first is not counted"
    assert all(wait >= 0.9e-4 * clock.CYCLES for wait in gpu.waits[6:]), "the GPU did not wait for its queue"


def test_a_long_call_is_not_captured(gpu: Device) -> None:
    """A graph would keep all that it allocates: the eager assignment to 100,000 entities, more than an H100 has."""
    calls = {"long": [gpu.call(2.1e-3)], "tower": [gpu.call(4e-3)]}
    timed = clock.interleave({"long": calls["long"]}, GPU, rounds=5, seconds=100)
    assert gpu.captured == []
    assert (timed["long"].how, timed["long"].why) == ("events", "")
    assert timed["long"].median == pytest.approx(2.1e-3)
    timed = clock.interleave({"tower": calls["tower"]}, GPU, rounds=5, seconds=100, longest=float("inf"))
    assert timed["tower"].how == "graph", "a tower whose launches would be all that is measured"


def test_memory_goes_back_before_every_capture(gpu: Device) -> None:
    clock.interleave({"a": [gpu.call(5e-6)] * 10}, GPU, rounds=5, seconds=100)
    assert gpu.captured == [10, 600]
    assert gpu.released == ["after 0 captures", "after 1 captures"]


def test_a_rival_that_raises_while_it_is_timed_costs_its_own_row(gpu: Device) -> None:
    """At its second call, in a round, or not at all: the others have all their rounds, and the reason is there."""
    count = 0

    def raises_at(last: int) -> Any:
        run = gpu.call(3e-3)

        def call() -> None:
            nonlocal count
            count += 1
            if count == last:
                raise RuntimeError("out of memory")
            run()

        return call

    for last in (2, 15):
        count, failed = 0, {}
        calls = {"ours": [gpu.call(1e-4)] * 2, "rival": [raises_at(last)]}
        timed = clock.interleave(calls, GPU, rounds=12, seconds=100, failed=failed)
        assert list(timed) == ["ours"], last
        assert len(timed["ours"].seconds) == 12
        assert str(failed["rival"]) == "out of memory"
        count = 0
        with pytest.raises(RuntimeError, match="out of memory"):
            clock.interleave(calls, GPU, rounds=12, seconds=100)


def test_the_clock_of_the_run_gives_the_rate_of_draws(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake of an H200 at 1.755 GHz: 24 integer operations a Gumbel number, 64 a cycle on 132 multiprocessors."""

    def sleep(cycles: int) -> None:
        gpu.call(cycles / 1.755e9)()

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: self

        __matmul__ = __getattr__

    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    properties = types.SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Anything())
    monkeypatch.setattr(torch, "empty_like", lambda *_, **__: Anything())
    monkeypatch.setattr(torch, "randn", lambda *_, **__: Anything())
    monkeypatch.setattr(Anything, "copy_", lambda *_: gpu.call(1.2e-3)(), raising=False)
    monkeypatch.setattr(torch, "neg", lambda *_, **__: gpu.call(1e-3)())
    monkeypatch.setattr(Anything, "__matmul__", lambda *_: gpu.call(1.4e-3)())
    found = clock.ceilings(GPU, dry=False)
    assert found["clock_hz"] == pytest.approx(1.755e9, rel=1e-3)
    assert found["bytes_per_s"] == pytest.approx(2**32 / 1e-3)
    assert found["flop_per_s"] == pytest.approx(2 * 8192**3 / 1.4e-3)
    assert 25_856 * 913 / found["draws_per_s"] == pytest.approx(38.2e-6, rel=0.01)


def test_a_capture_that_fails_leaves_nothing_behind(gpu: Device) -> None:
    """The stream, the allocator's pool and the random generator are as before; the call is timed as it is launched."""
    gpu.forbidden = True
    timed = clock.interleave({"reads on the host": [gpu.call(1e-4)] * 4}, GPU, rounds=5, seconds=100)
    assert timed["reads on the host"].how == "events"
    assert "operation failed" in timed["reads on the host"].why
    assert timed["reads on the host"].median == pytest.approx(1e-4)
    assert gpu.stream is gpu.main
    assert gpu.mended == [("ended", 0, (0, 7)), ("released", 0, (0, 7)), "fresh state"]


def test_a_pool_that_was_ended_is_the_graphs_own(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the call itself raises, the capture ends as it should, and its graph gives the pool back: once."""

    def not_recording(*_: Any) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording)

    def broken() -> None:
        if gpu.recording is not None:
            raise ValueError("not in a capture")

    with pytest.raises(ValueError, match="not in a capture"):
        graphs.capture(broken, GPU)
    assert gpu.mended == ["fresh state"]
    assert gpu.stream is gpu.main


def test_others_launchers_are_not_captured(gpu: Device) -> None:
    timed = clock.interleave({"a": [gpu.call(1e-4)]}, GPU, rounds=5, launched=frozenset({"a"}))
    assert timed["a"].how == "events"
    assert timed["a"].why == ""
    assert gpu.captured == []


def test_results_of_a_pass_stay_until_the_next() -> None:
    """Or each would lie where the one before it lay, which is in the cache."""
    alive: list[int] = []
    most = []

    class Result:
        def __init__(self) -> None:
            alive.append(1)
            most.append(len(alive))

        def __del__(self) -> None:
            alive.pop()

    clock.passes([Result] * 3, 4)()
    assert max(most) == 3
    assert alive == []


@pytest.mark.parametrize("batch", [256, 8])
def test_sets_of_inputs_exceed_the_cache(batch: int) -> None:
    """Of every case, at the real shapes: what is read between two uses of a set is several times the cache."""
    shape = shapes.Tokens(batch, 197, 12, 64, 8, torch.bfloat16)
    for read in (
        shape.batch * shape.tokens * shape.head_dim * 2,  # the metric, the smallest of all
        shape.batch * shape.tokens * shape.channels * 2,
        256 * 101 * 512 * 2,
    ):
        count = inputs.sets(H100_CACHE, read)
        assert (count - 1) * read > 2 * H100_CACHE or read > 1.5 * H100_CACHE, (read, count)
        assert count * read < 16 * H100_CACHE
    assert inputs.sets(H100_CACHE, 10**9) == 2


def test_every_case_goes_through_its_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache of the size of three sets each case has that many, of different numbers."""
    dry = session.Session(CPU, Path("unused"), 60.0, {}, dry=True)
    monkeypatch.setattr(inputs, "sets_of", lambda *_, **__: 5)
    monkeypatch.setattr(cases, "sets_of", lambda *_, **__: 5)
    for name, _, build in cases.all_cases(dry):
        case = build()
        assert case.sets == (1 if "large" in name else 5), name
        first, last = (case.entrants["ours"](i) for i in (0, case.sets - 1))
        if case.sets > 1:
            pairs = zip(first, last, strict=True) if isinstance(first, tuple) else [(first, last)]
            assert any(not torch.equal(a, b) for a, b in pairs), name
