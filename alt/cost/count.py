"""count_macs: multiply-accumulates of one forward pass.

The pass is traced, not modelled. A fake copy of the model runs once on one fake image or clip, so shapes are real and
nothing is computed. Weights, flags and random state of the caller's model are untouched.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from alt.hosts import Host, find_tower

from .report import COMPONENTS, CostReport
from .trace import FLOPS_PER_MAC, Trace, extra_formulas

__all__ = ["count_macs"]


def count_macs(
    model: nn.Module, frames: int | None = None, *, views: int = 1, image_size: tuple[int, int] | None = None
) -> CostReport:
    """Counts the multiply-accumulates of a clip through an image tower or a video model.

    The literature prints multiply-accumulates as GFLOPs. One forward pass is traced in evaluation mode: a tower on one
    image, multiplied by ``frames``, or a video model on one clip. The count includes convolutions, matrix products,
    both products of attention, token matching, and the similarities of tokens and entities. It leaves out
    normalisations, activations, softmax, additions, and the gathers that merge tokens and fetch entities, together
    0.05 to 0.5 %. A ViT block of width w that merges r of n tokens costs ``4 n w^2 + 2 n^2 w + 8 (n - r) w^2``, plus
    its matching. The patch embedding and the output projection come on top. ``CostReport`` lists what the paper's
    convention adds.

    Args:
        model: a video model, a model that a host knows, or its image tower. Of a host's model only the
            image tower is counted. The model may be patched by ``alt.patch_clip``. Any device will do; on ``meta``
            it needs no memory. It is not changed.
        frames: int >= 1, images per clip, for a tower; default 8, as in the paper's tables. A video model accepts
            only its own number.
        views: int >= 1, passes per video (spatial crops x temporal clips). Every count is multiplied by it.
        image_size: height and width of the images, for a tower that takes other sizes than its own; None: its own.

    Returns:
        CostReport(native, paper_convention, by_component, by_convention), integers.

    Raises:
        TypeError: ``model`` is none of these, or ``frames`` or ``views`` is not an int, or the model has an operation
            without a formula, which would count as nothing (quantised layers).
        ValueError: ``frames`` or ``views`` is below 1, or ``frames`` differs from the video model's own number.

    Source: Chen et al., arXiv 2311.15619, the table of r against GFLOPs, whose unit is the multiply-accumulate.
    """
    views = _check_count("views", views)
    original, host, tower, own_frames = _find(model)
    if own_frames is None:
        frames = times = 8 if frames is None else _check_count("frames", frames)
    else:
        if frames is not None and _check_count("frames", frames) != own_frames:
            raise ValueError(f"frames must be {own_frames}, what the video model was made for, got {frames}")
        frames, times = own_frames, 1
    height, width = image_size or host.image_size(original.get_submodule(tower.removesuffix(".")))
    shape = (1, 3, height, width) if own_frames is None else (1, frames, 3, height, width)
    with warnings.catch_warnings(), _mha_fast_path_off():
        warnings.simplefilter("ignore")  # patching the caller's model already warned about clipped blocks
        fake_mode = FakeTensorMode()
        with FakeCopyMode(fake_mode):
            traced = copy.deepcopy(original)
        with fake_mode:  # on its way into evaluation, a trained text tower embeds the class texts
            traced.eval().requires_grad_(False)
        _drop_user_hooks(traced)
        traced_tower = traced.get_submodule(tower.removesuffix("."))
        host.prepare_trace(traced_tower)
        weight = next(p for p in traced.parameters() if p.is_floating_point())
        counter = FlopCounterMode(display=False, custom_mapping=extra_formulas())
        trace = Trace(traced, counter, host, tower)
        autocast_off = torch.autocast(_autocast_device(weight.device), enabled=False)
        with torch.no_grad(), autocast_off, fake_mode, counter, trace:
            images = torch.empty(shape, dtype=weight.dtype, device=weight.device)
            traced(*(host.arguments(traced_tower, images) if own_frames is None else (images,)))

    times *= views
    by_component = {name: times * trace.flops[name] // FLOPS_PER_MAC for name in COMPONENTS}
    by_convention = {name: times * extra for name, extra in trace.convention.items()}
    native = sum(by_component.values())
    return CostReport(native, native + sum(by_convention.values()), by_component, by_convention)


@contextlib.contextmanager
def _mha_fast_path_off() -> Iterator[None]:
    """Switches off nn.MultiheadAttention's evaluation fast path: one fused operation that no counter sees into."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _autocast_device(device: torch.device) -> str:
    return "cpu" if device.type == "meta" else device.type


def _drop_user_hooks(tower: nn.Module) -> None:
    """Removes forward hooks, which must not keep or print the fake activations of the trace."""
    for module in tower.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(module, hooks).clear()


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int >= 1, got a bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int >= 1, got {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name} must be an int >= 1, got {number}")
    return number


def _find(model: nn.Module) -> tuple[nn.Module, Host, str, int | None]:
    """Returns the module to run, the host of its image tower, the tower's path and the frames per clip.

    The path is "" for a tower and otherwise ends with a dot. The frames are None unless it is a video model.
    """
    expected = "model must be a video model, an open_clip model or its image tower"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{expected}, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    inner = getattr(getattr(model, "backbone", None), "tower", None)
    frames = getattr(getattr(model, "config", None), "frames", None)
    if isinstance(inner, nn.Module) and isinstance(frames, int):
        path = next(name for name, module in model.named_modules() if module is inner)
        return model, find_tower(inner)[0], f"{path}.", frames
    try:
        host, tower = find_tower(model)
        tower = getattr(tower, "_orig_mod", tower)
        host.image_size(tower)
    except TypeError:
        raise TypeError(f"{expected}, got {type(model).__name__}") from None
    return tower, host, "", None
