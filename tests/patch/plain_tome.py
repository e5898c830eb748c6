"""A second opinion: a block with token merging per image, in plain loops, from the equations alone.

ToMe (Bolya et al. 2023), section 3, as ALT uses it (Eq. 2): E' = E + MSA(LN(E); s), merge, + MLP(LN(E'')).
Shares no code with the package; autograd gives its gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.hosts.plain_merging import groups_of


def layer_norm(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, torch.nn.Identity):
        return x
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias


def scaled(module: Any, x: Tensor) -> Tensor:
    return x * module.gamma if hasattr(module, "gamma") else x


def attention(attn: Any, x: Tensor, size: list[float], prop_attn: bool) -> tuple[Tensor, Tensor]:
    """Self-attention of one image's tokens ``[N, C]``; also the keys' mean over heads ``[N, D]``."""
    heads, width = attn.num_heads, x.shape[1]
    packed = x @ attn.in_proj_weight.T + attn.in_proj_bias
    log_size = torch.tensor([math.log(s) if prop_attn else 0.0 for s in size], dtype=x.dtype)
    outputs, keys = [], []
    for h in range(heads):
        d = width // heads
        q, k, v = (packed[:, i * width + h * d : i * width + (h + 1) * d] for i in range(3))
        if getattr(attn, "logit_scale", None) is not None:
            q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
            scale = min(attn.logit_scale[h].item(), attn.logit_scale_max)
            scale = math.exp(scale) if scale == attn.logit_scale_max else attn.logit_scale[h].exp().squeeze()
        else:
            scale = d**-0.5
            if hasattr(attn, "ln_q"):
                q, k = layer_norm(attn.ln_q, q), layer_norm(attn.ln_k, k)
        logits = q @ k.T * scale + log_size
        y = logits.softmax(1) @ v
        if getattr(attn, "head_scale", None) is not None:
            y = y * attn.head_scale[h]
        outputs.append(y)
        keys.append(k)
    y = torch.cat(outputs, 1)
    if hasattr(attn, "ln_inner"):
        y = layer_norm(attn.ln_inner, y)
    return y @ attn.out_proj.weight.T + attn.out_proj.bias, torch.stack(keys).mean(0)


def block(module: Any, x: Tensor, size: list[float], r: int, prop_attn: bool = True) -> tuple[Tensor, list[float]]:
    y, metric = attention(module.attn, layer_norm(module.ln_1, x), size, prop_attn)
    if hasattr(module, "ln_attn"):
        y = layer_norm(module.ln_attn, y)
    x = x + scaled(module.ls_1, y)
    rows = groups_of(metric, r)
    x = torch.stack([sum(size[i] * x[i] for i in row) / sum(size[i] for i in row) for row in rows])
    size = [sum(size[i] for i in row) for row in rows]
    return x + scaled(module.ls_2, module.mlp(layer_norm(module.ln_2, x))), size


def trunk(visual: Any, image: Tensor, removed: list[int], prop_attn: bool = True) -> tuple[Tensor, list[float]]:
    """One image ``[3, H, W]`` through embedding and blocks: tokens ``[n, C]`` and their sizes."""
    x = visual._embeds(image[None])[0]
    size = [1.0] * len(x)
    for module, r in zip(visual.transformer.resblocks, removed, strict=True):
        x, size = block(module, x, size, r, prop_attn)
    return x, size


def tower(visual: Any, batch: Tensor, removed: list[int], prop_attn: bool = True) -> tuple[Tensor, Tensor]:
    """Embeddings ``[B, E]`` of a tower with 'tok' or 'avg' pooling, and the sizes ``[B, n]``."""
    outputs, sizes = [], []
    for image in batch:
        x, size = trunk(visual, image, removed, prop_attn)
        x = layer_norm(visual.ln_post, x)
        weight = torch.tensor(size[1:], dtype=x.dtype)
        pooled = x[0] if visual.pool_type == "tok" else (weight[:, None] * x[1:]).sum(0) / weight.sum()
        outputs.append(pooled @ visual.proj)
        sizes.append(size)
    return torch.stack(outputs), torch.tensor(sizes)
