"""The merged regions of a picture in any patched tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alt.data.pixels import denormalise, fit_picture, normalise
from alt.hosts import Host
from alt.patch import PatchHandle
from alt.patch.restore import block_sources
from alt.patch.twin import patched_twin

from .regions import merge_sheet, region_map, shown_blocks

__all__ = ["show_regions"]


def show_regions(image: Any, handle: PatchHandle, *, title: str = "", panel: int = 320) -> Image.Image:
    """Returns a picture, its merged regions after each block, and their outlines, for a tower of any host.

    The tower runs once, in evaluation mode, at the r of the handle. Towers of more than 12 blocks show 12 of them.

    Args:
        image: a PIL image or uint8 array ``[H, W, 3]``, whose largest centred part of the tower's proportions is
            resized to the tower's size; or a float tensor ``[3, H, W]`` as the tower takes it, normalised.
        handle: of :func:`alt.patch_model`.
        title: a line above the pictures. panel: pixels of the longer side of each.

    Returns:
        A PIL image, for ``.show()`` or ``.save("regions.png")``.

    Raises:
        TypeError, ValueError: the image has another type or shape, or the handle is none.
    """
    if not isinstance(handle, PatchHandle):
        raise TypeError(f"handle must be what alt.patch_model returns, got {type(handle).__name__}")
    twin = patched_twin(handle.tower)
    host, tower = twin.host, twin.tower.eval()
    pixels = _to_pixels(image, host, tower)
    weight = next(p for p in tower.parameters() if p.is_floating_point())
    with torch.inference_mode():
        embedded, call = twin.encode(pixels[None].to(weight))
    identity = torch.arange(call.num_tokens, dtype=torch.int32, device=embedded.device)[None]
    sources = block_sources(call.matchings, call.finished, identity)
    # Another size than the tower's own has patches of the same size.
    native = zip(pixels.shape[1:], host.image_size(tower), host.grid(tower), strict=True)
    down, across = (side * count // own for side, own, count in native)
    shown = shown_blocks(len(sources))
    special = host.num_protected(tower)
    return merge_sheet(
        denormalise(pixels, *host.mean_std(tower)).permute(1, 2, 0).contiguous().cpu().numpy(),
        [region_map(sources[block - 1][0], (down, across), num_protected=special) for block in shown],
        [f"after block {block}: {len(sources[block - 1].unique())} tokens" for block in shown],
        title=title,
        panel=panel,
    )


def _to_pixels(image: Any, host: Host, tower: Any) -> Tensor:
    """Returns ``[3, H, W]`` as the tower takes it."""
    expected = "image must be a PIL image, a uint8 array [H, W, 3] or a normalised float tensor [3, H, W]"
    if isinstance(image, Tensor):
        if not image.is_floating_point() or image.dim() != 3 or image.shape[0] != 3:
            got = f"{str(image.dtype).removeprefix('torch.')} of shape {list(image.shape)}"
            raise ValueError(f"{expected}, got {got}")
        return image.detach()
    if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
        raise ValueError(f"{expected}, got {image.dtype} of shape {list(image.shape)}")
    if not isinstance(image, (np.ndarray, Image.Image)):
        raise TypeError(f"{expected}, got {type(image).__name__}")
    picture = image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))
    return normalise(fit_picture(picture, host.image_size(tower)), *host.mean_std(tower))
