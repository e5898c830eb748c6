"""The ops ``<op>_cuda``: complete and traceable without a GPU, chosen by name or by the table, and never silently."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import alt_kernels
from alt_kernels import library, testing
from alt_kernels.library import CUDA_OPS, OPS, Choice

from ..ops.test_registration import SAMPLES, _as_tuple, _inputs_with_grad, _layout, _op

ROOT = Path(__file__).resolve().parents[2]


def contract(name: str) -> str:
    """The op that ``name`` is an implementation of."""
    return name.replace("_cuda", "")


def test_the_ops_are_those_of_the_library() -> None:
    """Every kernel that csrc/cuda registers has a schema, and every schema a kernel."""
    sources = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
    assert set(CUDA_OPS) == {line.split('"')[1] for line in sources.splitlines() if "m.impl(" in line}
    assert {contract(name) for name in CUDA_OPS} <= set(OPS)


@pytest.mark.parametrize("name", sorted(CUDA_OPS))
def test_the_contract_is_that_of_the_op(name: str) -> None:
    assert CUDA_OPS[name].schema == OPS[contract(name)].schema.replace(contract(name), name, 1)
    assert str(_op(name).default._schema).removeprefix("alt_kernels::") == CUDA_OPS[name].schema
    assert torch.Tag.pt2_compliant_tag in _op(name).default.tags
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert not has(f"alt_kernels::{name}", "CompositeExplicitAutograd"), "the reference would run on a GPU, silently"
    assert has(f"alt_kernels::{name}", "CUDA") == library._cuda.available
    for args in itertools.islice(SAMPLES[contract(name)](torch.float32, False), 3):
        found, expected = _as_tuple(_op(name)(*args)), _as_tuple(OPS[contract(name)].reference(*args))
        for left, right in zip(found, expected, strict=True):
            testing.assert_same_bits(left, right)
        meta = _op(name)(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
        assert _layout(meta) == _layout(found)


@pytest.mark.parametrize("name", sorted(CUDA_OPS))
def test_opcheck(name: str) -> None:
    for args in itertools.islice(SAMPLES[contract(name)](torch.float32, False), 2):
        torch.library.opcheck(_op(name), args)
        if name == "merge_layer_norm_cuda":
            torch.library.opcheck(_op(name), _inputs_with_grad(name, args))


def test_the_derivative_goes_through_its_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    args = next(iter(SAMPLES["merge_layer_norm"](torch.float64, False)))
    given = _inputs_with_grad("merge_layer_norm_cuda", args)
    leaves = [a for a in given if isinstance(a, torch.Tensor) and a.requires_grad]
    calls: list[Any] = []
    backward = torch.ops.alt_kernels.merge_layer_norm_cuda_backward
    monkeypatch.setattr(
        torch.ops.alt_kernels,
        "merge_layer_norm_cuda_backward",
        lambda *arguments: calls.append(arguments) or backward(*arguments),
    )
    expected = torch.autograd.grad(sum(t.sum() for t in OPS["merge_layer_norm"].reference(*given)[:2]), leaves)
    actual = torch.autograd.grad(sum(t.sum() for t in _op("merge_layer_norm_cuda")(*given)[:2]), leaves)
    assert len(calls) == 1
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2 if right.dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_asked_for_it_runs_or_raises_one_sentence() -> None:
    x = torch.randn(1, 8, 4)
    plan = alt_kernels.bipartite_soft_matching(x, 2)
    calls = (
        lambda: alt_kernels.bipartite_soft_matching(x, 2, impl="cuda"),
        lambda: alt_kernels.bipartite_soft_matching_from_keys(x[:, None], 2, impl="cuda"),
        lambda: alt_kernels.merge_layer_norm(x, x, plan, None, None, None, impl="cuda"),
    )
    available, reason = alt_kernels.backends()["cuda"]
    for call in calls:
        if available:
            with pytest.raises(ValueError, match="impl: 'cuda' runs on CUDA tensors, got a tensor on cpu"):
                call()
        else:
            with pytest.raises(RuntimeError) as caught:
                call()
            assert str(caught.value) == f"impl: 'cuda' is not available: {reason.split(';')[0]}"
    with pytest.raises(RuntimeError, match="for this operation, which has no CUDA"):
        alt_kernels.unmerge(x, alt_kernels.bipartite_soft_matching(x, 0), impl="cuda")


# The table of kept results


def test_every_choice_has_a_kept_result() -> None:
    choices = json.loads((ROOT / "alt_kernels" / "cuda_choice.json").read_text())["choices"]
    assert library.load_choices() == tuple(Choice(**c) for c in choices)
    for choice in library.load_choices():
        kept = ROOT / choice.result
        assert kept.is_file(), f"{choice}: no such result"
        assert choice.device in kept.read_text()
        assert "matching" not in choice.op or choice.max_tokens <= 512


class OnGpu:
    """As much of a CUDA tensor as the choice looks at."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float16) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device("cuda", 0)


def test_the_table_decides_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*shape: int, impl: str = "auto", name: str = "merge_layer_norm", **options: Any) -> bool:
        return library.use_cuda(name, impl, OnGpu(*shape, **options))  # type: ignore[arg-type]

    monkeypatch.setattr(library, "_cuda", library.Backend(True, "loaded"))
    monkeypatch.setattr(library, "_device_name", lambda index: "A")
    assert not chosen(1, 9, 8), "no line, no choice"
    monkeypatch.setattr(library, "_choices", (Choice("merge_layer_norm", "A", 8, 256, 1024, "x.json"),))
    assert chosen(8, 256, 1024)
    assert chosen(1, 12, 256, 64), "[B, H, N, C] as well"
    assert not chosen(9, 256, 1024)
    assert not chosen(8, 257, 1024)
    assert not chosen(8, 256, 1032)
    assert not chosen(8, 256, 1024, dtype=torch.float64)
    assert not chosen(8, 256, 1024, impl="triton")
    assert not chosen(8, 256, 1024, name="bipartite_matching")
    assert not library.use_cuda("merge_layer_norm", "auto", torch.zeros(1, 9, 8)), "a CPU tensor"
    monkeypatch.setattr(library, "_device_name", lambda index: "B")
    assert not chosen(8, 256, 1024), "another device"
    monkeypatch.setattr(library, "_cuda", library.Backend(False, "not there"))
    monkeypatch.setattr(library, "_device_name", lambda index: "A")
    assert not chosen(8, 256, 1024), "the library is not there"


def test_a_device_name_is_a_constant_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the table has a line, ``torch.compile`` takes the name as a constant and does not trace the driver's call."""
    choice = Choice("merge_layer_norm", "A", 8, 256, 1024, "x.json")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: Path(os.devnull).read_text() + "A")  # untraceable
    library._read_device_name.cache_clear()
    for name, value in {"_compiled": library._compiled, "_cuda": library._cuda, "_choices": ()}.items():
        monkeypatch.setattr(library, name, value)  # initialise() sets them; they come back after the test
    monkeypatch.setattr(library, "load_cuda", lambda: library.Backend(True, "loaded"))
    monkeypatch.setattr(library, "load_choices", lambda: (choice,))
    library.initialise()
    traced = torch.compile(lambda x: x + len(library._device_name(0)), fullgraph=True, backend="eager")
    assert traced(torch.zeros(())) == 1
    library._read_device_name.cache_clear()


# On a GPU


@pytest.mark.gpu
def test_streams_graphs_and_one_compiled_graph() -> None:
    """The current stream's order is kept, a captured graph gives the same bits, and torch.compile makes one graph."""
    x = torch.randn(4, 197, 768, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(2, 768, device="cuda")
    keys = torch.randn(4, 12, 197, 64, device="cuda", dtype=torch.bfloat16)

    def step(x: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        plan = alt_kernels.bipartite_soft_matching_from_keys(keys, 8, impl="cuda")
        return alt_kernels.merge_layer_norm(x, x, plan, None, weight, bias, impl="cuda")

    expected = step(x, keys)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        late = x.clone()
        found = step(late, keys)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, keys)
    graph.replay()
    compiled = torch.compile(step, fullgraph=True)(x, keys)
    for results in (found, captured, compiled):
        for left, right in zip(results, expected, strict=True):
            testing.assert_same_bits(left, right)


@pytest.mark.gpu
def test_the_device_of_the_tensors_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    x = torch.randn(2, 50, 64, device="cuda:1")
    plan = alt_kernels.bipartite_soft_matching(x, 8, impl="cuda")
    expected = alt_kernels.bipartite_soft_matching(x, 8, impl="reference")
    testing.assert_valid_plan(alt_kernels.Matching(*(t.cpu() for t in plan)), 2, 50, 8, 1)
    assert plan.indices.device == expected.indices.device


@pytest.mark.gpu
def test_training_through_the_public_function() -> None:
    """Gradients of the public function by the CUDA kernels against the reference's autograd."""
    x = torch.randn(2, 21, 64, device="cuda", requires_grad=True)
    weight = torch.randn(64, device="cuda", requires_grad=True)
    plan = alt_kernels.bipartite_soft_matching(x, 6, impl="cuda")
    size = torch.randint(1, 5, (2, 21), device="cuda").float()
    grads = []
    for impl in ("cuda", "reference"):
        out = alt_kernels.merge_layer_norm(x, x.detach(), plan, size, weight, None, impl=impl)
        grads.append(torch.autograd.grad((out.x * 2 + out.normed * 3).sum(), (x, weight)))
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
