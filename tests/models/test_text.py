"""The text encoder: unit rows, batches, class texts, and open_clip's own tokens."""

from __future__ import annotations

import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F

import alt.corpus
from alt.models.clip import build_clip
from alt.models.prompts import ALT16, fill
from alt.models.registry import create_text_encoder
from alt.models.text import TextEncoder, TextSource

from .clips import text_clip, tokenizer


def encoder(batch_size: int = 256) -> TextEncoder:
    return TextEncoder(text_clip(), tokenizer, batch_size)


def test_rows_are_the_towers_of_length_one() -> None:
    texts = ["see the cup", "ball", "lifting red ball"]
    found = encoder().embed(texts)
    expected = text_clip().encode_text(tokenizer(texts))
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert not found.requires_grad
    assert not found.is_inference()


def test_batches_change_nothing() -> None:
    texts = [f"{a} {b}" for a in ("see", "the", "red") for b in ("cup", "ball", "action")]
    torch.testing.assert_close(encoder(2).embed(texts), encoder().embed(texts))


def test_the_tower_is_left_in_its_mode() -> None:
    one = encoder()
    one.clip.train()
    one.embed(["cup"])
    assert one.clip.training


def test_class_texts() -> None:
    names = ["lifting cup", "red ball"]
    stack = encoder().embed_templates(names, ["{}", "see {}", "a photo of {}"])
    assert stack.shape == (3, 2, 16)
    torch.testing.assert_close(stack[1], encoder().embed(["see lifting cup", "see red ball"]))
    mean = F.normalize(stack.mean(0), dim=-1)
    torch.testing.assert_close(encoder().embed_classes(names, ["{}", "see {}", "a photo of {}"]), mean)
    torch.testing.assert_close(encoder().embed_classes(names, "none"), encoder().embed(names))


def test_a_random_template_by_seed() -> None:
    names = ["lifting cup", "red ball"]
    templates = ["{}", "see {}", "a photo of {}"]
    stack = encoder().embed_templates(names, templates)
    picked = set()
    for seed in range(20):
        found = encoder().embed_classes(names, templates, mode="random", seed=seed)
        torch.testing.assert_close(found, encoder().embed_classes(names, templates, mode="random", seed=seed))
        picked.add(int((stack - found).abs().amax((1, 2)).argmin()))
        assert (stack - found).abs().amax((1, 2)).min() < 1e-5
    assert picked == {0, 1, 2}


def test_a_corpus_is_embedded_by_it() -> None:
    corpus = alt.corpus.Corpus.from_entities([("cup", "a photo", "object"), ("lifting", "", "motion")])
    found = corpus.embed(encoder()).embeddings
    torch.testing.assert_close(found, encoder().embed(["cup: a photo", "lifting"]))


def test_open_clips_tokens_of_the_16_templates() -> None:
    """The frozen ids of CLIP's vocabulary, which open_clip ships: one template, and the round trip of all."""
    tokens = open_clip.get_tokenizer("ViT-B-16")
    texts = [text for template in ALT16 for text in fill(template, ["riding a bike"])]
    ids = tokens(texts)
    assert ids.shape == (16, 77)
    assert ids[0, :9].tolist() == [49406, 320, 1125, 539, 1816, 6765, 320, 3701, 49407]
    for text, row in zip(texts, ids.tolist(), strict=True):
        inner = row[1 : row.index(49407)]
        assert tokens.decode(inner).replace(" ,", ",").strip() == text.lower()


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="must be a sequence of str"):
        encoder().embed("cup")
    with pytest.raises(TypeError, match="must be a sequence of str"):
        encoder().embed([3])
    with pytest.raises(ValueError, match="at least one text"):
        encoder().embed([])
    with pytest.raises(TypeError, match="one str"):
        encoder().embed_classes("cup")
    with pytest.raises(ValueError, match="mode must be"):
        encoder().embed_classes(["cup"], mode="mean")
    with pytest.raises(TypeError, match="with a text tower, got Linear"):
        TextEncoder(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(ValueError, match="batch_size"):
        TextEncoder(text_clip(), tokenizer, 0)


def test_by_name() -> None:
    with pytest.raises(ValueError, match="no model 'ViT-Z-99'"):
        create_text_encoder("ViT-Z-99")
    with torch.device("meta"):
        built = create_text_encoder("clip-mean-b32", device="meta")
    assert not hasattr(built.clip, "visual")
    assert built.clip.text_projection.shape == (512, 512)
    assert not any(p.requires_grad for p in built.clip.parameters())


def test_of_the_small_clip() -> None:
    for name in ("mini", "alt-mini"):
        found = create_text_encoder(name).embed_classes(["lifting cup", "pushing ball"], "none")
        assert found.shape[0] == 2
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_the_fingerprint_is_of_the_text_tower_and_its_activation() -> None:
    """The same for the tower alone and in its CLIP; another one for other weights and another activation."""
    whole = build_clip("mini", "entity-world").text_encoder()
    alone = create_text_encoder("alt-mini", pretrained="entity-world")
    assert alone.fingerprint() == whole.fingerprint() != create_text_encoder("mini").fingerprint()
    assert alone.source("none") == TextSource("mini", "entity-world", alone.fingerprint(), ("{}",))
    assert str(alone.source()) == f"mini with the weights entity-world ({alone.fingerprint()[:8]})"
    with torch.no_grad():
        whole.clip.logit_scale += 1
        assert whole.fingerprint() == alone.fingerprint()  # training moves it, and it is no part of a text's direction
        next(whole.clip.transformer.parameters())[0] += 1
    assert whole.fingerprint() != alone.fingerprint()
    gelu, quick = (open_clip.create_model("ViT-S-32-alt", force_quick_gelu=quick) for quick in (False, True))
    quick.load_state_dict(gelu.state_dict())
    assert TextEncoder(gelu, tokenizer).fingerprint() != TextEncoder(quick, tokenizer).fingerprint()


# --- kind: texts that do not fit, and names that become one embedding ---


def test_texts_that_are_cut_are_told_with_their_length() -> None:
    clip = text_clip()
    length = tokenizer(["a"]).shape[1]
    open_clips = open_clip.get_tokenizer("ViT-S-32-alt")

    def short(texts: list[str], context_length: int = length) -> torch.Tensor:
        return open_clips(texts, context_length=context_length).clamp(max=clip.vocab_size - 1)

    encoder = TextEncoder(clip, short)
    fits = " ".join(["cup"] * (length - 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoder.embed([fits, "box"]).shape[0] == 2
    with pytest.warns(UserWarning, match=rf"1 of 2 have more than the {length} tokens .* '.*' \({length + 1}\) first"):
        encoder.embed(["box", f"{fits} cup"])
    with (
        pytest.warns(UserWarning, match="2 of 2"),
        pytest.raises(ValueError, match="have the same tokens for the text tower"),
    ):
        encoder.embed_classes([f"{fits} lifting", f"{fits} pushing"], "none")


def test_names_with_the_same_tokens_are_refused() -> None:
    encoder = TextEncoder(text_clip(), lambda texts: tokenizer([text.lower() for text in texts]))
    for names in (["Lifting cup", "lifting cup"], ["box", "cup", "box"]):
        with pytest.raises(ValueError, match=r"names: '.*' and '.*' have the same tokens"):
            encoder.embed_classes(names, "none")
    with pytest.warns(UserWarning, match="texts: 'Cup' and 'cup' have the same tokens, and so one embedding"):
        encoder.embed(["Cup", "cup", "Cup"])
    with pytest.raises(TypeError, match="names: expected a list or another sequence, got a set"):
        encoder.embed_classes({"a", "b"})  # type: ignore[arg-type]
