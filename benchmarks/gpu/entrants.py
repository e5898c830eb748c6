"""Rivals that only a GPU has: fused attention of other libraries, and the assignment as cuBLAS and one row kernel.

Each builder returns a function or raises; what raises is reported as absent with its reason. Outside code is run
beside ours, as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rivals
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
#: Others' launchers: what they do in a capture is not known, so they are timed as they are launched.
FOREIGN = frozenset({"xformers", "FlashAttention 4"})
EASIER_NORM, ROW_KERNEL, FLEX = "residual and LayerNorm, nothing merged", "cuBLAS and one row kernel", "FlexAttention"


def compiles(name: str) -> bool:
    """Returns True if an entrant's own compiler runs before its first call, which takes seconds."""
    return "compiled" in name or name in (EASIER_NORM, ROW_KERNEL, FLEX, "FlashAttention 4")


def compiled(function: Callable[..., Any], dry: bool) -> Callable[..., Any]:
    """`torch.compile` as one graph; a dry run takes the function itself, since compiling is what takes the time."""
    return function if dry else torch.compile(function, dynamic=False, fullgraph=True)


def sdpa(backend: SDPBackend, biased: bool) -> Attention:
    """PyTorch's attention by one backend; the bias in the dtype of q: cuDNN misreads another (pytorch#191612)."""

    def run(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
        mask = None
        if biased:
            # Efficient attention wants rows of a multiple of 8: the mask is a slice of a wider one.
            keys = k.shape[2]
            wide = torch.empty(q.shape[0], 1, 1, -(-keys // 8) * 8, dtype=q.dtype, device=q.device)
            mask = wide[..., :keys].copy_(size.log()[:, None, None, :]).expand(*q.shape[:3], keys)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return run


def flex(dry: bool) -> Attention:
    """FlexAttention with the bias as its `score_mod`, compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    def run(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
        bias = size.log()
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[b, j])

    return compiled(run, dry)


def xformers() -> Attention:
    from xformers.ops import memory_efficient_attention

    def run(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
        keys = k.shape[2]
        wide = torch.empty(*q.shape[:3], -(-keys // 8) * 8, dtype=q.dtype, device=q.device)
        bias = wide[..., :keys].copy_(size.log()[:, None, None, :].expand(*q.shape[:3], keys))
        heads_last = (t.transpose(1, 2) for t in (q, k, v))
        return memory_efficient_attention(*heads_last, attn_bias=bias).transpose(1, 2)

    return run


def flash_attention_4() -> Attention:
    """FA4's `score_mod`: the sizes as an auxiliary tensor, read per key."""
    import cutlass.cute as cute
    from flash_attn.cute.interface import flash_attn_func

    @cute.jit
    def add_bias(score: Any, b: Any, h: Any, i: Any, j: Any, *rest: Any) -> Any:
        bias = rest[-1][0]
        return score + bias[b[0], j[0]]

    def run(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> Tensor:
        heads_last = (t.transpose(1, 2).contiguous() for t in (q, k, v))
        found = flash_attn_func(*heads_last, score_mod=add_bias, aux_tensors=[size.log()])
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    return run


def attention_rivals(device: torch.device, dry: bool) -> tuple[dict[str, Attention], dict[str, str]]:
    """By name, and why the others cannot even be built. (What fails when called is found by the gate.)"""

    def ours_of(function: Callable[..., Tensor]) -> Attention:
        return lambda q, k, v, size: function(q, k, v, size[..., None].to(q.dtype))

    found: dict[str, Attention] = {
        "plain torch": ours_of(rivals.attention),
        "plain torch, compiled": ours_of(compiled(rivals.attention, dry)),
    }
    if device.type == "cuda":
        found |= {
            "SDPA efficient, mask": sdpa(SDPBackend.EFFICIENT_ATTENTION, True),
            "SDPA cuDNN, mask": sdpa(SDPBackend.CUDNN_ATTENTION, True),
            "SDPA flash, no bias": sdpa(SDPBackend.FLASH_ATTENTION, False),
            "SDPA cuDNN, no bias": sdpa(SDPBackend.CUDNN_ATTENTION, False),
        }
    else:
        found |= {"SDPA, mask": sdpa(SDPBackend.MATH, True), "SDPA, no bias": sdpa(SDPBackend.MATH, False)}
    absent = {}
    others = {FLEX: lambda: flex(dry), "xformers": xformers, "FlashAttention 4": flash_attention_4}
    for name, builder in others.items():
        try:
            found[name] = builder()
        except Exception as error:
            absent[name] = reason(error)
    return found, absent


def row_kernel(dry: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
    """cuBLAS for the cosines and one fused kernel over rows for noise and argmax, then a gather."""

    def choose(logits: Tensor, tau: float) -> Tensor:
        noise = -torch.log(-torch.log1p(-torch.rand_like(logits, dtype=torch.float32)))
        return (logits.float() / tau + noise).argmax(-1)

    fused = compiled(choose, dry)
    unit = compiled(lambda x: F.normalize(x, dim=-1), dry)

    def run(x: Tensor, entities: Tensor, tau: float) -> Tensor:
        return entities[fused(unit(x) @ unit(entities).T, tau)]

    return run


def reason(error: Exception) -> str:
    """One line: the last one that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"[:200]
