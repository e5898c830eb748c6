"""Why a model cannot be patched, and what to pass instead, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .modules import qualified_name

__all__ = ["REASONS", "explain_no_module", "explain_refusal"]

_WINDOWS = "it attends inside windows of the grid, which merged tokens do not have"
_TABLES = "its attention reads a table of relative positions, which merged tokens do not have"
_STAGES = "it is hierarchical: it pools its tokens between stages by their place on the grid"
_GRID = "it convolves the grid of its tokens, which merging dissolves"
_ROTARY = "its attention rotates queries and keys by the place of a patch, which alt does not do for this class"

_PACKED = "it packs the patches of all images into one row, which alt does not support"
_PLACES = "it mixes tokens by their place, without attention"
_TIME = "it attends over the frames of a clip and over space in turns, which needs every patch in its place"

# Where a package has its models, start of the name of a module there -> reason.
REASONS: dict[str, dict[str, str]] = {
    "transformers.models.": {
        **dict.fromkeys(("swin", "donut", "maskformer", "vitdet", "sam", "lw_detr"), _WINDOWS),
        **dict.fromkeys(("beit", "data2vec", "layoutlmv3"), _TABLES),
        **dict.fromkeys(("hiera", "pvt", "segformer", "levit", "glpn"), _STAGES),
        **dict.fromkeys(("cvt", "convnext", "resnet", "regnet", "bit", "mobile", "focalnet", "poolformer"), _GRID),
        **dict.fromkeys(("align", "efficientnet", "swiftformer", "textnet", "pp_lcnet", "hgnet", "uvdoc"), _GRID),
        **dict.fromkeys(("rt_detr", "dinov3_convnext"), _GRID),
        **dict.fromkeys(("eomt_dinov3", "pixtral", "llama4", "mlcd", "sapiens2", "vjepa2", "mistral3"), _ROTARY),
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni", "qwen3_5"), _PACKED),
        **dict.fromkeys(("glm4v", "glm46v", "glm_ocr", "ernie4_5_vl", "exaone4_5", "kimi_k25"), _PACKED),
        **dict.fromkeys(("paddleocr_vl", "video_llama_3"), _PACKED),
        "x_clip": "its blocks exchange messages between frames, which alt does not support yet",
        "timesformer": _TIME,
    },
    "timm.models.": {
        **dict.fromkeys(("swin", "maxxvit", "nest", "twins", "gcvit", "vision_transformer_sam", "tiny_vit"), _WINDOWS),
        "volo": _WINDOWS,
        **dict.fromkeys(("beit", "vision_transformer_relpos", "convit"), _TABLES),
        **dict.fromkeys(
            ("hiera", "mvit", "pvt", "levit", "efficientformer", "davit", "coat", "visformer", "pit"), _STAGES
        ),
        **dict.fromkeys(("deepseek_vit", "gemma4_vit", "qwen3_vit"), _ROTARY),
        **dict.fromkeys(("mlp_mixer", "sequencer"), _PLACES),
        "naflexvit": "its images have their own sizes (NaFlex), which alt does not support for timm",
        "cait": "its attention mixes the heads before and after the softmax, which the kernels do not",
        "crossvit": "its branches of large and small patches exchange class tokens, which alt does not support",
        "tnt": "each of its tokens holds a sequence of smaller patches, which has no size-weighted mean",
        # Everything below convolves between blocks, some of it beside attention.
        **dict.fromkeys(
            ("byobnet", "byoanet", "convmixer", "convnext", "cpubone", "csatv2", "cspnet", "cspnext"), _GRID
        ),
        **dict.fromkeys(("densenet", "dla", "dpn", "edgenext", "efficientnet", "efficientvim", "efficientvit"), _GRID),
        **dict.fromkeys(("fasternet", "fastvit", "focalnet", "ghostnet", "hardcorenas", "hgnet", "hrnet"), _GRID),
        **dict.fromkeys(("iformer", "inception", "lcnet", "lowformer", "mambaout", "metaformer", "mobile"), _GRID),
        **dict.fromkeys(("nasnet", "nextvit", "nfnet", "pnasnet", "rdnet", "regnet", "repghost", "repvit"), _GRID),
        **dict.fromkeys(("resnet", "rexnet", "selecsls", "senet", "shvit", "starnet", "swiftformer", "tresnet"), _GRID),
        **dict.fromkeys(("vgg", "vovnet", "xception", "xcit"), _GRID),
    },
    "open_clip.": {"modified_resnet": _GRID},
    "torchvision.models.": {
        **dict.fromkeys(("swin", "video.swin", "maxvit"), _WINDOWS),
        "video.mvit": _STAGES,
        **dict.fromkeys(
            ("alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception", "mnasnet"), _GRID
        ),
        **dict.fromkeys(
            ("mobilenet", "regnet", "resnet", "shufflenet", "squeezenet", "vgg", "video.", "segment"), _GRID
        ),
        **dict.fromkeys(("detection", "optical_flow"), _GRID),
    },
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


def explain_no_module(thing: object) -> str:
    """Returns the message of the TypeError for something that is no module: a name, a class, a pipeline."""
    expected = "model must be a torch.nn.Module that alt.supported_hosts() lists, or its image tower, got"
    if isinstance(thing, str):
        return f"{expected} the str {thing[:80]!r}; load the model by its library first, and pass that"
    if isinstance(thing, type):
        return f"{expected} the class {thing.__name__}; pass an instance of it"
    name = type(thing).__name__
    if isinstance(getattr(thing, "model", None), nn.Module):
        return f"{expected} {name}; pass its model: .model"
    return f"{expected} {name}"


def _reason(model: nn.Module) -> str | None:
    for cls in type(model).__mro__:
        for package, reasons in REASONS.items():
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
