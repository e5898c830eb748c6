"""Small towers and ALT models whose parameters are all away from their initial values."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from alt.models.alt import AltModel
from alt.models.config import AltConfig

IMAGE, PATCH, WIDTH, FRAMES, ENTITIES, CLASSES = 16, 4, 16, 3, 7, 5
TOKENS = 1 + (IMAGE // PATCH) ** 2


def draw(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomised(module: nn.Module, scale: float = 0.1) -> Any:
    """Noise on every parameter: zero-initialised outputs would hide what lies behind them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def tiny_visual(dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
        "output_dim": WIDTH,
        **options,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return randomised(VisionTransformer(**settings).to(dtype))


def tiny_alt(
    dtype: torch.dtype = torch.float64,
    *,
    random: bool = True,
    corpus: bool = True,
    classes: bool = True,
    **options: Any,
) -> AltModel:
    """d = 16, 3 frames of 17 tokens, r = 3 in two blocks (11 left), 7 entities, 5 classes; in evaluation mode."""
    config = AltConfig(**{"backbone": "tiny", "frames": FRAMES, "r": 3, "layers": 2, **options})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = AltModel(config, tiny_visual(dtype), 10.0).to(dtype)
    if random:
        randomised(model)
    if corpus and model.alignment is not None:
        model.set_corpus(nn.functional.normalize(draw(ENTITIES, WIDTH, seed=5), dim=1))
    if classes:
        names = [f"class {i}" for i in range(CLASSES)]
        model.set_classes(names, nn.functional.normalize(draw(CLASSES, WIDTH, seed=6), dim=1))
    return model.eval()


def clips(batch: int = 2, frames: int = FRAMES, dtype: torch.dtype = torch.float64, seed: int = 11) -> Tensor:
    return draw(batch, frames, 3, IMAGE, IMAGE, seed=seed, dtype=dtype)
