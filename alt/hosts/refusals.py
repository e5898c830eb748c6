"""Why a model cannot be patched, and what to pass instead, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .modules import qualified_name

__all__ = ["explain_refusal"]

_WINDOWS = "it attends inside windows of the grid, which merged tokens do not have"
_TABLES = "its attention reads a table of relative positions, which merged tokens do not have"
_STAGES = "it is hierarchical: it pools its tokens between stages by their place on the grid"
_GRID = "it convolves the grid of its tokens, which merging dissolves"
_ROTARY = "its attention rotates queries and keys by the place of a patch, which alt does not do for this class"

# Package, start of the name of the module below its models -> reason.
_REASONS: dict[str, dict[str, str]] = {
    "transformers.models.": {
        **dict.fromkeys(("swin", "donut", "maskformer", "vitdet", "sam"), _WINDOWS),
        **dict.fromkeys(("beit", "data2vec", "layoutlmv3"), _TABLES),
        **dict.fromkeys(("hiera", "mvit", "pvt", "segformer", "levit", "efficientformer", "glpn", "davit"), _STAGES),
        **dict.fromkeys(("cvt", "convnext", "resnet", "regnet", "bit", "mobile", "focalnet", "poolformer"), _GRID),
        **dict.fromkeys(("eomt_dinov3", "pixtral", "llama4"), _ROTARY),
        "x_clip": "its blocks exchange messages between frames, which alt does not support yet",
    },
    "timm.models.": {
        **dict.fromkeys(("swin", "maxxvit", "nest", "twins", "gcvit", "vitamin", "vision_transformer_sam"), _WINDOWS),
        **dict.fromkeys(("beit", "vision_transformer_relpos"), _TABLES),
        **dict.fromkeys(("hiera", "mvit", "pvt", "levit", "efficientformer", "davit", "coat", "visformer"), _STAGES),
        **dict.fromkeys(("convnext", "resnet", "convit", "crossvit", "xcit", "cait", "mobilevit", "convmixer"), _GRID),
        "naflexvit": "its images have their own sizes (NaFlex), which alt does not support yet",
    },
    "torchvision.models.": {"swin": _WINDOWS, "maxvit": _WINDOWS, "resnet": _GRID, "convnext": _GRID},
}


def explain_refusal(
    model: nn.Module, inside: tuple[str, nn.Module] | None = None, registered: Sequence[str] = ()
) -> str:
    """Returns the message of the TypeError for a model that no host knows.

    Args:
        inside: path and module of the first model inside it that a host does know, if any.
        registered: what the registered hosts support.
    """
    name = qualified_name(model)
    if inside is not None:
        path, module = inside
        return (
            f"patch_model supports models themselves as the image tower, exactly (no subclass or wrapper), got {name}; "
            f"pass its {type(module).__name__}: model.{_as_attribute(path)}"
        )
    reason = _reason(model)
    if reason is not None:
        return f"patch_model cannot merge tokens of {name}: {reason}; alt.supported_hosts() lists what it takes"
    known = "".join(f"{supports}, " for supports in registered)
    return (
        f"patch_model supports {known}open_clip's VisionTransformer and the models that alt.supported_hosts() lists as "
        f"the image tower, exactly (no subclass or wrapper), got {name}"
    )


def _reason(model: nn.Module) -> str | None:
    for cls in type(model).__mro__:
        for package, reasons in _REASONS.items():
            if cls.__module__.startswith(package):
                below = cls.__module__.removeprefix(package)
                for start, reason in reasons.items():
                    if below.startswith(start):
                        return reason
    return None


def _as_attribute(path: str) -> str:
    """Returns ``vision.layers[3]`` for ``vision.layers.3``."""
    first, *rest = path.split(".")
    return first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)
