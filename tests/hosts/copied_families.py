"""Families of transformers with the layers of CLIP or ViT under other names."""

from __future__ import annotations

from typing import Any

import transformers as hf

from .families import MLP, SMALL, TEXT, Family, clip, clip_pool, normed, vit


def last_and_pooled(model: Any, batch: Any) -> list[Any]:
    output = model(batch)
    return [output.last_hidden_state, output.pooler_output]


def clip_model(name: str, **text: Any) -> Family:
    """``<name>Model`` with both towers."""
    config = getattr(hf, f"{name}Config")(
        text_config={**TEXT, **text}, vision_config={**SMALL, **MLP}, projection_dim=12
    )
    return clip(
        lambda: getattr(hf, f"{name}Model")(config),
        lambda m, x: m.get_image_features(x).pooler_output,
        lambda m, g: m.visual_projection(clip_pool(m.vision_model, g)),
        lambda m: m.vision_model,
    )


def with_protected(family: Family, count: int) -> Family:
    family.protected = count
    return family


COPIES: dict[str, Family] = {
    "MetaClip2Model": clip_model("MetaClip2"),
    "MetaClip2VisionModelWithProjection": clip(
        lambda: hf.MetaClip2VisionModelWithProjection(hf.MetaClip2VisionConfig(**SMALL, **MLP, projection_dim=12)),
        lambda m, x: m(x).image_embeds,
        lambda m, g: m.visual_projection(clip_pool(m.vision_model, g)),
        lambda m: m.vision_model,
    ),
    "MetaClip2ForImageClassification": clip(
        lambda: hf.MetaClip2ForImageClassification(
            hf.MetaClip2Config(text_config=TEXT, vision_config={**SMALL, **MLP}, projection_dim=12)
        ),
        lambda m, x: m(x).logits,
        lambda m, g: m.classifier(g[:, 1:].mean(1)),
        lambda m: m.vision_model,
    ),
    "MetaClip2VisionModel": clip(
        lambda: hf.MetaClip2VisionModel(hf.MetaClip2VisionConfig(**SMALL, **MLP)),
        last_and_pooled,
        lambda m, g: [g, clip_pool(m, g)],
    ),
    "AltCLIPModel": clip_model("AltCLIP", project_dim=12),
    "ChineseCLIPModel": clip_model("ChineseCLIP"),
    "CLIPSegModel": clip_model("CLIPSeg"),
    "DeiTModel": with_protected(
        vit(
            lambda: hf.DeiTModel(hf.DeiTConfig(**SMALL, **MLP)),
            last_and_pooled,
            lambda m, g: [normed(m, g), m.pooler(normed(m, g))],
        ),
        2,
    ),
    "DeiTForImageClassification": with_protected(
        vit(
            lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**SMALL, **MLP)),
            lambda m, x: m(x).logits,
            lambda m, g: m.classifier(normed(m.deit, g)[:, 0]),
            lambda m: m.deit,
        ),
        2,
    ),
    "DeiTForImageClassificationWithTeacher": with_protected(
        vit(
            lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SMALL, **MLP)),
            lambda m, x: [(o := m(x)).cls_logits, o.distillation_logits],
            lambda m, g: [
                m.cls_classifier(normed(m.deit, g)[:, 0]),
                m.distillation_classifier(normed(m.deit, g)[:, 1]),
            ],
            lambda m: m.deit,
        ),
        2,
    ),
    "IJepaModel": with_protected(
        vit(
            lambda: hf.IJepaModel(hf.IJepaConfig(**SMALL, **MLP)),
            lambda m, x: m(x).last_hidden_state,
            lambda m, g: normed(m, g),
        ),
        0,
    ),
    "IJepaForImageClassification": with_protected(
        vit(
            lambda: hf.IJepaForImageClassification(hf.IJepaConfig(**SMALL, **MLP)),
            lambda m, x: m(x).logits,
            lambda m, g: m.classifier(normed(m.ijepa, g).mean(1)),
            lambda m: m.ijepa,
        ),
        0,
    ),
    "ViTMSNModel": vit(
        lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**SMALL, **MLP)),
        lambda m, x: m(x).last_hidden_state,
        lambda m, g: normed(m, g),
    ),
    "ViTMSNForImageClassification": vit(
        lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**SMALL, **MLP)),
        lambda m, x: m(x).logits,
        lambda m, g: m.classifier(normed(m.vit, g)[:, 0]),
        lambda m: m.vit,
    ),
}

SHOWN_BY_ANOTHER = {
    *("MetaClip2VisionModel", "MetaClip2VisionModelWithProjection", "MetaClip2ForImageClassification"),
    *(
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "IJepaModel",
        "ViTMSNForImageClassification",
    ),
}
"""Classes whose host another class tests in the fast suite."""
