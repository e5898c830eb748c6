"""Every registered op is complete: schema, fake, reference, derivative, FLOP formula and a CPU kernel of its own.

One table of sample arguments drives all of it. An op that is added without an entry here fails the first test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import alt_kernels
from alt_kernels import Matching, cosine_gumbel_assign, library, merge_layer_norm
from alt_kernels.library import OPS

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Attention has a CPU kernel without the compiled library as well, made of PyTorch's; its backward has no other.
# Matching of keys on a CPU is a mean and the kernel of the matching.
PYTHON_ON_CPU = {"proportional_attention", "proportional_attention_backward"}
ONLY_PYTHON_ON_CPU = {"proportional_attention_backward"}
NOT_DIFFERENTIABLE = {"bipartite_matching", "bipartite_matching_from_keys"}

Args = tuple[Any, ...]


def _op(name: str) -> Any:
    return getattr(torch.ops.alt_kernels, name)


def _random(*shape: int, dtype: torch.dtype = torch.float32, strided: bool = False) -> Tensor:
    """Normal values; ``strided``: the last two dimensions swapped in memory and a step of two along the first."""
    if not strided or len(shape) < 2:
        return torch.randn(shape, dtype=torch.float64).to(dtype)
    swapped = (2 * shape[0], *shape[1:-2], shape[-1], shape[-2]) if len(shape) > 2 else shape[::-1]
    base = torch.randn(swapped, dtype=torch.float64).to(dtype).transpose(-1, -2)
    return base[::2] if len(shape) > 2 else base


def _sizes(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 5, (batch, tokens)).float()


def _plan(batch: int, tokens: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    return OPS["bipartite_matching"].reference(torch.randn(batch, tokens, 3), r, min(1, tokens))


# (B, N, r): an ordinary problem, the identity, no images, no tokens.
PROBLEMS = ((2, 9, 3), (1, 4, 0), (0, 5, 2), (2, 0, 0))


def _bipartite_matching(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for batch, tokens, r in PROBLEMS:
        yield _random(batch, tokens, 5, dtype=dtype, strided=strided), r, min(1, tokens)


def _bipartite_matching_from_keys(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for batch, tokens, r in PROBLEMS:
        # opcheck cannot clone an empty tensor with strides as large as these
        yield _random(batch, 3, tokens, 5, dtype=dtype, strided=strided and batch > 0), r, min(1, tokens)


def _weighted_merge(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for (batch, tokens, r), sized in itertools.product(PROBLEMS, (True, False)):
        x = _random(batch, tokens, 5, dtype=dtype, strided=strided)
        yield x, _sizes(batch, tokens) if sized else None, *_plan(batch, tokens, r)


def _weighted_merge_backward(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for x, size, *plan in _weighted_merge(dtype, strided):
        merged, merged_size = OPS["weighted_merge"].reference(x, size, *plan)
        yield _random(*merged.shape, dtype=dtype, strided=strided), size, merged_size, *plan


def _unmerge(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for batch, tokens, r in PROBLEMS:
        yield _random(batch, tokens - r, 5, dtype=dtype, strided=strided), *_plan(batch, tokens, r)


def _unmerge_backward(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for batch, tokens, r in PROBLEMS:
        yield _random(batch, tokens, 5, dtype=dtype, strided=strided), *_plan(batch, tokens, r)


def _merge_layer_norm(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for (batch, tokens, r), sized in itertools.product(PROBLEMS, (True, False)):
        x = _random(batch, tokens, 5, dtype=dtype, strided=strided)
        # Under autocast the stream is float32 and the branch bfloat16.
        residual = _random(batch, tokens, 5, dtype=torch.bfloat16 if sized else dtype, strided=strided)
        weight = _random(5) if sized else None
        bias = _random(5, dtype=dtype) if sized or r == 0 else None
        size = _sizes(batch, tokens) if sized else None
        yield x, residual, size, *_plan(batch, tokens, r), weight, bias, 1e-5


def _merge_layer_norm_backward(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for x, residual, size, indices, offsets, row, weight, bias, eps in _merge_layer_norm(dtype, strided):
        merged, normed, merged_size, mean, rstd = OPS["merge_layer_norm"].reference(
            x, residual, size, indices, offsets, row, weight, bias, eps
        )
        grads = [_random(*t.shape, dtype=t.dtype, strided=strided) for t in (merged, normed)]
        yield *grads, merged, mean, rstd, weight, bias is not None, size, merged_size, indices, offsets, row


def _proportional_attention(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for batch, queries, keys, sized in (
        (2, 5, 7, True),
        (1, 3, 3, False),
        (0, 2, 2, True),
        (1, 0, 3, False),
        (1, 2, 0, True),
    ):
        q, k, v = (_random(batch, 2, n, 4, dtype=dtype, strided=strided) for n in (queries, keys, keys))
        yield q, k, v, _sizes(batch, keys) if sized else None, 0.5


def _proportional_attention_backward(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for q, k, v, size, scale in _proportional_attention(dtype, strided):
        out, logsumexp = _op("proportional_attention")(q, k, v, size, scale)
        grad = _random(*out.shape, dtype=dtype, strided=strided)
        yield grad, q, k, v, size, out, logsumexp, scale


def _gumbel_assignment(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for (rows, count), hard in itertools.product(((5, 7), (0, 3), (3, 1)), (True, False)):
        x = _random(rows, 6, dtype=dtype, strided=strided)
        entities = _random(count, 6, dtype=dtype if hard else torch.float32, strided=strided)
        tau = torch.tensor(0.7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        yield x, entities, tau, None, torch.tensor(3), hard
        yield x, entities, tau, _random(rows, count, strided=strided), None, hard
        yield x, entities, tau, None, None, hard


def _gumbel_assignment_backward(dtype: torch.dtype, strided: bool) -> Iterator[Args]:
    for i, (x, entities, tau, noise, seed, hard) in enumerate(_gumbel_assignment(dtype, strided)):
        output, index, normalizer = OPS["gumbel_assignment"].reference(x, entities, tau, noise, seed, hard)
        grad = _random(*output.shape, dtype=output.dtype, strided=strided)
        yield grad, x, entities, tau, noise, seed, index, normalizer, hard, i % 2 == 0


SAMPLES: dict[str, Callable[[torch.dtype, bool], Iterator[Args]]] = {
    "bipartite_matching": _bipartite_matching,
    "bipartite_matching_from_keys": _bipartite_matching_from_keys,
    "weighted_merge": _weighted_merge,
    "weighted_merge_backward": _weighted_merge_backward,
    "unmerge": _unmerge,
    "unmerge_backward": _unmerge_backward,
    "merge_layer_norm": _merge_layer_norm,
    "merge_layer_norm_backward": _merge_layer_norm_backward,
    "proportional_attention": _proportional_attention,
    "proportional_attention_backward": _proportional_attention_backward,
    "gumbel_assignment": _gumbel_assignment,
    "gumbel_assignment_backward": _gumbel_assignment_backward,
}
LINEAR = ("unmerge_backward", "weighted_merge_backward")
DIFFERENTIABLE = [n for n in OPS if not n.endswith("_backward") and n not in NOT_DIFFERENTIABLE]


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _layout(value: Any) -> list[tuple[Any, ...]]:
    """Returns what a fake must match: dtype, shape, and the strides of every dimension of more than one element."""
    return [
        (t.dtype, tuple(t.shape), [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()])
        for t in _as_tuple(value)
    ]


def _with_grad(args: Args) -> Args:
    """Fresh leaves; the floating tensors that the public functions let require grad do."""
    return tuple(a.detach().clone().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a for a in args)


def _inputs_with_grad(name: str, args: Args) -> Args:
    constant = {"size", "noise"}  # refused by the contracts when they require grad
    names = [a.name for a in _op(name).default._schema.arguments]
    return tuple(a if n in constant else b for n, a, b in zip(names, args, _with_grad(args), strict=True))


def test_the_table_covers_every_op() -> None:
    assert set(SAMPLES) == set(OPS)
    assert DIFFERENTIABLE, "the table is empty"
    for name in DIFFERENTIABLE:
        assert f"{name}_backward" in OPS, f"{name} has no backward op"


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_part_is_registered(name: str) -> None:
    qualified = f"alt_kernels::{name}"
    overload = _op(name).default
    assert str(overload._schema) == qualified + OPS[name].schema.removeprefix(name)
    assert torch.Tag.pt2_compliant_tag in overload.tags
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(qualified, "CompositeExplicitAutograd"), "no reference implementation"
    assert torch._library.simple_registry.singleton.find(qualified).fake_impl.kernel is not None, "no fake"
    assert _op(name) in flop_registry, "no FLOP formula"
    assert has(qualified, "Autograd") == (name not in NOT_DIFFERENTIABLE)
    # The only aliases a schema may declare are none: every op returns new memory.
    assert not overload._schema.is_mutable


@pytest.mark.parametrize("name", sorted(OPS))
def test_the_cpu_kernel_that_is_promised_is_there(name: str) -> None:
    """Otherwise ``impl="cpp"`` would run the reference, silently."""
    kernels = torch._C._dispatch_dump(f"alt_kernels::{name}").splitlines()
    on_cpu = [line for line in kernels if line.startswith("CPU:")]
    assert len(on_cpu) == (1 if name in PYTHON_ON_CPU else alt_kernels.backends()["cpp"].available), kernels
    compiled = [line for line in on_cpu if ".cpp:" in line]
    assert bool(compiled) == (name not in ONLY_PYTHON_ON_CPU and alt_kernels.backends()["cpp"].available), on_cpu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(OPS))
def test_fakes_equal_results(name: str, dtype: torch.dtype) -> None:
    """dtype, shape and strides, on CPU fakes and on meta tensors, for the registered op and for the reference."""
    for strided in (False, True):
        for args in SAMPLES[name](dtype, strided):
            real = _layout(_op(name)(*args))
            plain = _layout(OPS[name].reference(*args))
            if name in PYTHON_ON_CPU:  # on CPU the heads of a query lie beside one another
                assert [t[:2] for t in real] == [t[:2] for t in plain], "the reference"
            else:
                assert real == plain, "the reference"
            with FakeTensorMode() as mode:
                fake = _op(name)(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
            assert _layout(fake) == real, "fake tensors"
            meta = _op(name)(*(a.to("meta") if isinstance(a, Tensor) else a for a in args))
            assert _layout(meta) == plain, "meta tensors"
            assert all(t.device.type == "meta" for t in _as_tuple(meta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(OPS))
def test_opcheck_cheap_utilities(name: str, dtype: torch.dtype) -> None:
    """Schema (no hidden mutation or alias) and fake tensors on every sample, strided ones among them."""
    for strided in (False, True):
        for args in SAMPLES[name](dtype, strided):
            torch.library.opcheck(_op(name), args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", sorted(OPS))
def test_opcheck(name: str) -> None:
    """All utilities, without grad and (where there is a derivative) with it; float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        for args in itertools.islice(SAMPLES[name](dtype, False), 2):
            torch.library.opcheck(_op(name), args)
            if name in DIFFERENTIABLE or name == "unmerge_backward":
                torch.library.opcheck(_op(name), _inputs_with_grad(name, args))
            elif name not in NOT_DIFFERENTIABLE:
                utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
                torch.library.opcheck(_op(name), _inputs_with_grad(name, args), test_utils=utilities)


@pytest.mark.parametrize("name", sorted(OPS))
def test_flop_formula_counts_the_matmuls_of_the_reference(name: str) -> None:
    """Forward and backward; FlopCounterMode counts the plain-torch reference by its matmuls."""
    seen = 0
    for args in SAMPLES[name](torch.float32, False):
        with FlopCounterMode(display=False) as registered:
            _op(name)(*args)
        with FlopCounterMode(display=False) as plain:
            OPS[name].reference(*args)
        assert registered.get_total_flops() == plain.get_total_flops(), args
        seen += registered.get_total_flops()
    has_matmul = name.startswith(("bipartite", "proportional", "gumbel"))
    assert (seen > 0) == has_matmul


def test_flop_counter_sees_forward_and_backward() -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        alt_kernels.proportional_attention(q, k, v).sum().backward()
    product = 2 * 2 * 3 * 5 * 5 * 4  # 2 B H M N D
    assert counter.get_total_flops() == 2 * product + 5 * product


@pytest.mark.parametrize("name", sorted(OPS))
def test_outputs_without_a_gradient_are_marked(name: str) -> None:
    args = next(iter(SAMPLES[name](torch.float64, False)))
    results = _as_tuple(_op(name)(*_inputs_with_grad(name, args)))
    names = [r.name for r in _op(name).default._schema.returns]
    if name in NOT_DIFFERENTIABLE:
        assert not any(t.requires_grad for t in results)
    elif name in DIFFERENTIABLE:
        constant = {"merged_size", "mean", "rstd", "logsumexp", "index", "log_normalizer"}
        assert [t.requires_grad for t in results] == [n not in constant for n in names]
    else:
        assert all(t.requires_grad for t in results if t.numel())


@pytest.mark.parametrize("name", [n for n in OPS if n.endswith("_backward") and n not in LINEAR])
def test_second_derivative_raises_a_sentence(name: str) -> None:
    args = next(iter(SAMPLES[name](torch.float64, False)))
    results = _as_tuple(_op(name)(*_inputs_with_grad(name, args)))
    with pytest.raises(RuntimeError, match=f"{name.removesuffix('_backward')} has no second derivative"):
        results[0].sum().backward()


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")  # the override below
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_backward_formulas_are_the_derivative_of_the_reference(name: str) -> None:
    """The reference's formulas, which run where nothing was compiled, and the CPU kernel, against autograd."""
    formula = OPS[f"{name}_backward"].reference
    calls = []

    def reference_backward(*args: Any) -> Any:
        calls.append(name)
        return formula(*args)

    for args in SAMPLES[name](torch.float64, False):
        given = _inputs_with_grad(name, args)
        leaves = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
        # The reference differentiates every output; what the op marks as constant does not count.
        weights = [torch.randn_like(t) if t.requires_grad else None for t in _as_tuple(_op(name)(*given))]

        def gradients(results: tuple[Tensor, ...], leaves=leaves, weights=weights) -> list[Tensor | None]:
            loss = sum((t * w).sum() for t, w in zip(results, weights, strict=True) if w is not None)
            return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)

        truth = gradients(_as_tuple(OPS[name].reference(*given)))
        kernel = gradients(_as_tuple(_op(name)(*given)))
        with torch.library._scoped_library("alt_kernels", "IMPL") as scope:
            scope.impl(f"{name}_backward", reference_backward, "CPU", allow_override=True)
            plain = gradients(_as_tuple(_op(name)(*given)))
        for t, k, p in zip(truth, kernel, plain, strict=True):
            # One leaf is bfloat16: autograd of the reference rounds each of two paths to it.
            rtol = 1e-9 if t.dtype == torch.float64 else 4 * torch.finfo(t.dtype).eps
            torch.testing.assert_close(k, t, rtol=rtol, atol=rtol / 100, msg=lambda m: f"kernel: {m}")
            torch.testing.assert_close(p, t, rtol=rtol, atol=rtol / 100, msg=lambda m: f"formula: {m}")
    assert calls


@pytest.mark.parametrize("name", ["unmerge", "weighted_merge"])
def test_second_derivative_of_what_is_linear(name: str) -> None:
    """Linear both ways, so they have every derivative."""
    for x, *rest in SAMPLES[name](torch.float64, False):
        if x.numel():
            leaf = x.requires_grad_()
            assert torch.autograd.gradgradcheck(lambda t, rest=rest: _as_tuple(_op(name)(t, *rest))[0], (leaf,))


def test_registering_twice_raises() -> None:
    op = OPS["unmerge"]
    with pytest.raises(RuntimeError, match="unmerge"):
        library.register(op.schema, reference=op.reference, fake=op.fake, flops=op.flops)


def test_a_named_gpu_implementation_refuses_double_in_any_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatch would send such a call to the reference, and a named implementation runs or raises."""
    monkeypatch.setattr(library, "_triton", lambda: library.Backend(True, "as if there were a GPU"))
    sentence = "impl: 'triton' works in float32, float16 and bfloat16, got float64"
    with FakeTensorMode(), torch.device("cuda"):
        x, row, plan = torch.empty(1, 4, 3), torch.empty(3), Matching(*(torch.empty(1, n).int() for n in (4, 5, 4)))
        calls = (
            lambda: cosine_gumbel_assign(x, x[0].double(), noise=None, impl="triton"),
            lambda: cosine_gumbel_assign(x, x[0], noise=torch.empty(1, 4, 4).double(), impl="triton"),
            lambda: cosine_gumbel_assign(x, x[0], noise=None, tau=torch.empty(()).double(), impl="triton"),
            lambda: merge_layer_norm(x, x.double(), plan, None, row, row, impl="triton"),
            lambda: merge_layer_norm(x, x, plan, None, row.double(), row, impl="triton"),
            lambda: merge_layer_norm(x, x, plan, None, row, row.double(), impl="triton"),
        )
        for call in calls:
            with pytest.raises(TypeError, match=sentence):
                call()
        assert cosine_gumbel_assign(x, x[0], noise=None, impl="triton").output.shape == x.shape
