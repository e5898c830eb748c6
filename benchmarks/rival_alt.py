"""The ALT model's training step in plain PyTorch, on the modules of our model.

The tower computes attention step by step with the log sizes as a bias, and merges by gathers and one `scatter_reduce`
(`rival_tower`, `rivals`). Alignment is dense: cosines to all entities, `F.gumbel_softmax(hard=True)`, times the corpus.
Adapter, MLPs and head are plain PyTorch in both, the model's own.
"""

from __future__ import annotations

from typing import Any

import rival_tower
import rivals
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.models.alt import AltModel
from alt.models.config import AltConfig

CORPUS, CLASSES = 913, 400


def build(size: str, *, blocks: int, frames: int) -> nn.Module:
    """Builds ALT on a random tower, with 913 entities and 400 classes.

    Size "B/16" has ``blocks`` blocks and r = 8, "mini" has r = 2.
    """
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    if size == "mini":
        visual, r, layers = VisionTransformer(24, 4, 64, blocks, 4, 4.0, output_dim=48), 2, 2
    else:
        visual, r, layers = VisionTransformer(224, 16, 768, blocks, 12, 4.0, output_dim=512), 8, 4
    model = AltModel(AltConfig(backbone=size, frames=frames, r=r, layers=layers), visual, 100.0)
    for parameter in model.parameters():  # zero-initialised outputs would make half of the gradients zero
        if parameter.dim() > 1 and not parameter.any():
            nn.init.trunc_normal_(parameter, std=0.02)
    generator = torch.Generator().manual_seed(1)
    model.set_corpus(F.normalize(torch.randn(CORPUS, model.width, generator=generator), dim=-1))
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
    visual = model.backbone.visual
    x = rival_tower.tokens(visual, clips.flatten(0, 1), model.config.r)
    x = (visual.ln_post(x) @ visual.proj).unflatten(0, clips.shape[:2])
    tau = model.config.tau / float(model.logit_scale)
    aligned = rivals.assign(x.flatten(0, 2), model.alignment.entities, tau).view_as(x).mean(2)
    queries = aligned + model.alignment.mlp(aligned)
    frames = x[:, :, 0]
    z = model.adapter(queries, frames).mean(1)
    z = z + frames.mean(1) + model.output_mlp(z)
    return model.head(z, model.logit_scale)


def loss(model: Any, clips: Tensor, labels: Tensor, *, dense: bool, noise: Tensor | None = None) -> Tensor:
    logits = dense_logits(model, clips) if dense else model(clips, noise=noise).logits
    return F.cross_entropy(logits, labels)


def known_noise(model: Any, clips: Tensor, seed: int) -> Tensor:
    """Returns the noise that :func:`dense_logits` draws after ``torch.manual_seed(seed)``, in our model's shape."""
    n = model.backbone.num_tokens
    rows = clips.shape[0] * clips.shape[1] * n
    like = model.alignment.entities
    return rivals.noise_of_gumbel_softmax(seed, rows, CORPUS, like).view(*clips.shape[:2], n, CORPUS)
