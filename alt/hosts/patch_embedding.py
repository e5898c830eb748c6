"""The convolution that embeds patches, as one matrix product where that is faster.

A convolution whose kernel is as large as its stride reads every pixel once: it is a linear map of each patch. For a
patch of three channels cuDNN has no fast kernel in half precision. On an H100 with 256 images of 224 x 224 and patches
of 16 x 16 it takes 2.1 ms, an eighth of the time of ViT-B/16 at r = 8, and merging saves nothing of it
(`benchmarks/findings/gpu-first-run.md`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .host import Host

__all__ = ["PatchConv2d", "embed_patches", "patch_convolutions"]

HALF = (torch.float16, torch.bfloat16)


class PatchConv2d(nn.Conv2d):
    """``nn.Conv2d`` over patches that do not overlap, with the parameters of the original.

    On a GPU in half precision the result is that of :func:`embed_patches`, in channels-last memory. Elsewhere it is the
    original's: float32 convolutions may use TF32 where products may not, and a CPU gains nothing.
    """

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(images, Tensor) and images.dim() == 4 and computes_in_half(images):  # torch.fx passes others
            return embed_patches(images, self.weight, self.bias)
        return super().forward(images)


def computes_in_half(images: Tensor) -> bool:
    """Returns True if a convolution of ``images`` runs on a GPU in half precision, autocast included."""
    if not images.is_cuda:
        return False
    return (torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else images.dtype) in HALF


def embed_patches(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``conv2d(images, weight, bias, stride=weight.shape[2:])`` as one product over the patches.

    Args:
        images: ``[B, C, H, W]``. weight: ``[E, C, P, Q]``. Rows and columns that fill no patch are left out.

    Returns:
        ``[B, E, H // P, W // Q]``, contiguous as ``[B, H // P, W // Q, E]``.
    """
    _, channels, height, width = weight.shape
    down, across = images.shape[2] // height, images.shape[3] // width
    images = images[:, :, : down * height, : across * width]
    patches = images.unflatten(3, (across, width)).unflatten(2, (down, height))  # [B, C, down, P, across, Q]
    rows = patches.permute(0, 2, 4, 1, 3, 5).reshape(images.shape[0], down, across, channels * height * width)
    return F.linear(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)


def patch_convolutions(host: Host, tower: nn.Module) -> Iterator[nn.Conv2d]:
    """Yields the modules whose class is exchanged for :class:`PatchConv2d`: exact ``nn.Conv2d`` without overlap."""
    for path, module in tower.named_modules():
        if type(module) is nn.Conv2d and host.component(path) == "patch_embedding" and _divides(module):
            yield module


def _divides(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.padding in ("valid", (0, 0))
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and "forward" not in convolution.__dict__
    )
