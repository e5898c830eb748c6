"""Token merging inside an existing vision transformer, reversible and without new parameters."""

from __future__ import annotations

from typing import Literal

from torch import nn

from alt.hosts import find_tower, supported_hosts
from alt.hosts.modules import qualified_name
from alt.hosts.refusals import explain_no_module

from .apply import apply, is_patched
from .handle import PatchHandle
from .metric import Metric, check_metric
from .protect import Mask, check_protect
from .schedule import Requested, Schedule, resolve_reduction
from .settings import PatchSettings

__all__ = ["PatchHandle", "Schedule", "get_handle", "patch_clip", "patch_model", "supported_hosts", "unpatch"]


def patch_model(
    model: nn.Module,
    r: Requested = None,
    *,
    inflection: float = 0.0,
    prop_attn: bool = True,
    metric: Metric = "keys",
    protect: Mask = None,
    merged_output: bool = False,
    trace_source: bool = False,
    strict: bool = False,
    impl: Literal["auto", "reference"] = "auto",
) -> PatchHandle:
    """Merges similar tokens inside every block of an image tower, in place and reversibly.

    Between attention and MLP of each block, the r most similar pairs of tokens become their size-weighted mean.
    Similarity is the cosine of the keys averaged over heads, and pairs are bipartite. Attention adds ``log s_j`` to the
    logits of key j. Class tokens and other tokens that are not patches never merge. Source: Bolya et al. 2023 (ToMe),
    section 3; ALT, Eq. 2.

    Parameters, buffers and ``state_dict`` do not change. With r = 0 outputs equal the unpatched model's to rounding.
    Pooling weighs tokens by size. Intermediates, hidden states and ``last_hidden_state`` are of the full grid, where a
    patch has the value of its merged token; open_clip's ``output_tokens`` are the merged tokens.
    Training, autocast, gradient checkpointing, ``torch.compile(fullgraph=True)``, DDP and FSDP2 are supported (patch
    first, then ``fully_shard``).

    Args:
        model: of a family that :func:`alt.supported_hosts` lists: open_clip's CLIP models, CLIP, SigLIP, SigLIP
            2, ViT, DINOv2 and DINOv3 of transformers, timm's ViT and Eva, ``torch.nn.TransformerEncoder``, those of
            your own host (:func:`alt.hosts.register`), or the image tower of one. Only the image tower is patched.
        r: int: tokens that each block removes; list: one int per block; float in [0, 0.5]: share of each block's
            unprotected tokens, rounded down. A block can lose half of its unprotected tokens. None: 8 if that leaves a
            quarter of the tokens, otherwise the largest r that does, named by a warning. Encoders of sequences need a
            number.
        inflection: in [-1, 1], tilts a constant r over depth, linearly from int(r (1 - inflection)) to
            2 r minus that. 1 merges late, -1 early.
        prop_attn: add log s to attention logits. If off, sizes still weigh merges and pooling.
        metric: ``"keys"``: matching compares the mean of the keys over heads, taken in float32 by its kernel.
            ``"projection"``: the same mean m from the mean of the key weights over heads, ``m = x W^T + b`` with
            ``W = (1/H) sum_h W_h`` in the dtype of the weights. Matching then reads H times fewer numbers, for D more
            columns of the projection, computed from the weights of the same call. In low precision the rounding
            differs, so near-ties may merge otherwise (docs/patching.md has the share). Not for q/k norms.
            ``"rotated"``: the keys as attention uses them, rotated by the positions of their tokens. Only for towers
            with rotary positions; the other two compare the keys before the rotation.
        protect: patches that must not merge, neither into others nor others into them: a bool tensor or array
            ``[h, w]`` (or flat ``[n]``, for any image size) for all images, or ``[B, h, w]`` for each image of the next
            batches, with as many True in every image. ``handle.protect`` may be set before each call. Inside the
            blocks these patches come first, behind the special tokens; everything returned is in place.
        merged_output: return the n merged tokens wherever the grid would be returned, for code that reads the tower
            itself: the prompt of a language model, an index of regions. Sizes and source map are kept, as by
            ``trace_source``. ``model`` must be the image tower, because a head over it would take each row for a patch.
        trace_source: keep sizes and source map of the last forward, see :class:`PatchHandle`.
        strict: raise if r exceeds what a block can lose, instead of one ``UserWarning`` that names the blocks.
        impl: of the operations of ``alt_kernels``. "reference" is plain torch: slower, but with forward-mode and second
            derivatives, and exported as core ATen ops alone.

    Returns:
        The handle: ``.remove()``, context manager, ``.r`` (may be set), ``.schedule(num_tokens)``.

    Raises:
        TypeError: the model, one of its parts or an argument has an unsupported type, ``metric="projection"`` and
            the keys of a block are not known to be a linear map of its tokens, or ``metric="rotated"`` and nothing
            rotates.
        ValueError: the model is already patched, r or inflection is out of range, r is too large under ``strict``,
            metric or impl is another word, or ``merged_output`` and the model is not the tower.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(explain_no_module(model))
    host, tower = find_tower(model)
    if is_patched(tower):
        raise ValueError("the model is already patched: use alt.get_handle(model), or alt.unpatch(model) first")
    host.check_tower(tower)
    flags = {
        "prop_attn": prop_attn,
        "merged_output": merged_output,
        "trace_source": trace_source,
        "strict": strict,
    }
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl must be 'auto' or 'reference', got {impl!r}")
    if merged_output and model is not tower:
        path = next(name for name, module in model.named_modules() if module is tower)
        raise ValueError(
            "merged_output: expected the image tower itself, whose output you read, because a head over it would take "
            f"every merged token for one patch, got {type(model).__name__}; pass model.{path}"
        )
    blocks = len(host.blocks(tower))
    native, special, protected = host.num_tokens(tower), host.num_protected(tower), check_protect(protect)
    spared = special + (0 if protected is None else protected.count)
    checked = resolve_reduction(r, inflection, blocks, native, spared, stacklevel=2)
    metric = check_metric(metric)
    if metric == "rotated" and not host.rotates(tower):
        raise TypeError(
            "metric='rotated' needs attention that rotates queries and keys by their positions, which that of "
            f"{qualified_name(tower)} does not; use metric='keys'"
        )
    if metric == "projection":
        for i, block in enumerate(host.blocks(tower)):
            host.block_parts(block, tower, i).attention.key_projection()  # raises before the model is touched
    settings = PatchSettings(
        host,
        checked,
        inflection=float(inflection),
        prop_attn=prop_attn,
        trace_source=trace_source or merged_output,
        strict=strict,
        impl=impl,
        native_tokens=native,
        num_protected=special,
        metric=metric,
        protected=protected,
        merged_output=merged_output,
    )
    settings.adopt(checked, float(inflection), blocks)  # warns or raises before the model is touched
    apply(host, tower, settings)
    return PatchHandle(tower)


patch_clip = patch_model
"""The same function, under the name that users of CLIP know."""


def get_handle(model: nn.Module) -> PatchHandle:
    """Returns the handle of a patched model, even if it was copied, unpickled, wrapped or sharded since.

    Raises:
        ValueError: the model has no patched tower, or more than one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if is_patched(model):
        return PatchHandle(model)
    towers = [module for module in model.modules() if is_patched(module)]
    if not towers:
        raise ValueError(f"this {type(model).__name__} is not patched; alt.patch_model(model) patches it")
    if len(towers) > 1:
        raise ValueError(f"{len(towers)} towers in this {type(model).__name__} are patched; pass one of them")
    return PatchHandle(towers[0])


def unpatch(model: nn.Module) -> None:
    """Removes the patch from a model, see :meth:`PatchHandle.remove`."""
    get_handle(model).remove()
