"""Every kernel once on its smallest shapes, forward and backward: what compute-sanitizer watches.

Run as a script with a device ("cuda", or "cpu" for a dry run) and dtypes, by default all. Odd sizes, so that every
mask has something to hide. Results and gradients are compared with the reference on the CPU, so that a kernel that did
nothing does not pass for one without errors, and hardly anybody else's kernel is watched. On a GPU every Triton kernel
that is compiled ahead of time must have been launched, and those that have two ways through in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import alt_kernels as ak

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Constants of kernels that choose between two ways through them: both have to be taken. TILES: a third tile of keys.
WAYS = (
    *(("_backward_keys", "WHOLE_HEAD"), ("_forward_resident", "TILES"), ("_assign", "SPLIT"), ("_assign", "SOFT")),
    *(("_entity_values", "HARD"), ("_entity_values", "SPARSE"), ("_spread_rows", "SHARE"), ("_reduce_rows", "MEAN")),
    *(("_prepare", "RESCALE"), ("_delta", "BOUND"), ("_delta", "SPLIT"), ("_grad_x", "SPLIT")),
    ("_merge_norm", "HAS_SIZE"),
)
Launches = list[tuple[str, dict[str, Any]]]


@contextmanager
def watched() -> Iterator[Launches]:
    """Name and constants of every Triton kernel that is launched inside, compiled or interpreted."""
    from triton.runtime import interpreter, jit

    seen: Launches = []
    run, call = jit.JITFunction.run, interpreter.GridExecutor.__call__

    def watched_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.fn.__name__, kwargs))
        return run(self, *args, **kwargs)

    def watched_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.fn.__name__, kwargs))
        return call(self, *args, **kwargs)

    jit.JITFunction.run, interpreter.GridExecutor.__call__ = watched_run, watched_call  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        jit.JITFunction.run, interpreter.GridExecutor.__call__ = run, call  # type: ignore[method-assign]


def _way(value: Any) -> bool:
    return len(value) > 2 if isinstance(value, tuple) else bool(value)


def not_launched(seen: Launches) -> list[str]:
    """Kernels of the lists AOT that were not launched, and ways through kernels that were not taken."""
    from tools import aot

    every = {case.kernel.__name__ for stem in aot.modules() for case in aot.cases(stem)}
    missing = sorted(every - {name for name, _ in seen})
    for kernel, constant in WAYS:
        taken = {_way(constants[constant]) for name, constants in seen if name == kernel}
        missing += [f"{kernel} with {constant}={way}" for way in (True, False) if way not in taken]
    return missing


def main(device: str, *dtypes: str) -> None:
    names = [name for name in ("triton", "cuda") if device == "cuda" and ak.backends()[name].available] or ["auto"]
    with watched() as seen:
        for dtype in [getattr(torch, name) for name in dtypes] or DTYPES:
            for impl in names:
                steps(device, dtype, impl)
            print(f"{dtype}: {', '.join(names)}", flush=True)
        if device == "cuda":
            torch.cuda.synchronize()
    if "triton" in names and not dtypes and (missing := not_launched(seen)):
        raise SystemExit(f"not launched: {', '.join(missing)}")
    print("every kernel ran")


class Inputs:
    """Random tensors that lie on the CPU in float64, and as a kernel gets them."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.generator).to(self.dtype)


def steps(device: str, dtype: torch.dtype, impl: Any) -> None:
    batch, tokens, width, heads, r = 2, 37, 48, 3, 5
    make = Inputs(device, dtype)

    def known(call: Callable[[], Any]) -> Any:
        """An implementation may lack an op; it says so, and the others are checked."""
        try:
            return call()
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            if impl == "cuda" and "impl:" in str(error):
                return None
            raise

    def compare(what: str, call: Callable[..., Tensor], *leaves: Tensor) -> None:
        """``call(impl, place, *leaves)`` and its gradients against the float64 reference; ``place`` moves constants."""

        def answers(name: Any, place: str, kind: torch.dtype) -> list[Tensor] | None:
            given = [t.detach().to(place, kind).requires_grad_() for t in leaves]
            out = known(lambda: call(name, lambda t: t.to(place), *given))
            if out is None:
                return None
            out.float().square().sum().backward()
            return [out.detach(), *(t.grad for t in given)]

        if (mine := answers(impl, device, dtype)) is None:
            return
        for got, want in zip(mine, answers("reference", "cpu", torch.float64) or [], strict=True):
            close(got.cpu(), want, f"{what} {dtype} {impl}")

    # Few images in one program each, and many tokens in tiles; a metric, and keys of several heads.
    keys = make.normal(batch, tokens, 3, heads, width // heads)[:, :, 1].transpose(1, 2)
    for metric in (keys[:, 0], make.normal(1, 601, 24)):
        found = known(lambda m=metric: ak.bipartite_soft_matching(m.to(device), r, impl=impl))
        is_plan(found, f"matching {dtype} {impl}")
    is_plan(known(lambda: ak.bipartite_soft_matching_from_keys(keys.to(device), r, impl=impl)), f"keys {dtype} {impl}")
    plan = ak.bipartite_soft_matching(keys[:, 0].float(), r, impl="reference")
    sizes = torch.arange(1, tokens + 1).expand(batch, -1).float()
    x, y = make.normal(batch, tokens, width), make.normal(batch, tokens, width)
    weight, bias = make.normal(width), make.normal(width)

    def moved(place: Callable[[Tensor], Tensor]) -> ak.Matching:
        return ak.Matching(*map(place, plan))

    compare("merge", lambda i, p, x: ak.weighted_merge(x, moved(p), p(sizes), impl=i).x, x)
    compare("unmerge", lambda i, p, x: ak.unmerge(x, moved(p), impl=i), x[:, r:])
    for given in (sizes, None):
        compare(
            "merge_layer_norm",
            lambda i, p, x, y, w, b, s=given: sum(
                ak.merge_layer_norm(x, y, moved(p), None if s is None else p(s), w, b, impl=i)[:2]
            ),
            *(x, y, weight, bias),
        )
    # One tile, two, three (200, on sm_90 260), and more than fit; a derivative in one kernel, and in two.
    for count in (37, 150, 200, 260, 300):
        qkv = [make.normal(1, 2, count, 16) for _ in range(3)]
        mask = torch.arange(count).expand(1, -1).float()
        compare("attention", lambda i, p, q, k, v, s=mask: ak.proportional_attention(q, k, v, p(s), impl=i), *qkv)
    seed = torch.tensor(3)
    # One tile of entities in every table, a few, several programs for the entities of a row, and so many that most
    # tiles hold no choice.
    for rows, entities in ((19, 20), (19, 45), (19, 500), (5, 9000)):
        given = [make.normal(n, 40) for n in (rows, entities)]
        for hard in (True, False) if entities < 9000 else (True,):

            def assign(i: Any, p: Any, x: Tensor, e: Tensor, tau: Tensor, hard: bool = hard) -> Tensor:
                return ak.cosine_gumbel_assign(x, e, tau=tau, hard=hard, seed=p(seed), impl=i).output

            compare(f"assignment K={entities}", assign, *given, torch.tensor(0.5))


def close(got: Tensor, want: Tensor, what: str) -> None:
    tolerance = 64 * torch.finfo(got.dtype).eps
    off = float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-6))
    if not off <= tolerance:
        raise SystemExit(f"{what}: off by {off:.3g}, allowed {tolerance:.3g}")


def is_plan(found: ak.Matching | None, what: str) -> None:
    if found is not None and found.indices.cpu().sort(1).values.tolist() != [
        list(range(found.indices.shape[1])) for _ in found.indices
    ]:
        raise SystemExit(f"{what}: no plan")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cuda"]))
