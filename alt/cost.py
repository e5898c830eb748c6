"""What one forward pass of an image tower costs, in multiply-accumulates.

The pass is traced, not modelled: a fake copy of the tower runs once on one fake image, so the shapes are real,
nothing is computed, and no weight, flag or random state of the caller's model is touched.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["COMPONENTS", "CostReport", "count_macs"]

COMPONENTS = (
    "patch_embedding",
    "attention_projections",
    "attention",
    "matching",
    "mlp",
    "pooling",
    "other",
)
"""Keys of ``CostReport.by_component``: the patch convolution; q, k, v and output projections; q k^T and A v of
the blocks; token matching; the two MLP layers; pooling and the output projection; anything else."""

_FLOPS_PER_MAC = 2  # the formulas of PyTorch and of alt_kernels count 2 operations for a multiply-accumulate


class CostReport(NamedTuple):
    """Multiply-accumulates (MACs), which is what the literature prints as "GFLOPs" (1 GFLOP there = 1e9 MACs).

    native: int, what this implementation does for all frames.
    paper_convention: int, ``native`` plus, for every frame and every block that merges r of its n tokens of width
        w, ``n^2 w + n (n - r) w``: a dense n x n similarity at full width and merging by a dense (n - r) x n
        matrix product. It is our reading of how the ALT paper (arXiv 2311.15619) arrives at its GFLOPs, all of
        which it explains within 1 %; no operation of ours costs that much.
    by_component: dict of int over ``COMPONENTS``; sums exactly to ``native``.
    """

    native: int
    paper_convention: int
    by_component: dict[str, int]

    @property
    def native_g(self) -> float:
        """``native`` in units of 1e9 MACs, the "GFLOPs" of the literature."""
        return self.native / 1e9

    @property
    def paper_convention_g(self) -> float:
        """``paper_convention`` in units of 1e9 MACs."""
        return self.paper_convention / 1e9


def count_macs(model: nn.Module, frames: int = 8) -> CostReport:
    """Multiply-accumulates (which the literature prints as GFLOPs) of an image tower for ``frames`` images.

    One forward pass of the tower is traced in evaluation mode at batch 1 and multiplied by ``frames``. Counted are
    convolutions, matrix products, both products of attention and the matching of tokens; not counted are
    normalisations, activations, softmax, additions and the gathers that merge tokens (0.05 to 0.5 % together).
    For ViT blocks of width w, with n tokens coming in and r merged away, that is ``4 n w^2 + 2 n^2 w + 8 (n - r) w^2``
    per block, plus the patch embedding, the output projection and the matching.

    Args:
        model: an open_clip model, of which the image tower (``model.visual``) is counted, or such a tower; patched
            by ``alt.patch_clip`` or not, on any device (on ``meta`` it needs no memory). It is not changed.
        frames: int >= 1, images per clip. The paper's tables are of 8.

    Returns:
        CostReport(native, paper_convention, by_component), integers.

    Raises:
        TypeError: ``model`` has no image tower, or ``frames`` is not an int.
        ValueError: ``frames`` is below 1.

    Source: Chen et al., arXiv 2311.15619, the table of r against GFLOPs, whose unit is the multiply-accumulate.
    """
    frames = _check_frames(frames)
    original = _image_tower(model)
    height, width = _image_size(original)
    with warnings.catch_warnings(), _mha_fast_path_off():
        warnings.simplefilter("ignore")  # what patching says about clipped blocks was said to the caller's model
        fake_mode = FakeTensorMode()
        with FakeCopyMode(fake_mode):
            tower = copy.deepcopy(original)
        tower.eval().requires_grad_(False)
        _drop_user_hooks(tower)
        weight = next(p for p in tower.parameters() if p.is_floating_point())
        counter = FlopCounterMode(display=False, custom_mapping=_extra_formulas())
        trace = _Trace(tower, counter)
        autocast_off = torch.autocast(_autocast_device(weight.device), enabled=False)
        with torch.no_grad(), autocast_off, fake_mode, counter, trace:
            tower(torch.empty(1, 3, height, width, dtype=weight.dtype, device=weight.device))

    by_component = {name: frames * trace.flops[name] // _FLOPS_PER_MAC for name in COMPONENTS}
    native = sum(by_component.values())
    dense = sum(n * n * w + n * (n - r) * w for n, r, w in trace.merges)
    return CostReport(native, native + frames * dense, by_component)


class _Trace(TorchDispatchMode):
    """Sits inside a FlopCounterMode and books what it charges for each operation under a component.

    flops: component -> floating-point operations; merges: (n, r, w) of every block that merges.
    """

    def __init__(self, tower: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.flops = dict.fromkeys(COMPONENTS, 0)
        self.merges: list[tuple[int, int, int]] = []
        self._matched: tuple[int, int] | None = None
        # Views of a weight share its storage, so a product is booked under the weight it uses even where a
        # patched block reads the weight itself and never calls the module that owns it.
        self._parameter_of = {
            p.untyped_storage()._cdata: name for name, p in tower.named_parameters(remove_duplicate=False)
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        charged = self.counter.get_total_flops() - before
        name = func.name()
        if charged:
            self.flops[_component(name, self._weight(args), self._module())] += charged
        self._note_merge(name.partition(".")[0], args)
        return out

    def _weight(self, args: tuple[Any, ...]) -> str | None:
        """Name of the parameter among the operands, if one is."""
        for arg in args:
            if isinstance(arg, torch.Tensor) and arg.dim() > 1:
                found = self._parameter_of.get(arg.untyped_storage()._cdata)
                if found is not None:
                    return found
        return None

    def _module(self) -> str:
        """Path, from the tower, of the innermost module that is running."""
        return max(self.counter.mod_tracker.parents, key=len).partition(".")[2]

    def _note_merge(self, op: str, args: tuple[Any, ...]) -> None:
        """Read n and r off the matching, and the width off the merge that follows it."""
        if op == "alt_kernels::bipartite_matching":
            self._matched = (int(args[0].shape[1]), int(args[1]))
        elif op in ("alt_kernels::weighted_merge", "alt_kernels::merge_layer_norm") and self._matched is not None:
            n, r = self._matched
            if r > 0:
                self.merges.append((n, r, int(args[0].shape[-1])))
            self._matched = None


_IN_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks)\.\d+(?:\.(?P<inside>.*))?$")


def _component(op: str, weight: str | None, module: str) -> str:
    """Component of an operation, from its name, the parameter it uses and the module that runs it."""
    if op.startswith("alt_kernels::bipartite_matching"):
        return "matching"
    path = module if weight is None else weight
    block = _IN_BLOCK.search(path)
    if block is None:
        if path.startswith(("conv1", "patch_embed", "trunk.patch_embed")):
            return "patch_embedding"
        return "pooling" if re.match(r"(trunk\.)?(attn_?pool|proj|head|ln_post)", path) or path == "" else "other"
    inside = block["inside"] or ""
    if inside.startswith("mlp"):
        return "mlp"
    if weight is not None:
        return "attention_projections" if inside.startswith("attn") else "other"
    return "attention"


def _sdpa_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """q [B,H,N,D] k^T [B,H,D,M] and A v [B,H,M,E], in operations (2 per multiply-accumulate)."""
    batch, heads, n, d = query
    m, e = key[-2], value[-1]
    return _FLOPS_PER_MAC * batch * heads * n * m * (d + e)


def _extra_formulas() -> dict[Any, Any]:
    """Fused attention that PyTorch's own counter charges nothing for."""
    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable")
    return {getattr(torch.ops.aten, name): _sdpa_flops for name in names if hasattr(torch.ops.aten, name)}


@contextlib.contextmanager
def _mha_fast_path_off() -> Iterator[None]:
    """nn.MultiheadAttention's evaluation fast path is one fused operation that no counter sees into."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _autocast_device(device: torch.device) -> str:
    return "cpu" if device.type == "meta" else device.type


def _drop_user_hooks(tower: nn.Module) -> None:
    """A hook that keeps or prints activations must not see the fake ones of the trace."""
    for module in tower.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(module, hooks).clear()


def _check_frames(frames: int) -> int:
    if isinstance(frames, bool):
        raise TypeError("frames must be an int >= 1, got a bool")
    try:
        number = operator.index(frames)
    except TypeError:
        raise TypeError(f"frames must be an int >= 1, got {type(frames).__name__}") from None
    if number < 1:
        raise ValueError(f"frames must be an int >= 1, got {number}")
    return number


def _image_tower(model: nn.Module) -> nn.Module:
    """The image tower of an open_clip model, or the model itself if it is one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an open_clip model or its image tower, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    tower = getattr(model, "visual", model)
    tower = getattr(tower, "_orig_mod", tower)
    if not isinstance(tower, nn.Module) or not hasattr(tower, "image_size"):
        raise TypeError(
            f"model must be an open_clip model or its image tower, got {type(model).__name__}, which has no "
            "'visual' and no 'image_size'"
        )
    return tower


def _image_size(tower: nn.Module) -> tuple[int, int]:
    size: Any = tower.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
