"""X-CLIP equals transformers' XCLIPModel, reads its format and the authors', and writes the former."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import XCLIPConfig, XCLIPModel

import alt
from alt.hosts import get_host
from alt.hosts.xclip_names import _translate, from_transformers
from alt.models import load_xclip, save_xclip
from alt.models.config import XClipConfig
from alt.models.text import TextEncoder
from alt.models.text_tower import TextTower
from alt.models.xclip import XClip

from .tiny_models import FRAMES, IMAGE, PATCH, WIDTH, clips, draw, randomised

VOCABULARY, LENGTH, TEXTS = 30, 7, 4


def tiny_foreign(dtype: torch.dtype = torch.float64) -> Any:
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": LENGTH,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE,
        "patch_size": PATCH,
        "num_frames": FRAMES,
        "mit_hidden_size": WIDTH,
        "mit_intermediate_size": 4 * WIDTH,
        "mit_num_attention_heads": 2,
    }
    config = XCLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, prompt_num_attention_heads=4)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return randomised(XCLIPModel(config).to(dtype)).eval()


def tiny_ours(text: str = "trained", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    host = get_host("open_clip")
    visual = host.build(
        {
            "image_size": IMAGE,
            "patch_size": PATCH,
            "width": 32,
            "layers": 2,
            "heads": 4,
            "mlp_ratio": 2.0,
            "output_dim": WIDTH,
        },
        quick_gelu=True,
    )
    sizes = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 24, "layers": 2, "heads": 3}
    tower = TextTower(host.build_text({**sizes, "mlp_ratio": 4.0, "output_dim": WIDTH}, quick_gelu=True))
    settings = {"backbone": "tiny", "quick_gelu": True, "frames": FRAMES, "heads": 2, "prompt_heads": 4, "text": text}
    config = XClipConfig(**{**settings, **options})
    return XClip(config, visual, 10.0, None if text == "cached" else tower).to(dtype)


def ids() -> Tensor:
    """Start 1, words, the largest id at the end, padding 0."""
    rows = torch.randint(2, VOCABULARY - 1, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(2))
    rows[:, 0] = 1
    for row, end in enumerate((3, 6, 4, 5)):
        rows[row, end], rows[row, end + 1 :] = VOCABULARY - 1, 0
    return rows


def name_by_ids(model: Any, rows: Tensor) -> None:
    model.set_classes([f"class {i}" for i in range(len(rows))], model.text.embed(rows, unit=False))
    model.text.set_ids(rows)


def test_forward_and_gradients_equal_transformers() -> None:
    theirs, ours = tiny_foreign(), tiny_ours()
    report = load_xclip(ours, theirs.state_dict())
    assert report.missing == report.unused == ()
    assert set(report.loaded) == {name for name in ours.state_dict() if name not in ("head.embeddings", "text.ids")}
    name_by_ids(ours, ids())
    x = clips()
    expected = theirs(input_ids=ids(), pixel_values=x)
    output = ours.train()(x)
    torch.testing.assert_close(output.logits, expected.logits_per_video, rtol=0, atol=1e-10)
    z = nn.functional.normalize(output.embedding, dim=-1)
    torch.testing.assert_close(z, expected.video_embeds, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.eval()(x).logits, expected.logits_per_video, rtol=0, atol=1e-10)

    weight = draw(2, TEXTS, seed=9)
    (weight * output.logits).sum().backward()
    (weight * expected.logits_per_video).sum().backward()
    # The scale is a buffer here: X-CLIP does not train it.
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None and name != "logit_scale"}
    translated, unknown = from_transformers(gradients)
    assert not unknown
    own = {name: p.grad for name, p in ours.named_parameters()}
    assert set(own) == set(translated)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, translated[name], rtol=0, atol=1e-10, msg=name)
        assert gradient.abs().max() > 0, name


def test_round_trip_through_transformers_format(tmp_path: Path) -> None:
    ours = randomised(tiny_ours("held").double()).eval()
    folder = save_xclip(ours, tmp_path / "xclip")
    theirs, info = XCLIPModel.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not any(info.values()), info
    name_by_ids(ours, ids())
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids(), pixel_values=clips()).logits_per_video
        torch.testing.assert_close(ours(clips()).logits, expected, rtol=0, atol=1e-10)
    again = tiny_ours("held")
    load_xclip(again, folder)
    before, after = ours.state_dict(), again.state_dict()
    for name in before:
        if not name.startswith("head.") and name != "text.ids":
            torch.testing.assert_close(after[name], before[name], rtol=1e-15, atol=0, msg=name)
            assert name == "logit_scale" or torch.equal(after[name], before[name]), name


def authors_state(theirs: Any) -> dict[str, Tensor]:
    """transformers' weights under the names of github.com/microsoft/VideoX, spelled out once more and by hand."""
    state: dict[str, Tensor] = {}
    source = theirs.state_dict()

    def packed(there: str, here: str) -> None:
        for kind in ("weight", "bias"):
            parts = [source[f"{here}.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{there}.in_proj_{kind}"] = torch.cat(parts)
            state[f"{there}.out_proj.{kind}"] = source[f"{here}.out_proj.{kind}"]

    def plain(there: str, here: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{there}.{kind}"] = source[f"{here}.{kind}"]

    def blocks(there: str, here: str, count: int) -> None:
        for i in range(count):
            packed(f"{there}.{i}.attn", f"{here}.{i}.self_attn")
            for a, b in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1")):
                plain(f"{there}.{i}.{a}", f"{here}.{i}.{b}")
            plain(f"{there}.{i}.mlp.c_proj", f"{here}.{i}.mlp.fc2")

    blocks("visual.transformer.resblocks", "vision_model.encoder.layers", 2)
    blocks("transformer.resblocks", "text_model.encoder.layers", 2)
    blocks("mit.resblocks", "mit.encoder.layers", 1)
    for i in range(2):
        there, here = f"visual.transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
        plain(f"{there}.message_fc", f"{here}.message_fc")
        plain(f"{there}.message_ln", f"{here}.message_ln")
        packed(f"{there}.message_attn", f"{here}.message_attn")
    state |= {name: tensor for name, tensor in source.items() if ".decoder." in name or name.endswith(".alpha")}
    for there, here in (
        ("visual.ln_pre", "vision_model.pre_layernorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
        ("prompts_visual_ln", "prompts_visual_layernorm"),
        ("prompts_generator.norm", "prompts_generator.layernorm"),
    ):
        plain(there, here)
    embeddings = "vision_model.embeddings"
    state["visual.class_embedding"] = source[f"{embeddings}.class_embedding"]
    state["visual.conv1.weight"] = source[f"{embeddings}.patch_embedding.weight"]
    state["visual.positional_embedding"] = source[f"{embeddings}.position_embedding.weight"]
    state["visual.proj"] = source["visual_projection.weight"].T
    state["mit.positional_embedding"] = source["mit.position_embedding"]
    state["prompts_visual_proj"] = source["prompts_visual_projection"]
    state["text_projection"] = source["text_projection.weight"].T
    state["token_embedding.weight"] = source["text_model.embeddings.token_embedding.weight"]
    state["positional_embedding"] = source["text_model.embeddings.position_embedding.weight"]
    state["logit_scale"] = source["logit_scale"]
    return state


@pytest.mark.parametrize("text", ["held", "cached"])
def test_the_authors_checkpoint(text: str, tmp_path: Path) -> None:
    theirs, ours = tiny_foreign(), tiny_ours(text)
    state = authors_state(theirs)
    path = tmp_path / "k400.pth"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 29}, path)
    report = load_xclip(ours, path)
    features = theirs.get_text_features(ids()).pooler_output.detach()
    ours.set_classes([f"class {i}" for i in range(TEXTS)], features)
    with torch.no_grad():
        expected = theirs(input_ids=ids(), pixel_values=clips()).logits_per_video
        torch.testing.assert_close(ours.eval()(clips()).logits, expected, rtol=0, atol=1e-10)
    unused = {name for name in report.unused if not name.startswith("text.clip.")}
    assert not unused
    assert bool(report.unused) == (text == "cached")


def test_refusals(tmp_path: Path) -> None:
    theirs, ours = tiny_foreign(), tiny_ours()
    state = theirs.state_dict()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    wide = {**state, "prompts_generator.alpha": torch.ones(WIDTH + 1)}
    lacking = {name: tensor for name, tensor in state.items() if not name.startswith("prompts_generator.decoder.1.")}
    clip = {name: tensor for name, tensor in state.items() if "message" not in name}
    for source, words in (
        (wide, r"has another size: prompts\.alpha is \[17\] there and \[16\] in the model"),
        (lacking, r"has no weights for 13 tensors of the model, prompts\.blocks\.1\.norm\.weight first"),
        (clip, "holds no X-CLIP, which has messages"),
    ):
        with pytest.raises(ValueError, match=f"source: the state dict {words}"):
            load_xclip(ours, source)
    with pytest.raises(ValueError, match="trained with QuickGELU; create the model with quick_gelu=True"):
        load_xclip(tiny_ours(quick_gelu=False), state)
    with pytest.raises(ValueError, match="has all its parts and no adapters, got one with prompt_layers=0"):
        load_xclip(tiny_ours(prompt_layers=0), state)
    with pytest.raises(TypeError, match="model: expected an X-CLIP, got ClipMean"):
        load_xclip(alt.create_model("clip-mean-mini"), state)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="create the model with text='held', got 'cached'"):
        save_xclip(tiny_ours("cached"), tmp_path)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in before.items())


def test_create_model_takes_a_published_xclip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' file and a folder of transformers by ``pretrained``, frames and text tower included."""
    sizes = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": IMAGE, "patch_size": PATCH, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", sizes)
    small: dict[str, Any] = {"backbone": "tiny", "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model: Any = alt.create_model("xclip-b32", **small, frames=2, quick_gelu=True, text="held")
        randomised(model).eval()
    names = ["juggling balls", "riding a bike"]
    model.name_classes(names, TextEncoder(model.text.clip, open_clip.get_tokenizer("tiny")))
    named = {_translate(name, 0, 1): tensor for name, tensor in model.state_dict().items()}  # None for head and ids
    state = {row[0]: tensor for row, tensor in named.items() if row is not None}
    state["logit_scale"] = state["logit_scale"].log()
    torch.save({"model": state}, tmp_path / "k400_32_2.pth")
    save_xclip(model, tmp_path / "folder")
    x = clips(frames=2, dtype=torch.float32)
    with torch.no_grad():
        expected = model(x).logits
        for source in (tmp_path / "k400_32_2.pth", tmp_path / "folder"):
            found: Any = alt.create_model("xclip-b32", **small, pretrained=source, classes=names).eval()
            assert found.config.frames == 2
            assert found.config.quick_gelu
            torch.testing.assert_close(found(x).logits, expected, rtol=0, atol=1e-4)
            assert found.joint_text_source.pretrained == ("model.safetensors" if source.is_dir() else source.name)
    with pytest.raises(ValueError, match=r"pretrained: .*k400_32_2\.pth was trained with QuickGELU"):
        alt.create_model("xclip-b32", **small, pretrained=tmp_path / "k400_32_2.pth", quick_gelu=False)
    with pytest.raises(ValueError, match=r"pretrained: .* has no weights for \d+ tensors of the model, integration\.b"):
        alt.create_model("xclip-b32", **{**small, "layers": 2}, pretrained=tmp_path / "folder")


@pytest.mark.slow
def test_b32_equals_transformers() -> None:
    frames = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = XCLIPModel(XCLIPConfig(vision_config={"num_frames": frames})).double().eval()
        ours = alt.create_model("xclip-b32", frames=frames, quick_gelu=True, text="trained").double()
    load_xclip(ours, theirs.state_dict())
    rows = torch.randint(1, 49000, (3, 77), generator=torch.Generator().manual_seed(1))
    rows[:, 20] = 49407
    name_by_ids(ours, rows)
    x = draw(1, frames, 3, 224, 224)
    output, expected = ours(x).logits, theirs(input_ids=rows, pixel_values=x).logits_per_video
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-8)
    output.logsumexp(1).sum().backward()
    expected.logsumexp(1).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None and name != "logit_scale"}
    translated, _ = from_transformers(gradients)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, translated[name], rtol=0, atol=1e-8, msg=name)
