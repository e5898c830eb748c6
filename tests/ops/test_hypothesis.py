"""Random calls by the thousand, right and wrong ones: a sound result or one sentence, and never a crash.

The calls are made by this file run as a script, in a process of its own, so that a segmentation fault in a kernel
is a failure with an exit code and not the end of the test run. ``python tests/ops/test_hypothesis.py 5000`` makes
more of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from alt_kernels import (
    Matching,
    bipartite_soft_matching,
    cosine_gumbel_assign,
    merge_layer_norm,
    proportional_attention,
    source_map,
    testing,
    unmerge,
    weighted_merge,
)

EXAMPLES = 300  # for each of the six properties
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
Draw = Callable[..., Any]


def test_random_calls_never_crash() -> None:
    run = subprocess.run([sys.executable, __file__, str(EXAMPLES)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"exit code {run.returncode}\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
    assert run.stdout.split()[-1] == "done"
    calls, sound, refused = (int(n) for n in run.stdout.split()[:3])
    assert calls == sound + refused
    # The mixture is worth something only if both kinds are many.
    assert sound > EXAMPLES
    assert refused > EXAMPLES


COUNTS = {"calls": 0, "sound": 0, "refused": 0}


def _mostly(draw: Draw, right: Any, *wrong: Any) -> Any:
    """``right`` in nine draws of ten."""
    return right if draw(st.integers(0, 9)) or not wrong else draw(st.sampled_from(wrong))


@st.composite
def tensors(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype | None = None, wild: bool = True) -> Tensor:
    """Of nearly this shape and dtype, with values from nothing special to NaN, in any memory layout."""
    if draw(st.integers(0, 19)) == 0:
        spoiled = list(shape)
        if spoiled and draw(st.booleans()):
            spoiled[draw(st.integers(0, len(spoiled) - 1))] += draw(st.sampled_from([-1, 1]))
        elif draw(st.booleans()):
            spoiled.append(1)
        else:
            spoiled = spoiled[1:]
        shape = tuple(max(n, 0) for n in spoiled)
    dtype = _mostly(draw, dtype or draw(st.sampled_from(FLOATS)), torch.int64, torch.bool, torch.complex64)
    generator = testing.generator(draw(st.integers(0, 1 << 20)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "normal", "exact", "zero row", "nan", "inf", "huge", "tiny"]))
    if kind == "exact":
        x = x.round()
    if wild and x.numel():
        flat = x.view(-1)
        place = draw(st.integers(0, x.numel() - 1))
        if kind == "nan":
            flat[place] = torch.nan
        elif kind == "inf":
            flat[place] = draw(st.sampled_from([torch.inf, -torch.inf]))
        elif kind == "zero row":
            x.view(-1, shape[-1] if shape else 1)[0] = 0
        elif kind in ("huge", "tiny"):
            x = x * (1e300 if kind == "huge" else 1e-300)
            if dtype.is_floating_point and dtype != torch.float64:
                limit = torch.finfo(dtype)
                x = x.sign() * (limit.max if kind == "huge" else limit.smallest_normal) / 2
    x = x.to(dtype)
    layout = draw(st.sampled_from(["contiguous", "spread", "transposed", "broadcast"]))
    if layout == "spread":
        x = torch.stack([x, x], -1)[..., 0]
    elif layout == "transposed" and x.dim() > 1:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout == "broadcast" and x.dim() > 1 and shape[0]:
        x = x[:1].expand(shape)
    if draw(st.integers(0, 2)) == 0 and x.is_floating_point():
        x = x.detach().requires_grad_()
    return x


@st.composite
def sizes(draw: Draw, batch: int, tokens: int) -> Any:
    if draw(st.integers(0, 2)) == 0:
        return _mostly(draw, None, 1.0, "ones")
    size = testing.random_size(batch, tokens, draw(st.integers(0, 99)), integer=True)
    if size.numel():
        bad = draw(st.sampled_from([None, None, None, 0.0, -1.0, torch.nan, torch.inf]))
        if bad is not None:
            size.view(-1)[draw(st.integers(0, size.numel() - 1))] = bad
    wrong = (size.double(), size[..., :-1], size.requires_grad_(False).clone().requires_grad_(), size.int())
    return _mostly(draw, size.detach(), *wrong)


@st.composite
def plans(draw: Draw, batch: int, tokens: int) -> Any:
    """A plan of this problem, of another one, or three tensors of integers that are none."""
    r = draw(st.integers(0, max((tokens - 1) // 2, 0)))
    protected = min(1, tokens)
    kind = _mostly(draw, "right", "other", "broken", "broken", "random", "not a plan")
    if kind == "not a plan":
        return draw(st.sampled_from([None, (), (1, 2, 3), [torch.zeros(1)] * 3]))
    if kind == "other":
        batch, tokens = batch + draw(st.integers(0, 1)), tokens + draw(st.integers(0, 2))
    if kind == "random":
        values = testing.generator(draw(st.integers(0, 99)))
        high = draw(st.sampled_from([tokens + 1, tokens + 9, 2**31 - 1]))
        low = draw(st.sampled_from([0, -1, -(2**31)]))
        return Matching(
            *(
                torch.randint(low, high, (batch, n), generator=values, dtype=torch.int32)
                for n in (tokens, tokens - r + 1, tokens)
            )
        )
    plan = testing.random_plan(batch, tokens, r, draw(st.integers(0, 99)), num_protected=protected)
    if kind == "broken":
        field = draw(st.sampled_from(Matching._fields))
        value = getattr(plan, field).clone()
        if value.numel():
            value.view(-1)[draw(st.integers(0, value.numel() - 1))] = draw(
                st.sampled_from([-1, 0, 1, tokens, tokens - r, 10**6, 2**31 - 1, -(2**31)])
            )
        plan = plan._replace(**{field: _mostly(draw, value, value.long(), value[:, :-1], value.flatten())})
    return plan


def _outputs(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, after a backward where one is possible; None where it raised as it should."""
    try:
        result = function(*arguments, **options)
        total = [t.sum() for t in _outputs(result) if t.requires_grad]
        if total:
            leaves = [t for t in (*arguments, *options.values()) if isinstance(t, Tensor) and t.requires_grad]
            for leaf, grad in zip(leaves, torch.autograd.grad(sum(total), leaves, allow_unused=True), strict=True):
                assert grad is None or (grad.shape == leaf.shape and grad.dtype == leaf.dtype)
        return result
    except NotImplementedError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        text = str(error).strip()
    assert text, "an error without words"
    assert "\n" not in text, text
    assert len(text) < 300, text
    return None


def _contradicts_itself(plan: Any) -> bool:
    """Values in range that are not the inverse of one another, which a kernel may notice or not."""
    if not isinstance(plan, Matching):
        return False
    try:
        return any(
            not torch.equal(row[indices.long()], torch.repeat_interleave(offsets.diff()).int())
            for indices, offsets, row in zip(*plan, strict=True)
        )
    except (RuntimeError, IndexError, ValueError):
        return False


def _both(function: Callable[..., Any], *arguments: Any, agree: bool = True, **options: Any) -> tuple[Any, Any]:
    """auto and reference: both raise or neither does, with results of the same shapes and dtypes."""
    auto = _call(function, *arguments, **options)
    plain = _call(function, *arguments, **options, impl="reference")
    COUNTS["calls"] += 1
    COUNTS["refused" if auto is None else "sound"] += 1
    assert (auto is None) == (plain is None) or not agree, "one implementation takes what the other refuses"
    if auto is not None and plain is not None:
        for a, b in zip(_outputs(auto), _outputs(plain), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return auto, plain


batches, tokens_, channels = st.integers(0, 3), st.integers(0, 13), st.integers(0, 5)


@given(st.data())
def matching(data: st.DataObject) -> None:
    draw = data.draw
    batch, tokens = draw(batches), draw(tokens_)
    metric = draw(tensors((batch, tokens, draw(channels))))
    protected = _mostly(draw, min(draw(st.integers(0, 3)), tokens), -1, tokens + 1, True, 1.5, None)
    limit = (tokens - protected) // 2 if isinstance(protected, int) else 3
    r = _mostly(draw, draw(st.integers(0, max(limit, 0))), -1, limit + 1, 2**40, True, 1.0, "2", None)
    for plan in _both(bipartite_soft_matching, metric, r, num_protected=protected):
        if plan is not None:
            testing.assert_valid_plan(plan, *metric.shape[:2], r, protected)


@given(st.data())
def merging(data: st.DataObject) -> None:
    draw = data.draw
    batch, tokens = draw(batches), draw(tokens_)
    plan = draw(plans(batch, tokens))
    x, size = draw(tensors((batch, tokens, draw(channels)))), draw(sizes(batch, tokens))
    sound = not _contradicts_itself(plan)
    auto, plain = _both(weighted_merge, x, plan, size, agree=sound)
    if auto is not None and sound:
        testing.assert_same_bits(auto.size.isfinite(), plain.size.isfinite())
        if size is None or size.isfinite().all():
            given_size = torch.ones(x.shape[:2]) if size is None else size
            assert torch.equal(auto.size.sum(1), given_size.sum(1)), "small integers add up exactly"


@given(st.data())
def unmerging(data: st.DataObject) -> None:
    draw = data.draw
    batch, tokens = draw(batches), draw(tokens_)
    plan = draw(plans(batch, tokens))
    rows = plan.offsets.shape[-1] - 1 if isinstance(plan, Matching) else 3
    x = draw(tensors((batch, max(rows, 0), draw(channels))))
    auto, plain = _both(unmerge, x, plan, agree=not _contradicts_itself(plan))
    if auto is not None and plain is not None:
        testing.assert_same_bits(auto, plain)
    chain = [plan, draw(plans(batch, max(rows, 0)))]
    result = _call(source_map, draw(st.sampled_from([chain, chain[:1], [], plan, None])))
    assert result is None or result.dtype == torch.int64


@given(st.data())
def merging_with_norm(data: st.DataObject) -> None:
    draw = data.draw
    batch, tokens, width = draw(batches), draw(tokens_), draw(channels)
    shape = (batch, tokens, width)
    parameters = [_mostly(draw, draw(st.none() | tensors((width,))), 1.0) for _ in range(2)]
    eps = _mostly(draw, 1e-5, 0, -1.0, float("nan"), float("inf"), 10**400, True, "small")
    x, residual, plan = draw(tensors(shape)), draw(tensors(shape)), draw(plans(batch, tokens))
    size, agree = draw(sizes(batch, tokens)), not _contradicts_itself(plan)
    auto, _ = _both(merge_layer_norm, x, residual, plan, size, *parameters, eps, agree=agree)
    if auto is not None:
        assert auto.x.shape == auto.normed.shape == (*auto.size.shape, width)


@given(st.data())
def attention(data: st.DataObject) -> None:
    draw = data.draw
    batch, heads, queries, keys, depth = (draw(st.integers(0, n)) for n in (2, 2, 5, 6, 5))
    dtype = draw(st.sampled_from(FLOATS))
    q = draw(tensors((batch, heads, queries, depth), dtype))
    k, v = (draw(tensors((batch, heads, keys, depth), dtype)) for _ in range(2))
    scale = _mostly(draw, None, 0.0, -2.0, 1e30, float("inf"), float("nan"), "1", True)
    size = draw(sizes(batch, keys))
    auto, _ = _both(proportional_attention, q, k, v, size, scale=scale)
    if auto is None or scale is not None or not (size is None or (size.isfinite() & (size >= 0)).all()):
        return
    if all((t.abs() < 1e4).all() for t in (q, k, v)):
        assert auto.isfinite().all(), "finite keys and values give finite results"


@given(st.data())
def assignment(data: st.DataObject) -> None:
    draw = data.draw
    lead = draw(st.sampled_from([(), (2,), (0,), (1, 2)]))
    rows, count, depth = draw(st.integers(0, 6)), draw(st.integers(0, 9)), draw(channels)
    x, entities = draw(tensors((*lead, rows, depth))), draw(tensors((count, depth)))
    tau = _mostly(draw, 0.5, 0, -1.0, float("nan"), float("inf"), 10**400, 1e-60, True, None)
    if draw(st.booleans()) and isinstance(tau, float):
        tau = torch.tensor(tau, dtype=draw(st.sampled_from(FLOATS)), requires_grad=draw(st.booleans()))
    noise = draw(st.sampled_from(["gumbel", "gumbel", None, "tensor", "normal", 3]))
    if noise == "tensor":
        noise = draw(tensors((*lead, rows, count)))
    seed = torch.tensor(draw(st.integers(-(2**63), 2**63 - 1))) if noise == "gumbel" else None
    seed = _mostly(draw, seed, 3, torch.tensor(1.0), torch.tensor([1, 2]))
    hard = draw(st.booleans())
    auto, _ = _both(cosine_gumbel_assign, x, entities, tau=tau, hard=hard, noise=noise, seed=seed)
    if auto is not None:
        assert auto.index.shape == x.shape[:-1]
        if auto.index.numel():
            assert auto.index.min() >= 0
            assert auto.index.max() < count
        if hard:
            testing.assert_same_bits(auto.output.detach(), entities.detach().to(auto.output.dtype)[auto.index])


if __name__ == "__main__":
    torch.set_num_threads(1)
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES
    options = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    for check in (matching, merging, unmerging, merging_with_norm, attention, assignment):
        options(check)()
    print(*COUNTS.values(), "done")
