"""Every kernel once on its smallest shapes, forward and backward: what compute-sanitizer watches.

Run as a script with a device ("cuda", or "cpu" for a dry run). Odd sizes, so that every mask has something to hide;
results are compared with the reference, so that a kernel that did nothing does not pass for one without errors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import alt_kernels as ak


def main(device: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(device, dtype).requires_grad_(grad)

    implementations = ["auto", *(name for name in ("triton", "cuda") if ak.backends()[name].available)]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype in dtypes:
        for impl in implementations:
            steps(normal, dtype, impl)
        print(f"{dtype}: {', '.join(implementations)}")
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")


def steps(make: Callable[..., Tensor], dtype: torch.dtype, impl: Any) -> None:
    batch, tokens, width, heads, r = 2, 37, 48, 3, 5
    tolerance = 64 * torch.finfo(dtype).eps

    def close(got: Tensor, want: Tensor, what: str) -> None:
        got, want = got.detach(), want.detach()
        off = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-6))
        if not off <= tolerance:
            raise SystemExit(f"{what} {dtype} {impl}: off by {off:.3g}, allowed {tolerance:.3g}")

    def known(call: Callable[[], Any]) -> Any:
        """An implementation may lack an op; it says so, and the others are checked."""
        try:
            return call()
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            if impl == "cuda" and "impl:" in str(error):
                return None
            raise

    k = make(batch, tokens, 3, heads, width // heads, dtype=dtype)[:, :, 1].transpose(1, 2)
    metric = make(batch, tokens, width // heads, dtype=dtype)
    plan = ak.bipartite_soft_matching(metric.float(), r, impl="reference")
    for found in (
        known(lambda: ak.bipartite_soft_matching(metric, r, impl=impl)),
        known(lambda: ak.bipartite_soft_matching_from_keys(k, r, impl=impl)),
        known(lambda: ak.bipartite_soft_matching(make(1, 601, 24, dtype=dtype), r, impl=impl)),
    ):
        if found is not None and int(found.offsets[0, -1]) != found.indices.shape[1]:
            raise SystemExit(f"matching {dtype} {impl}: no plan")
    x, y = (make(batch, tokens, width, dtype=dtype, grad=True) for _ in range(2))
    weight, bias = (make(width, grad=True) for _ in range(2))
    size = torch.arange(1, tokens + 1, device=x.device).expand(batch, -1).float()
    for what, call in {
        "merge": lambda i: ak.weighted_merge(x, plan, size, impl=i).x,
        "unmerge": lambda i: ak.unmerge(x[:, r:], plan, impl=i),
        "merge_layer_norm": lambda i: ak.merge_layer_norm(x, y, plan, size, weight, bias, impl=i).normed,
    }.items():
        result = known(lambda call=call: call(impl))
        if result is not None:
            close(result, call("reference"), what)
            result.float().square().sum().backward()
    for keys in (37, 150, 300):  # one tile, two, the online softmax
        q, kk, v = (make(1, 2, keys, 16, dtype=dtype, grad=True) for _ in range(3))
        sizes = torch.arange(keys, device=q.device).expand(1, -1).float()
        result = known(lambda q=q, kk=kk, v=v, s=sizes: ak.proportional_attention(q, kk, v, s, impl=impl))
        if result is not None:
            close(result, ak.proportional_attention(q, kk, v, sizes, impl="reference"), "attention")
            result.float().square().sum().backward()
    rows, entities = (make(n, 40, dtype=dtype, grad=True) for n in (19, 45))
    seed, tau = torch.tensor(3, device=rows.device), torch.tensor(0.5, device=rows.device, requires_grad=True)
    for hard in (True, False):
        result = known(
            lambda hard=hard: ak.cosine_gumbel_assign(rows, entities, tau=tau, hard=hard, seed=seed, impl=impl)
        )
        if result is not None:
            result.output.float().square().sum().backward()
            if not torch.isfinite(rows.grad).all():
                raise SystemExit(f"assignment {dtype} {impl}: a gradient that is not finite")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
