"""The cache of launches against Triton's own choice; ``test_launch_cache.py`` runs this file in a process of its own.

The launches are real up to C, and kernels have no code (``tools/silent_driver.py``). So what is asserted is which
compiled kernel is started, and with what arguments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from alt_kernels.triton import launch
from alt_kernels.triton.launch import CachedKernel, cache_launches
from tools import silent_driver

Call = tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]  # grid, pointers and scalars, constants

started: list[tuple[Any, ...]] = []
driver = silent_driver.install(lambda *args: started.append(args))


def copy(x_ptr, out_ptr, stride, count, scale, C: tl.constexpr, MODE: tl.constexpr):
    i = tl.arange(0, C)
    tl.store(out_ptr + i, tl.load(x_ptr + i * stride, mask=i < count) * scale)


@pytest.fixture
def kernel() -> Iterator[Any]:
    """A kernel that has never been launched."""
    started.clear()
    driver.device = driver.stream = 0
    yield cache_launches(do_not_specialize=["count"])(copy)
    triton.runtime.driver.set_active(driver)  # type: ignore[arg-type]


buffer = torch.zeros(1024, dtype=torch.int32)
f32, f16 = buffer.view(torch.float32), buffer.view(torch.float16)
unaligned = f32[1:]  # 4 bytes after a multiple of 16


def call(x: Any = f32, out: Any = f32, stride: Any = 32, count: Any = 7, scale: Any = 0.5, **constants: Any) -> Call:
    return (5,), (x, out, stride, count, scale), {"C": 64, "MODE": 2, "num_warps": 4, "num_stages": 1} | constants


def triton_would(kernel: Any, made: Call) -> Any:
    """The compiled kernel that Triton chooses for a launch."""
    grid, args, constants = made
    options = {name: constants.get(name) for name in launch.OPTIONS}  # Triton's key has their order
    return JITFunction.run(kernel, *args, grid=grid, warmup=True, **{**constants, **options})


def start(kernel: Any, made: Call) -> tuple[Any, ...]:
    """What one launch hands to C."""
    grid, args, constants = made
    before = len(started)
    kernel[grid](*args, **constants)
    assert len(started) == before + 1
    return started[-1]


#: Everything that Triton specialises on, one change each. Several are equal in Python: 1 == 1.0 == True.
CHANGES: dict[str, Call] = {
    "nothing": call(),
    "dtype of x": call(x=f16),
    "dtype of out": call(out=f16),
    "alignment of x": call(x=unaligned),
    "alignment of out": call(out=unaligned),
    "alignment of both": call(x=unaligned, out=unaligned),
    "another multiple of 16": call(stride=64),
    "no multiple of 16": call(stride=33),
    "one": call(stride=1),
    "one as a float": call(stride=1.0),
    "one as a bool": call(stride=True),
    "64 bits": call(stride=2**31),
    "64 bits, no multiple of 16": call(stride=2**31 + 1),
    "unsigned 64 bits": call(stride=2**63),
    "negative": call(stride=-32),
    "negative 64 bits": call(stride=-(2**31) - 16),
    "not specialised, one": call(count=1),
    "not specialised, other": call(count=16),
    "not specialised, 64 bits": call(count=2**31),
    "scale as an integer": call(scale=1),
    "other scale": call(scale=1.0),
    "constant": call(C=128),
    "constant one": call(MODE=1),
    "constant true": call(MODE=True),
    "warps": call(num_warps=8),
    "stages": call(num_stages=2),
    "registers": call(maxnreg=64),
}  # fmt: skip


def test_the_cache_starts_what_triton_would(kernel: Any) -> None:
    """Every change, in every order of two and again: the same compiled kernel, and this launch's own arguments."""
    for made in itertools.chain(*itertools.product(CHANGES.values(), repeat=2)):
        grid, (x, out, *scalars), constants = made
        arguments = start(kernel, made)
        assert arguments[4] == triton_would(kernel, made).function
        addresses = [a if isinstance(a, int) else a.data_ptr() for a in arguments[13:15]]
        assert [*arguments[:4], *addresses] == [*grid, 1, 1, 0, x.data_ptr(), out.data_ptr()]
        assert repr([*arguments[15:]]) == repr([*scalars, constants["C"], constants["MODE"]])
    assert len({id(triton_would(kernel, made)) for made in CHANGES.values()}) == 20
    assert len(kernel.launches) == len(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_the_same_again_is_a_hit(kernel: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = JITFunction.run
    monkeypatch.setattr(CachedKernel, "run", lambda self, *a, **k: asked.append(name) or run(self, *a, **k))
    start(kernel, call())
    asked.clear()
    start(kernel, CHANGES[name])
    assert asked == ([] if name == "nothing" else [name])
    start(kernel, CHANGES[name])
    start(kernel, call())
    assert asked == ([] if name == "nothing" else [name])


def test_pointers_and_the_stream_are_those_of_the_launch(kernel: Any) -> None:
    for stream, grid in ((0, (3,)), (17, (3, 4)), (18, (3, 4, 5))):
        driver.stream = stream
        for x in (f32, torch.zeros(64), torch.zeros(64)):
            arguments = start(kernel, (grid, *call(x=x)[1:]))
            assert arguments[:4] == (*grid, *(1,) * (3 - len(grid)), stream)
    assert len(kernel.launches) == 1
    assert started[-1][13] == x.data_ptr()


def test_a_device_and_a_driver_have_kernels_of_their_own(kernel: Any) -> None:
    first = start(kernel, call())[4]
    driver.device = 1
    second = start(kernel, call())[4]
    assert second != first
    assert start(kernel, call())[4] == second
    driver.device = 0
    assert start(kernel, call())[4] == first
    other = silent_driver.SilentDriver()
    triton.runtime.driver.set_active(other)  # type: ignore[arg-type]
    other.stream = 5
    assert start(kernel, call())[3] == 5
    assert {key[0] for key in kernel.launches} == {driver, other}


class Elsewhere(torch.Tensor):
    """A tensor of another device."""

    def get_device(self) -> int:
        return 7


def test_a_tensor_of_another_device_is_for_triton_to_refuse(kernel: Any) -> None:
    """C checks whether a tensor is of the GPU, and gets an address only where it has seen such a tensor before."""
    start(kernel, call())
    elsewhere = f32.as_subclass(Elsewhere)
    assert start(kernel, call(out=elsewhere))[14] is elsewhere
    assert start(kernel, call())[14] == f32.data_ptr()


@pytest.mark.parametrize(
    ("knobs_", "knob", "value"), [("runtime", "debug", True), ("compilation", "instrumentation_mode", "all")]
)
def test_a_knob_that_changes_kernels_takes_the_cache_out(
    kernel: Any, knobs_: str, knob: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = start(kernel, call())[4]
    monkeypatch.setattr(getattr(knobs, knobs_), knob, value)
    special = start(kernel, call())[4]
    assert special == triton_would(kernel, call()).function != plain
    monkeypatch.undo()
    assert start(kernel, call())[4] == plain


@pytest.mark.parametrize("knob", ["launch_enter_hook", "launch_exit_hook"])
def test_whoever_watches_sees_every_launch(kernel: Any, knob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start(kernel, call())
    seen: list[Any] = []
    monkeypatch.setattr(CachedKernel, "run", lambda self, *args, **options: seen.append(args))
    monkeypatch.setattr(getattr(knobs.runtime, knob), "calls", [print])
    kernel[(5,)](*call()[1], **call()[2])
    monkeypatch.setattr(getattr(knobs.runtime, knob), "calls", [])
    kernel[(5,)](*call()[1], **call()[2])
    monkeypatch.setattr(knobs.runtime, knob, print)  # a function in the place of the chain
    kernel[(5,)](*call()[1], **call()[2])
    assert len(seen) == 2
    assert len(started) == 2


def test_a_hook_of_the_kernel_and_a_replaced_run_are_respected(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start(kernel, call())
    seen: list[str] = []
    kernel.add_pre_run_hook(lambda *args, **options: seen.append("hook"))
    start(kernel, call())
    kernel.pre_run_hooks.clear()
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: seen.append("run"))
    kernel[(5,)](*call()[1], **call()[2])
    assert seen == ["hook", "run"]


def test_scratch_memory_is_tritons(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes scratch memory of the size of its grid is never remembered."""
    from triton.runtime import _allocation

    compiled = triton_would(kernel, call())
    compiled.run.global_scratch_size = 8
    taken: list[int] = []
    triton.set_allocator(lambda size, alignment, stream: taken.append(size) or buffer)
    monkeypatch.setattr(_allocation, "_allocator", _allocation._allocator)
    start(kernel, call())
    start(kernel, call())
    assert taken == [40, 40]
    assert not kernel.launches


def test_the_cache_is_bounded(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST", 3)
    for count in range(10):
        assert start(kernel, call(count=count))[16] == count
        assert len(kernel.launches) <= 3


def test_parameters_are_in_order() -> None:
    def wrong(x_ptr, count, out_ptr, C: tl.constexpr):
        pass

    with pytest.raises(TypeError, match="wrong: expected pointers"):
        cache_launches()(wrong)
