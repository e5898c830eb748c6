"""Heat maps of a text over a frame: similarities and gradients of tokens, painted onto the patches they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alt.hosts import Host
from alt.models.modes import evaluation_mode
from alt.models.video_model import VideoModel
from alt_kernels import source_map

from .explanation import Explanation, as_clip
from .regions import region_map

__all__ = ["gradient_heat_map", "paint", "peak_inside", "text_heat_map", "text_of"]

Heat = NDArray[np.float32]


def paint(values: Tensor, source: Tensor, grid: tuple[int, int]) -> Heat:
    """Paints values of tokens on the patches: ``heat[t, y, x] = values[t, source[t, 1 + y w + x]]``.

    Args:
        values: ``[T, n]``. source: int ``[T, N]``. grid: (h, w).

    Returns:
        float32 ``[T, h, w]``, constant over the patches of a region.
    """
    rows = values.detach().float().cpu().numpy()
    return np.stack([row[region_map(where, grid)] for row, where in zip(rows, source, strict=True)])


def text_of(model: VideoModel, name: str) -> Tensor:
    """Returns the embedding ``[d]`` that a model holds for a text: an entity of its corpus or one of its classes.

    Raises:
        ValueError: it has neither of that name; the message lists the nearest names.
    """
    corpus, alignment = getattr(model, "corpus", None), getattr(model, "alignment", None)
    units = [] if corpus is None else list(corpus.units)
    if name in units and isinstance(getattr(alignment, "entities", None), Tensor):
        return alignment.entities[units.index(name)]  # type: ignore[union-attr]
    classes = list(model.classes) if getattr(model.head, "kind", "") != "linear" else []
    if name in classes:
        return model.head.embeddings[classes.index(name)]
    if name in model.classes:
        raise ValueError(f"text: a linear head has no text embedding of its class {name!r}")
    near = difflib.get_close_matches(name, [*units, *classes], 3, 0.5)
    hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
    raise ValueError(f"text: {name!r} is neither an entity nor a class of this model{hint}")


def text_heat_map(explanation: Explanation, text: Tensor) -> Heat:
    """Maps the cosine of every region with a text: ``heat[t, patch] = cos(x_region(patch), text)``.

    Args:
        explanation: of the clip. text: ``[d]``, of :func:`text_of` or of a text encoder.

    Returns:
        float32 ``[T, h, w]`` in [-1, 1].

    Source: the stand-in for gScoreCAM that MAXI (arXiv 2303.08914) uses: token-text similarity.
    """
    text = _vector(text, explanation.x.shape[-1])
    cosine = F.normalize(explanation.x, dim=-1) @ F.normalize(text.float().cpu(), dim=-1)
    return paint(cosine, explanation.source, explanation.grid)


def gradient_heat_map(model: VideoModel, clip: Tensor, text: Tensor, channels: int | None = None) -> Heat:
    r"""Maps the patches that make some token of the frame like ``text``, before the last attention mixes them.

    With a the input of the last block's attention (after its norm), g the gradient of the frame's score

    .. math:: s = \frac1\lambda \log \sum_i \exp(\lambda \cos(x_i, \mathrm{text})), \qquad
              h_i = \frac{1}{\mathrm{size}_i} \sum_{c \in \mathrm{top}} \max(0,\, g_{ic}\, a_{ic})

    The sum runs over the ``channels`` with the largest total over the frame: like gScoreCAM it trusts the channels
    that the gradient ranks first. Division by the size makes a region's heat that of one of its patches.

    Args:
        model: any video model. clip: as in :func:`~alt.visualize.explain`. text: ``[d]``.
        channels: how many of the tower's channels are kept; None: half of them.

    Returns:
        float32 ``[T, h, w]``, >= 0; the largest value of each frame is 1 (or all are 0).

    Gradients are taken inside ``torch.no_grad`` and ``torch.inference_mode`` too.

    Raises:
        TypeError, ValueError: as ``explain``; ``channels`` is not in [1, width]; the model was made under
            ``torch.inference_mode``.

    Source: the idea of gScoreCAM (Chen et al., ACCV 2022), without its masked forward passes that weigh channels.
    """
    clips = as_clip(model, clip)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("model: expected one made outside torch.inference_mode, whose tensors have no gradients")
    encoder = model.backbone
    host, tower, grid = encoder.host, encoder.tower, encoder.grid
    text = _vector(text, model.width).to(clips)
    width, protected = host.width(tower), host.num_protected(tower)
    kept = max(1, width // 2) if channels is None else channels
    if isinstance(kept, bool) or not isinstance(kept, int) or not 1 <= kept <= width:
        raise ValueError(f"channels: expected a number from 1 to {width}, got {channels!r}")
    frames, joint = clips[0], model.tower_frames is None
    if model.tower_frames == 1:
        frames = frames[len(frames) // 2 :][:1]
    with torch.inference_mode(False), evaluation_mode(model), _watching(host, tower) as taken, torch.enable_grad():
        frames, text = frames.clone(), text.clone()  # tensors made in inference mode are not allowed in a graph
        x, call = encoder.handle.encode(frames, len(frames) if joint else 1)
        x = F.normalize(host.project(tower, x, call.size), dim=-1)
        scale = model.logit_scale.to(x)
        score = (scale * (x @ F.normalize(text, dim=-1))).logsumexp(1) / scale
        activation = taken[-1]
        (gradient,) = torch.autograd.grad(score.sum(), activation)
    share = (activation.detach() * gradient).float().clamp_min(0)
    share[:, :protected] = 0  # class tokens and registers are no place
    order = share.sum(1)
    best = torch.zeros_like(order).scatter_(1, order.topk(kept, 1).indices, 1.0)
    heat = (share * best[:, None]).sum(-1)
    plans = [plan for plan in call.matchings[:-1] if plan is not None]
    tokens = protected + grid[0] * grid[1] * (len(frames) if joint else 1)
    source = source_map(plans).long() if plans else torch.arange(tokens, device=x.device).expand(len(heat), -1)
    heat = heat / torch.zeros_like(heat).scatter_add_(1, source, torch.ones_like(source, dtype=heat.dtype))
    patches = source[:, protected:]
    if joint:
        patches = patches[0].unflatten(0, (len(frames), -1))
        heat = heat.expand(len(frames), -1)
    painted = paint(heat, torch.cat([patches.new_zeros(len(patches), 1), patches], 1), grid)
    top = painted.max((1, 2), keepdims=True)
    return np.divide(painted, top, out=np.zeros_like(painted), where=top > 0)


def peak_inside(heat: Heat, box: Any, size: tuple[int, int]) -> float:
    """Returns the share of the peak's area (of all patches with the largest value) that lies in a box.

    By chance it is the box's share of the picture, on average over all places of the box.

    Args:
        heat: ``[h, w]``. box: (x0, y0, x1, y1) in pixels, end exclusive. size: (H, W) of the picture.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    rows, columns = (np.arange(n + 1) * pixels / n for n, pixels in zip(heat.shape, size, strict=True))
    down = np.clip(np.minimum(rows[1:], y1) - np.maximum(rows[:-1], y0), 0, None) / np.diff(rows)
    across = np.clip(np.minimum(columns[1:], x1) - np.maximum(columns[:-1], x0), 0, None) / np.diff(columns)
    peak = heat == heat.max()
    return float((down[:, None] * across[None])[peak].mean())


def _vector(text: Any, width: int) -> Tensor:
    if not isinstance(text, Tensor) or tuple(text.shape) != (width,):
        got = list(text.shape) if isinstance(text, Tensor) else repr(text)
        raise ValueError(f"text: expected an embedding [{width}] of the joint space (see text_of), got {got}")
    return text.detach()


@contextmanager
def _watching(host: Host, tower: nn.Module) -> Iterator[list[Tensor]]:
    """Makes outputs of the last block's first norm leaves of a graph that holds nothing before them; yields them."""
    taken: list[Tensor] = []

    def leaf(module: Any, inputs: Any, output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[-1]

    trainable = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    checkpointing = host.checkpointing(tower)
    last = len(host.blocks(tower)) - 1
    hook = host.block_parts(host.blocks(tower)[last], tower, last).norm_1.register_forward_hook(leaf)
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        host.set_checkpointing(tower, False)
        yield taken
    finally:
        hook.remove()
        host.set_checkpointing(tower, checkpointing)
        for parameter in trainable:
            parameter.requires_grad_(True)
