"""Training steps of the video models in plain PyTorch, on the modules of our models.

The tower computes attention step by step with the log sizes as a bias, and merges by gathers and one `scatter_reduce`
(`rival_tower`, `rivals`). ALT's alignment is dense: cosines to all entities, `F.gumbel_softmax(hard=True)`, times the
corpus. Everything that no kernel of ours runs (messages, integration, prompts, adapter, MLPs and head) is plain PyTorch
in both, the model's own.
"""

from __future__ import annotations

from typing import Any

import rival_tower
import rivals
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.models.alt import AltModel
from alt.models.baselines import ClipJoint, ClipMean
from alt.models.config import AltConfig, BaselineConfig, XClipConfig
from alt.models.xclip import XClip

CORPUS, CLASSES = 913, 400
#: system -> (its model, its configuration, parts whose gradients are compared, besides the tower's first block)
SYSTEMS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "ALT": (
        AltModel,
        AltConfig,
        (
            "alignment.mlp.down.weight",
            "adapter.blocks.0.cross_attention.attention.in_proj_weight",
            "output_mlp.down.weight",
        ),
    ),
    "X-CLIP": (
        XClip,
        XClipConfig,
        (
            "backbone.visual.transformer.resblocks.0.message_adapter.project.weight",
            "integration.positions",
            "prompts.blocks.0.key.weight",
            "prompts.patch_projection",
        ),
    ),
    "CLIP-Mean": (ClipMean, BaselineConfig, ("backbone.visual.proj",)),
    "CLIP-Joint": (ClipJoint, BaselineConfig, ("backbone.visual.proj",)),
}
FIRST_BLOCK = "backbone.visual.transformer.resblocks.0.attn.in_proj_weight"


def build(system: str, size: str, *, blocks: int, frames: int, r: int | None = None) -> nn.Module:
    """Builds a system on a random tower, with 400 classes, and ALT with 913 entities.

    Size "B/16" has ``blocks`` blocks and r = 8, "mini" has r = 2; another ``r`` has the same weights.
    """
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    if size == "mini":
        visual, usual, layers = VisionTransformer(24, 4, 64, blocks, 4, 4.0, output_dim=48), 2, 2
    else:
        visual, usual, layers = VisionTransformer(224, 16, 768, blocks, 12, 4.0, output_dim=512), 8, 4
    kind, config, _ = SYSTEMS[system]
    options = {"layers": layers} if system == "ALT" else {}
    model = kind(config(backbone=size, frames=frames, r=usual if r is None else r, **options), visual, 100.0)
    for parameter in model.parameters():  # zero-initialised outputs would make half of the gradients zero
        if parameter.dim() > 1 and not parameter.any():
            nn.init.trunc_normal_(parameter, std=0.02)
    generator = torch.Generator().manual_seed(1)
    corpus = F.normalize(torch.randn(CORPUS, model.width, generator=generator), dim=-1)
    if system == "ALT":
        model.set_corpus(corpus)
    names = [str(number) for number in range(CLASSES)]
    model.set_classes(names, F.normalize(torch.randn(CLASSES, model.width, generator=generator), dim=-1))
    return model.train()


def batch(model: Any, clips: int) -> tuple[Tensor, Tensor]:
    """Returns clips of noise, and labels."""
    generator = torch.Generator().manual_seed(2)
    height, width = model.backbone.visual.image_size
    x = torch.randn(clips, model.config.frames, 3, height, width, generator=generator)
    return x, torch.randint(CLASSES, (clips,), generator=generator)


def dense_logits(model: Any, clips: Tensor) -> Tensor:
    """Computes ``model(clips).logits`` of training densely, with noise from torch's generator."""
    visual, r = model.backbone.visual, model.config.r
    if isinstance(model, ClipJoint):
        return model.head(_project(visual, _run_joint(visual, clips, r)), model.logit_scale)
    if isinstance(model, XClip):
        x, places = _run_with_messages(visual, clips.flatten(0, 1), r)
        read = model.prompts.read(x).gather(1, places[..., None].expand(-1, -1, model.width))
        context = read[:, 1:].unflatten(0, clips.shape[:2]).mean(1)
        z = model.integration(_project(visual, x).unflatten(0, clips.shape[:2]))
        return model.head(z, model.logit_scale, model.prompts(model.head.embeddings, context))
    x = rival_tower.tokens(visual, clips.flatten(0, 1), r)
    if isinstance(model, ClipMean):
        return model.head(_project(visual, x).unflatten(0, clips.shape[:2]).mean(1), model.logit_scale)
    x = (visual.ln_post(x) @ visual.proj).unflatten(0, clips.shape[:2])
    tau = model.config.tau / float(model.logit_scale)
    aligned = rivals.assign(x.flatten(0, 2), model.alignment.entities, tau).view_as(x).mean(2)
    queries = aligned + model.alignment.mlp(aligned)
    frames = x[:, :, 0]
    z = model.adapter(queries, frames).mean(1)
    z = z + frames.mean(1) + model.output_mlp(z)
    return model.head(z, model.logit_scale)


def _project(visual: Any, x: Tensor) -> Tensor:
    """Returns the embeddings of class tokens ``[B, d]`` of tokens ``[B, n, w]``."""
    return visual.ln_post(x[:, 0]) @ visual.proj


def _run_joint(visual: Any, clips: Tensor, r: int) -> Tensor:
    """Returns tokens of whole clips: the class token of the first frame, and the patches of all frames."""
    x = rival_tower.embed(visual, clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
    x = torch.cat([x[:, 0, :1], x[:, :, 1:].flatten(1, 2)], dim=1)
    return rival_tower.run(visual, x, r * clips.shape[1])[0]


def _run_with_messages(visual: Any, images: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Returns tokens ``[B, n, w]`` of a tower with messages, and the row of every place, int64 ``[B, 1 + N]``."""
    x = rival_tower.embed(visual, images)
    places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    size = torch.ones_like(x[..., :1])
    for parts, block in rival_tower.blocks(visual):
        guests = torch.cat([x, block.message_adapter(x)], dim=1)
        mixed, keys = rival_tower.attend(
            parts.attention, parts.norm_1(guests), torch.cat([size, size.new_ones(len(x), 1, 1)], dim=1)
        )
        x, keys = x + parts.after_attention(mixed)[:, :-1], keys[:, :, :-1]
        removed = min(r, (x.shape[1] - 1) // 2)
        if removed:
            with torch.no_grad():
                pairs = rivals.match(keys.mean(dim=1), removed)
            places = _rows_after(pairs, x.shape[1]).gather(1, places)
            x, size = rivals.merge(x, size, pairs)
        x = x + parts.feed_forward(parts.norm_2(x))
    return x, places


def _rows_after(pairs: rivals.Pairs, count: int) -> Tensor:
    """Returns the row after a merge of each of ``count`` rows before it: kept even ones first, then the odd ones."""
    kept, source, target = pairs
    rows = kept.new_empty(len(kept), count)
    odd = torch.arange(count // 2, device=kept.device).expand(len(kept), -1)
    rows.scatter_(1, 2 * kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    rows.scatter_(1, 2 * odd + 1, kept.shape[1] + odd)
    return rows.scatter_(1, 2 * source, kept.shape[1] + target)


def loss(model: Any, clips: Tensor, labels: Tensor, *, dense: bool, noise: Tensor | None = None) -> Tensor:
    logits = dense_logits(model, clips) if dense else model(clips, noise=noise).logits
    return F.cross_entropy(logits, labels)


def known_noise(model: Any, clips: Tensor, seed: int) -> Tensor | None:
    """Returns the noise that :func:`dense_logits` draws after ``torch.manual_seed(seed)``, in our model's shape.

    None of a model that draws none.
    """
    if not isinstance(model, AltModel):
        return None
    n = model.backbone.num_tokens
    rows = clips.shape[0] * clips.shape[1] * n
    like = model.alignment.entities
    return rivals.noise_of_gumbel_softmax(seed, rows, CORPUS, like).view(*clips.shape[:2], n, CORPUS)
