"""Video models over CLIPs of other packages: the same results as over open_clip's, their texts, files and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

import alt
from alt.corpus import Corpus, Entity
from alt.data.pixels import CLIP_MEAN, CLIP_STD
from alt.models import load_model, save_model
from alt.models.clip import build_clip, check_weights
from alt.models.text import TextEncoder
from tests.patch.compare import randomised

from .tiny_models import draw as numbers

SIDE, PATCH, WIDTH, D, WORDS, FRAMES = 32, 8, 32, 24, 60, 2
TRUNK = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TRUNK, "image_size": SIDE, "patch_size": PATCH}
TEXT = {**TRUNK, "vocab_size": WORDS, "eos_token_id": WORDS - 1, "bos_token_id": 1, "pad_token_id": 0}
NAMES = ["lifting cup", "pushing box"]
ENTITIES = [Entity("cup", "a red cup", "object", "test"), Entity("box", "a blue box", "object", "test")]


def hf_clip(**text: Any) -> Any:
    config = CLIPConfig(text_config={**TEXT, **text}, vision_config=VISION, projection_dim=D)
    return randomised(CLIPModel(config)).eval()


def siglip() -> Any:
    text = {**TEXT, "max_position_embeddings": 77}
    return randomised(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))).eval()


def siglip2() -> Any:
    vision = {**TRUNK, "patch_size": PATCH, "num_patches": (SIDE // PATCH) ** 2}
    text = {**TEXT, "max_position_embeddings": 77}
    return randomised(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))).eval()


def openai_clip() -> Any:
    clip = pytest.importorskip("clip.model")
    return randomised(clip.CLIP(D, SIDE, 2, 64, PATCH, 77, WORDS, 64, 1, 1)).eval()


def own_clip(**options: Any) -> Any:
    vision = {
        **options,
        "image_size": SIDE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": 2,
        "head_width": 16,
        "mlp_ratio": 2,
    }
    text = {"context_length": 77, "vocab_size": WORDS, "width": WIDTH, "heads": 2, "layers": 2, "mlp_ratio": 2.0}
    return randomised(open_clip.CLIP(D, vision, text, quick_gelu=True)).eval()


def converted(clip: Any) -> Any:
    """The CLIPModel of transformers with the weights of an open_clip CLIP; names as in transformers' documentation."""
    model = hf_clip()
    pairs = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    rows = {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "token_embedding": "text_model.embeddings.token_embedding",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
        "logit_scale": "logit_scale",
    }
    state: dict[str, Tensor] = {}
    for name, tensor in clip.state_dict().items():
        if name in ("visual.proj", "text_projection"):
            state[f"{'visual' if 'visual' in name else 'text'}_projection.weight"] = tensor.T
            continue
        if "resblocks" not in name:
            owner = name if name in rows else name.rpartition(".")[0]
            state[name.replace(owner, rows[owner], 1)] = tensor
            continue
        side, _, rest = name.partition("transformer.resblocks.")
        number, _, part = rest.partition(".")
        layer = f"{'vision' if side else 'text'}_model.encoder.layers.{number}."
        if "in_proj" in part:
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{layer}self_attn.{letter}_proj.{part.rpartition('_')[2]}"] = piece
        else:
            owner, _, leaf = part.rpartition(".")
            state[f"{layer}{pairs.get(owner, owner.replace('attn', 'self_attn'))}.{leaf}"] = tensor
    model.load_state_dict(state)
    return model


def words(texts: list[str]) -> Tensor:
    """Ids of 77: 1 begins a text, 59 ends it, and a word is a function of its letters."""
    ids = torch.zeros(len(texts), 77, dtype=torch.int64)
    for row, text in enumerate(texts):
        inside = [2 + sum(map(ord, word)) % 50 for word in text.split()]
        ids[row, : len(inside) + 2] = torch.tensor([1, *inside, WORDS - 1])
    return ids


def clips(seed: int = 1) -> Tensor:
    return torch.randn(2, FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def corpus() -> Corpus:
    return Corpus.from_entities(ENTITIES)


@pytest.mark.parametrize(("family", "text"), [("alt", "cached"), ("xclip", "held")])
def test_the_same_weights_give_the_same_logits(family: str, text: str) -> None:
    """open_clip's CLIP and transformers' CLIPModel with its weights: class texts, corpus, tokens and logits agree."""
    own = own_clip()
    made: list[Any] = []
    for clip in (own, converted(own)):
        rows = {"corpus": corpus()} if family == "alt" else {}
        encoder = TextEncoder(clip, words)
        model: Any = alt.create_model(f"{family}-b16", backbone=(clip, words), frames=FRAMES, r=2, text=text, **rows)
        model.name_classes(NAMES, encoder, "none")
        made.append(model.eval())
    new = [[p for name, p in model.named_parameters() if not model.is_backbone_parameter(name)] for model in made]
    with torch.no_grad():
        for one, other in zip(*new, strict=True):
            other.copy_(one.add_(0.1 * torch.randn(one.shape)))
        first, second = (model(clips()) for model in made)
    assert first.logits.std() > 1e-2
    torch.testing.assert_close(second.logits, first.logits, rtol=0, atol=5e-5)
    if family == "alt":
        assert first.index.shape[-1] == 17 - 2 * 2
        assert torch.equal(first.index, second.index)


def expected(make: Any, clip: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of the frames of ``clips()`` and of texts, by the package's own calls and statistics of pixels."""
    images = clips().flatten(0, 1)
    if make is openai_clip:
        return clip.encode_image(images), clip.encode_text(ids)
    inputs = {"pixel_values": images if make is hf_clip else halves(images)}
    if make is siglip2:  # the processor's rows of patches
        grid = SIDE // PATCH
        patches = inputs["pixel_values"].unflatten(3, (grid, PATCH)).unflatten(2, (grid, PATCH))
        inputs["pixel_values"] = patches.permute(0, 2, 4, 3, 5, 1).reshape(len(images), grid * grid, -1)
        inputs["spatial_shapes"] = torch.full((len(images), 2), grid)
        inputs["pixel_attention_mask"] = torch.ones(len(images), grid * grid)
    return clip.get_image_features(**inputs).pooler_output, clip.get_text_features(input_ids=ids).pooler_output


def halves(images: Tensor) -> Tensor:
    """Images with CLIP's mean and deviation, restated with SigLIP's, 0.5 and 0.5."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (images * std + mean - 0.5) / 0.5


@pytest.mark.parametrize("make", [siglip, siglip2, hf_clip, openai_clip])
def test_frames_and_texts_are_those_of_the_backbone(make: Any) -> None:
    clip = make()
    with torch.no_grad():
        frames, text = expected(make, clip, words(["lifting cup"]))
        model: Any = alt.create_model("clip-mean-b16", backbone=clip, frames=FRAMES)
        model.name_classes(["lifting cup"], TextEncoder(clip, words), "none")
        tokens = model.backbone(clips(), trace=True)
        torch.testing.assert_close(tokens.frame.flatten(0, 1), frames, rtol=0, atol=2e-5)
        torch.testing.assert_close(model.head.embeddings, nn.functional.normalize(text, dim=-1), rtol=0, atol=1e-5)
        torch.testing.assert_close(model.logit_scale, clip.logit_scale.exp().reshape(()))
        if make is siglip:  # a region has the row of an image of that token alone
            last, _ = model.backbone.handle.encode(halves(clips().flatten(0, 1)))
            alone = clip.vision_model.head(clip.vision_model.post_layernorm(last[:, 5:6]))
            torch.testing.assert_close(tokens.regions.flatten(0, 1)[:, 5], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "family"), [(hf_clip, "alt"), (hf_clip, "vifi"), (siglip, "alt"), (siglip2, "vifi"), (openai_clip, "alt")]
)
def test_costs_and_files(make: Any, family: str, tmp_path: Path) -> None:
    """Every part of the tower is booked as the tower's, and a file brings back the same model."""
    model: Any = alt.create_model(f"{family}-b16", backbone=make(), frames=FRAMES, r=2)
    model.name_classes(NAMES, TextEncoder(make(), words), "none")
    if family == "alt":
        model.set_corpus(torch.randn(5, model.width))
    parts = alt.count_macs(model).by_component
    assert parts["other"] == 0
    assert all(parts[name] for name in ("patch_embedding", "attention_projections", "attention", "mlp", "pooling"))
    assert bool(parts["adapter"]) == (family == "alt")
    again = load_model(save_model(model.eval(), tmp_path / "model.safetensors")).eval()
    assert torch.equal(again(clips()).logits, model(clips()).logits)
    assert (again.config, again.joint_text_source) == (model.config, model.joint_text_source)
    assert again.backbone.statistics == model.backbone.statistics


def test_what_no_parameter_shows_is_in_the_file_too(tmp_path: Path) -> None:
    """Pooling and the epsilon of the norms of an open_clip model that no name stands for."""
    vision = {"pool_type": "avg", "final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-2}}
    model: Any = alt.create_model("clip-mean-b16", backbone=own_clip(**vision), frames=FRAMES, r=2)
    model.name_classes(NAMES, TextEncoder(own_clip(), words), "none")
    again = load_model(save_model(model.eval(), tmp_path / "model.safetensors")).eval()
    assert torch.equal(again(clips()).logits, model(clips()).logits)


def test_a_text_tower_that_is_trained() -> None:
    model: Any = alt.create_model("vifi-b16", backbone=hf_clip(), frames=FRAMES, r=0).train()
    model.name_classes(NAMES, TextEncoder(hf_clip(), words), "none")
    nn.functional.cross_entropy(model(clips()).logits, torch.tensor([0, 1])).backward()
    tower = {name: parameter for name, parameter in model.named_parameters() if name.startswith("text.")}
    assert {name.split(".")[2] for name in tower} == {"text_model", "text_projection"}
    assert all(parameter.grad is not None for parameter in tower.values())
    assert [positions.shape for positions in model.text.no_decay()] == [(77, WIDTH)]


@pytest.mark.parametrize("make", [siglip, openai_clip])
def test_the_integration_transformer_over_any_host(make: Any) -> None:
    """X-Florence's form: four layers over the frames of another encoder, without messages, with prompts."""
    model: Any = alt.create_model("xclip-b16", backbone=make(), frames=FRAMES, r=2, messages=False, layers=4)
    model.name_classes(NAMES, TextEncoder(make(), words), "none")
    assert len(model.integration.blocks) == 4
    logits = model.eval()(clips()).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    with torch.no_grad():
        model.integration.positions[0] += numbers(model.width, dtype=torch.float32)
    assert (model(clips()).logits - logits).abs().max() > 1e-4


def word_tokenizer() -> Any:
    """A tokenizer of transformers over six words that pads with the end of a text, as CLIP's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["<start>", "cup", "box", "lifting", "pushing", "<end>"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="cup"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 5)]
    )
    ends = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **ends, model_max_length=12)


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    """Model and tokenizer come from the folder; the record names it."""
    sizes = {"vocab_size": 6, "max_position_embeddings": 8, "eos_token_id": 5, "bos_token_id": 0, "pad_token_id": 5}
    clip, folder = hf_clip(**sizes), str(tmp_path / "clip")
    clip.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    model: Any = alt.create_model("clip-mean-b16", backbone=f"hf:{folder}", frames=FRAMES, r=0).eval()
    assert model.config.backbone == model.joint_text_source.backbone == f"hf:{folder}"
    with torch.no_grad():
        text = clip.get_text_features(input_ids=torch.tensor([[0, 3, 1, 5, 5, 5, 5, 5]])).pooler_output
        frames = clip.get_image_features(clips().flatten(0, 1)).pooler_output
    torch.testing.assert_close(model.backbone(clips()).frame.flatten(0, 1), frames, rtol=0, atol=2e-5)
    encoder = alt.create_text_encoder(f"hf:{folder}")
    torch.testing.assert_close(encoder.embed(["lifting cup"]), nn.functional.normalize(text, dim=-1))
    assert encoder.fingerprint() == model.joint_text_source.sha256
    assert not hasattr(encoder.clip, "vision_model")
    with pytest.warns(UserWarning, match=r"1 of 2 have more than the 8 tokens .* 'cup cup .* cup' \(9\) first"):
        encoder.embed([" ".join(["cup"] * 6), " ".join(["cup"] * 7)])
    with torch.device("meta"):  # its configuration alone is read
        shapes: Any = alt.create_model("alt-b16", backbone=f"hf:{folder}", frames=FRAMES, r=2)
    assert shapes.width == D


def test_the_words_of_openai_need_no_tokenizer() -> None:
    with torch.device("meta"):
        loaded = build_clip(CLIPModel(CLIPConfig(text_config=TRUNK, vision_config=VISION, projection_dim=D)))
    ids = loaded.tokenizer()(["lifting cup"])
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-B-16")(["lifting cup"]))


def test_a_corpus_of_another_text_tower_is_refused() -> None:
    first: Any = alt.create_model("alt-b16", backbone=(hf_clip(), words), frames=FRAMES, r=2, corpus=corpus())
    other = hf_clip()
    with torch.no_grad():
        other.text_projection.weight[0] += 1
    with pytest.raises(ValueError, match=r"corpus: it was embedded by transformers\.clip:CLIPModel \(.{8}\), and the "):
        alt.create_model("alt-b16", backbone=other, frames=FRAMES, r=2, corpus=first.corpus)


def test_refusals(tmp_path: Path) -> None:
    vision = CLIPVisionModel(CLIPVisionConfig(**VISION))
    clip = "transformers.clip:CLIPModel"
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (vision, {}, TypeError, r"backbone: expected a name .* got CLIPVisionModel$"),
        (nn.Linear(2, 2), {}, TypeError, r"backbone: expected a name .* got Linear$"),
        (7, {}, TypeError, r"backbone: expected a name .* got int$"),
        (hf_clip(), {"pretrained": "openai"}, ValueError, f"pretrained: the backbone {clip} has its weights already"),
        (f"hf:{tmp_path}", {}, ValueError, "backbone: transformers finds no model at "),
        (hf_clip(), {"classes": ["a"]}, ValueError, f"backbone: the tokenizer of {clip} with 60 words is not known"),
        (hf_clip(), {"quick_gelu": False}, ValueError, "backbone: .* was trained with QuickGELU"),
        (openai_clip(), {"text": "held"}, TypeError, "has no text tower that a video model can hold"),
        ("open_clip:ViT-Q-1", {}, ValueError, "backbone: open_clip has no model 'ViT-Q-1'"),
    ]
    for backbone, options, error, message in cases:
        with pytest.raises(error, match=message):
            alt.create_model("clip-mean-b16", backbone=backbone, frames=FRAMES, r=0, **options)
    with pytest.raises(TypeError, match=r"messages: .* class tokens, and SiglipVisionModel has none; expected mess"):
        alt.create_model("xclip-b16", backbone=siglip(), frames=FRAMES, r=0)
    with pytest.raises(ValueError, match="pretrained: the backbone hf:some/where has its weights already"):
        check_weights("hf:some/where", "openai")
    vision.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a model of type clip or siglip, got 'clip_vision_model'"):
        build_clip(f"hf:{tmp_path}")
