"""The hosts that ship with alt. A host's module is imported when the first model of its family is passed in."""

from __future__ import annotations

import importlib.metadata
from typing import NamedTuple

__all__ = ["BUILT_IN", "BuiltIn", "SupportedHost", "list_built_in"]


class SupportedHost(NamedTuple):
    """A family of models that can be patched.

    Attributes:
        name: of the host. classes: accepted by :func:`alt.patch_model`.
        package: that defines them. version: installed, None if it is not. tested: version that the tests run with.
        exact: what has been shown to be exact, in words.
    """

    name: str
    classes: tuple[str, ...]
    package: str
    version: str | None
    tested: str | None
    exact: str


class BuiltIn(NamedTuple):
    """Where a host of alt lies, and whose models it knows.

    Attributes:
        name: of the host. origin: module whose classes mark a model of the family.
        module, attribute: of our :class:`alt.hosts.Host`.
        classes, package, tested, exact: see :class:`SupportedHost`. twins: packages with the same classes.
    """

    name: str
    origin: str
    module: str
    attribute: str
    classes: tuple[str, ...]
    package: str
    tested: str
    exact: str
    twins: tuple[str, ...] = ()

    def matches(self, module: str) -> bool:
        """Returns True if ``module`` is the origin or lies in it."""
        return module == self.origin or module.startswith(self.origin + ".")


_STATES = "hidden_states and last_hidden_state on the grid; output_attentions is refused"


def _transformers(family: str, attribute: str, classes: tuple[str, ...], exact: str) -> BuiltIn:
    home = "dinov2" if family.startswith("dinov2") else family
    name, origin, module = f"transformers.{family}", f"transformers.models.{family}", f"alt.hosts.transformers.{home}"
    return BuiltIn(name, origin, module, attribute, classes, "transformers", "5.23.0", f"{exact}; {_STATES}")


# In the order in which they are asked: timm's towers inside open_clip's models come before open_clip.
BUILT_IN: tuple[BuiltIn, ...] = (
    BuiltIn(
        "timm",
        "timm.models.vision_transformer",
        "alt.hosts.timm",
        "HOST",
        ("VisionTransformer", "VisionTransformerDistilled", "open_clip's TimmModel with such a trunk"),
        "timm",
        "1.0.31",
        "every prefix token, pooling, norm, LayerScale and image size; tokens that it returns lie on the grid",
    ),
    BuiltIn(
        "timm.eva",
        "timm.models.eva",
        "alt.hosts.timm.eva",
        "HOST",
        ("Eva", "open_clip's TimmModel with such a trunk"),
        "timm",
        "1.0.31",
        "EVA, EVA-02, DINOv3, PE-Core, RoPE-ViT: rotary positions of every kind, at the mean place of merged patches",
    ),
    _transformers(
        "clip",
        "HOST",
        ("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPForImageClassification"),
        "class token, projection, classifier",
    ),
    _transformers(
        "siglip",
        "HOST",
        ("SiglipModel", "SiglipVisionModel", "SiglipForImageClassification"),
        "attention pooling with sizes, classifier; SigLIP 2 of fixed size",
    ),
    _transformers(
        "siglip2",
        "HOST",
        ("Siglip2Model", "Siglip2VisionModel", "Siglip2ForImageClassification"),
        "NaFlex: padding is masked, never merges and is not pooled; classifier",
    ),
    _transformers(
        "vit",
        "HOST",
        ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
        "class token, pooler, classifier",
    ),
    _transformers(
        "deit",
        "HOST",
        (
            "DeiTModel",
            "DeiTForImageClassification",
            "DeiTForImageClassificationWithTeacher",
            "DeiTForMaskedImageModeling",
        ),
        "class and distillation token, pooler, classifiers",
    ),
    _transformers(
        "ijepa", "HOST", ("IJepaModel", "IJepaForImageClassification"), "no class token, classifier on the mean"
    ),
    _transformers("vit_msn", "HOST", ("ViTMSNModel", "ViTMSNForImageClassification"), "class token, classifier"),
    _transformers(
        "metaclip_2",
        "HOST",
        (
            "MetaClip2Model",
            "MetaClip2VisionModel",
            "MetaClip2VisionModelWithProjection",
            "MetaClip2ForImageClassification",
        ),
        "as CLIP: class token, projection, classifier",
    ),
    _transformers("altclip", "HOST", ("AltCLIPModel", "AltCLIPVisionModel"), "as CLIP: class token, projection"),
    _transformers(
        "chinese_clip", "HOST", ("ChineseCLIPModel", "ChineseCLIPVisionModel"), "as CLIP: class token, projection"
    ),
    _transformers(
        "clipseg", "HOST", ("CLIPSegModel", "CLIPSegVisionModel"), "as CLIP; the decoder of CLIPSeg reads the grid"
    ),
    _transformers(
        "dinov2",
        "HOST",
        ("Dinov2Model", "Dinov2ForImageClassification", "Dinov2Backbone"),
        "LayerScale, SwiGLU, stochastic depth, feature maps",
    ),
    _transformers(
        "dinov2_with_registers",
        "WITH_REGISTERS",
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersBackbone"),
        "registers never merge, LayerScale, SwiGLU, stochastic depth, feature maps",
    ),
    BuiltIn(
        "torchvision",
        "torchvision.models.vision_transformer",
        "alt.hosts.torchvision",
        "HOST",
        ("VisionTransformer",),
        "torchvision",
        "0.26.0",
        "class token, both stems, any head, drop-out; it takes its own image size alone",
    ),
    BuiltIn(
        "torch",
        "torch.nn.modules.transformer",
        "alt.hosts.torch_encoder",
        "HOST",
        ("TransformerEncoder",),
        "torch",
        "2.11.0",
        "both layouts, pre-norm and post-norm, padding masks; tokens that it returns lie where they were",
    ),
    BuiltIn(
        "openai_clip",
        "clip.model",
        "alt.hosts.openai_clip",
        "HOST",
        ("CLIP", "VisionTransformer"),
        "clip-anytorch",
        "2.6.0",
        "OpenAI's clip, also from openai-clip and GitHub; half-precision weights with norms in float32",
        ("openai-clip",),
    ),
    _transformers(
        "dinov3_vit",
        "HOST",
        ("DINOv3ViTModel", "DINOv3ViTBackbone"),
        "registers never merge, rotary positions at the mean place of merged patches, LayerScale, gated MLP, "
        "feature maps",
    ),
    BuiltIn(
        "open_clip",
        "open_clip",
        "alt.hosts.open_clip",
        "HOST",
        ("CLIP", "CustomTextCLIP", "CoCa", "VisionTransformer"),
        "open_clip_torch",
        "3.3.0",
        "every pooling and block option of its ViT towers; forward_intermediates on the grid",
    ),
)


def list_built_in() -> list[SupportedHost]:
    """Returns the entries of :func:`alt.supported_hosts` for the hosts of alt."""
    return [
        SupportedHost(entry.name, entry.classes, entry.package, _version(entry), entry.tested, entry.exact)
        for entry in sorted(BUILT_IN, key=lambda entry: entry.package)
    ]


def _version(entry: BuiltIn) -> str | None:
    for package in (entry.package, *entry.twins):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
