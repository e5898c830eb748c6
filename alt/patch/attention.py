"""Self-attention of a block with token sizes, and the keys that matching compares.

Two paths with the same result. Fused: the module's weights feed ``proportional_attention``, and the keys are the
very ones it used. Unfused, through the module's own call, wherever the module carries hooks or is a wrapper: the
sizes go in as an additive mask, and the keys come from a projection of their own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from alt_kernels import proportional_attention

Kind = Literal["multihead", "open_clip"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def qualified_name(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its class's forward (hooks, or a forward set on it)."""
    return any(getattr(module, name, None) for name in _HOOKS) or "forward" in module.__dict__


def attention_kind(attn: nn.Module, *, packed: bool = True) -> Kind:
    """Which signature an attention module has, seen through LoRA wrappers.

    ``packed`` asks for one packed projection of query, key and value, as self-attention has.

    Raises:
        TypeError: it is of a kind whose keys and masks are not known here.
    """
    base = _base_layer(attn)
    multihead = isinstance(base, nn.MultiheadAttention)
    if not multihead and not _is_open_clip_attention(base):
        raise TypeError(
            "patching supports blocks with torch.nn.MultiheadAttention or open_clip's Attention, bare or in a "
            f"peft LoRA wrapper; got {qualified_name(attn)}, whose key projection is unknown"
        )
    if multihead and (base.bias_k is not None or base.add_zero_attn or not base.batch_first):
        raise TypeError(
            "patching supports nn.MultiheadAttention with batch_first=True, without add_bias_kv and "
            "add_zero_attn; this one has another layout"
        )
    if packed and base.in_proj_weight is None:
        raise TypeError(
            f"patching supports self-attention with one packed in_proj_weight; this {qualified_name(base)} "
            "projects query, key and value apart"
        )
    return "multihead" if multihead else "open_clip"


def attend(
    attn: nn.Module, x: Tensor, size: Tensor | None, want_keys: bool, *, names_keys: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Self-attention of ``x`` ``[B, N, C]`` with key sizes ``[B, N]`` or None: ``(y [B, N, C], keys)``.

    ``keys`` ``[B, H, N, D]`` are after q/k normalisation, as attention uses them, and without gradient; None unless
    asked for. ``names_keys``: the block's host passes keys and values beside the queries (what a pre-hook sees, and
    may change one of).
    """
    kind = attention_kind(attn)
    if _fusable(attn, kind):
        fused = _fused_multihead if kind == "multihead" else _fused_open_clip
        return fused(attn, x, size, want_keys)
    # The keys first: some wrappers swap their weights for the length of their call.
    keys = _projected_keys(attn, x) if want_keys else None
    return _through_own_call(attn, kind, x, size, names_keys), keys


def _fusable(attn: Any, kind: Kind) -> bool:
    """Whether reading the module's weights is all that its own call would do."""
    exact = type_before_parametrizations(attn)  # parametrized weights are read by attribute, as the host does
    if has_hooks(attn):
        return False
    if kind == "multihead":
        return exact is nn.MultiheadAttention and not (attn.training and attn.dropout > 0)
    # The drop-out of attention weights is left to the host, as are classes derived from its own.
    return _is_open_clip_name(exact) and not (attn.training and attn.attn_drop.p > 0)


def _is_open_clip_name(cls: type) -> bool:
    # By name: no import of open_clip is needed, and both of its generations are meant.
    return cls.__module__ == "open_clip.transformer" and cls.__qualname__ == "Attention"


def _is_open_clip_attention(module: nn.Module) -> bool:
    return any(_is_open_clip_name(cls) for cls in type(module).__mro__)


def _heads(packed: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, N, 3 C]`` to query, key and value ``[B, H, N, D]``, all views."""
    batch, tokens, width = packed.shape
    q, k, v = packed.view(batch, tokens, 3, num_heads, width // (3 * num_heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _fused_multihead(attn: Any, x: Tensor, size: Tensor | None, want_keys: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = _heads(F.linear(x, attn.in_proj_weight, attn.in_proj_bias), attn.num_heads)
    y = proportional_attention(q, k, v, size).transpose(1, 2).reshape(x.shape)
    # As nn.MultiheadAttention does it: out_proj is read, never called.
    y = F.linear(y, attn.out_proj.weight, attn.out_proj.bias)
    return y, k.detach() if want_keys else None


def _fused_open_clip(attn: Any, x: Tensor, size: Tensor | None, want_keys: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = _heads(F.linear(x, attn.in_proj_weight, attn.in_proj_bias), attn.num_heads)
    if attn.logit_scale is not None:
        # Scaled cosine attention (Swin v2): exp(logit_scale) takes the place of 1 / sqrt(D).
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        q = q * torch.clamp(attn.logit_scale, max=attn.logit_scale_max).exp()
        scale = 1.0
    else:
        q, k, scale = attn.ln_q(q), attn.ln_k(k), attn.scale
    # Norms and scales in float32 beside a bfloat16 projection: attention works in the projection's dtype.
    y = proportional_attention(q.to(v.dtype), k.to(v.dtype), v, size, scale=scale)
    if attn.head_scale is not None:
        y = y * attn.head_scale
    y = attn.ln_inner(y.transpose(1, 2).reshape(x.shape))
    return attn.out_drop(attn.out_proj(y)), k.detach() if want_keys else None


def _through_own_call(attn: Any, kind: Kind, x: Tensor, size: Tensor | None, names_keys: bool) -> Tensor:
    bias = key_bias(size, x.dtype)
    if kind == "multihead":
        mask = {} if bias is None else {"key_padding_mask": bias}
        return attn(x, x, x, need_weights=False, **mask)[0]
    # Four dimensions: the released class would take three for [B * H, N, N].
    sources = {"k_x": x, "v_x": x} if names_keys else {}
    return attn(x, **sources, attn_mask=None if bias is None else bias[:, None, None, :])


def key_bias(size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """log s ``[B, N]`` in the dtype of the queries, what modules take as an additive mask; None without sizes."""
    return None if size is None else size.to(torch.promote_types(size.dtype, dtype)).log().to(dtype)


def _projected_keys(attn: Any, x: Tensor) -> Tensor:
    """Keys from a projection of their own, for modules whose keys stay inside their call."""
    base = _base_layer(attn)
    with torch.no_grad():
        weight = base.in_proj_weight
        if type(weight).__name__ == "DTensor":
            raise RuntimeError(
                "a patched block's attention was sharded by itself (fully_shard on the attention module), so "
                "its keys cannot be read for matching; shard whole blocks instead"
            )
        for delta in _lora_deltas(attn):
            weight = weight + delta.to(weight.dtype)
        width = weight.shape[0] // 3  # rows of the packed projection: queries, keys, values
        key = slice(width, 2 * width)
        bias = base.in_proj_bias
        k = F.linear(x, weight[key], None if bias is None else bias[key])
        k = k.view(*x.shape[:2], base.num_heads, -1).transpose(1, 2)
        if getattr(base, "logit_scale", None) is not None:
            k = F.normalize(k, dim=-1)
        elif hasattr(base, "ln_k"):
            k = base.ln_k.forward(k)  # not the call: its hooks fire once, in the attention itself
        return k


def _base_layer(attn: Any) -> Any:
    """The module under LoRA wrappers of peft, or the module itself."""
    while type(attn).__module__.startswith("peft.tuners.lora") and hasattr(attn, "base_layer"):
        attn = attn.base_layer
    return attn


def _lora_deltas(attn: Any) -> list[Tensor]:
    """What the active LoRA adapters add to the packed input projection of the module inside."""
    deltas = []
    while type(attn).__module__.startswith("peft.tuners.lora") and hasattr(attn, "base_layer"):
        ours = getattr(attn, "parameter_name", "in_proj_weight") == "in_proj_weight"
        if ours and not attn.disable_adapters and not attn.merged:
            deltas += [attn.get_delta_weight(name) for name in attn.active_adapters if name in attn.lora_A]
        attn = attn.base_layer
    return deltas
