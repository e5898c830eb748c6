"""The small CLIP: open_clip's class, word tokenizer, file, and what the rest of the package does with it."""

from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import pytest
import torch

import alt
from alt.data.action_names import ACTION_SETS, read_action_names
from alt.entityworld.mini_clip import (
    ANY_WORDS,
    MiniClip,
    MiniClipConfig,
    WordTokenizer,
    build_mini_clip,
    load_mini_clip,
    save_mini_clip,
)
from alt.models.registry import create_text_encoder

WORDS = ("a", "ball", "cup", "lifting", "photo", "of")


def test_it_is_open_clips_own_class_and_every_tool_takes_it() -> None:
    tokenizer = WordTokenizer(WORDS)
    clip = build_mini_clip(MiniClipConfig(), tokenizer.vocab_size, seed=0).eval()
    assert type(clip) is open_clip.CLIP
    pictures = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    plain = clip.encode_image(pictures)
    with alt.patch_clip(clip, r=2) as handle:
        assert handle.schedule().tokens[-1] == 37 - 4 * 2
        merged = clip.encode_image(pictures)
    assert not torch.equal(plain, merged)
    assert torch.equal(clip.encode_image(pictures), plain)
    assert clip.encode_text(tokenizer(["a ball", "lifting cup"])).shape == (2, 48)


def test_macs_of_the_tower_fall_with_r() -> None:
    models = [alt.create_model("mit-mini", pretrained=None, r=r) for r in (0, 2, 4, 6)]
    macs = [alt.count_macs(model).native_g for model in models]
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) == 4


def test_seed_decides_the_weights() -> None:
    first, second, other = (build_mini_clip(MiniClipConfig(), 9, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


def test_the_towers_of_the_gpu_preset() -> None:
    config = MiniClipConfig.preset("gpu")
    clip = build_mini_clip(config, 300)
    blocks = clip.visual.transformer.resblocks
    assert (len(blocks), blocks[0].attn.num_heads, clip.visual.proj.shape) == (8, 6, (192, 128))
    assert len(clip.transformer.resblocks) == 4
    assert clip.visual.positional_embedding.shape[0] == 65


def test_tokenizer_reads_words_whatever_is_between_them() -> None:
    tokenizer = WordTokenizer(WORDS, context_length=6)
    ids = tokenizer(["A photo, of: cup!", "ball"])
    assert tokenizer.decode(ids) == ["a photo of cup", "ball"]
    assert ids.shape == (2, 6)
    # open_clip's text tower reads its result at the largest id
    assert ids.argmax(-1).tolist() == [5, 2]
    assert ids.max() == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    ("text", "word"),
    [("a kettle", "'kettle'"), ("a a a a a", "at most 4 words")],
)
def test_tokenizer_neither_guesses_nor_cuts(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        WordTokenizer(WORDS, context_length=6)([text])


def test_any_words_stay_apart_and_are_counted_once() -> None:
    tokenizer = WordTokenizer(WORDS, 10, any_words=True)
    texts = ["lifting kettle", "a ball", "lifting pan", "pan lifting", " ".join(["a"] * 12), " ".join(["a"] * 13)]
    with pytest.warns(
        UserWarning, match=r"no 'kettle' \(in 'lifting kettle'\), and lacks 1 more of their words"
    ) as told:
        ids = tokenizer(texts)
    assert len(told) == 1
    words = [text.split() for text in tokenizer.decode(ids)]
    assert words[1] == ["a", "ball"]
    assert [len(row) for row in words] == [5, 2, 5, 5, 8, 8]  # four words of a hash, and at most 8 fit
    assert all(row[0] == "lifting" for row in (words[0], words[2], words[3]))
    assert words[4][:4] == words[5][:4] == ["a"] * 4
    assert len({tuple(row) for row in words}) == len(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told already
        assert torch.equal(tokenizer(texts), ids)
    with pytest.warns(UserWarning, match="no 'kettle'"):
        assert torch.equal(WordTokenizer(WORDS, 10, any_words=True)(texts), ids)
    refused = r"no 'kettle' .* and lacks 1 more of their words; the weights 'entity-world-any-words' take any words"
    with pytest.raises(ValueError, match=refused):
        WordTokenizer(WORDS, 10)(texts)


def test_the_shipped_weights_with_any_words() -> None:
    """The names of every set that ships get rows of their own, and texts of known words keep theirs."""
    encoder = create_text_encoder("alt-mini", pretrained=ANY_WORDS)
    known = ["lifting cup", "cup in kitchen"]
    plain = create_text_encoder("alt-mini", pretrained="entity-world")
    assert torch.equal(encoder.embed(known), plain.embed(known))
    assert encoder.fingerprint() == plain.fingerprint()  # so corpora of one fit the other
    for name in ACTION_SETS:
        names = read_action_names(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = encoder.embed_classes(names, "none")  # two names with the same tokens would be refused
        assert rows.shape == (len(names), 48)
    assert alt.create_model("clip-mean-mini", pretrained=ANY_WORDS).joint_text_source.pretrained == ANY_WORDS


@pytest.mark.parametrize("vocabulary", [[], ["two words"], ["Ball"], ["ball", "ball"]])
def test_bad_vocabulary(vocabulary: list[str]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        WordTokenizer(vocabulary)


def test_padding_changes_nothing() -> None:
    short, long = WordTokenizer(WORDS, 8), WordTokenizer(WORDS, 16)
    clip = build_mini_clip(MiniClipConfig(), short.vocab_size, seed=0).eval()
    texts = ["a ball", "lifting cup"]
    ids = long(texts)
    assert torch.equal(ids[:, :8], short(texts))
    ids[:, 9:] = 3  # what stands behind the end is not seen
    ids = ids.where(torch.arange(16) < 9, ids)
    torch.testing.assert_close(clip.encode_text(ids), clip.encode_text(long(texts)), rtol=1e-5, atol=1e-5)


def test_file_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(WORDS)
    mini = MiniClip(
        build_mini_clip(MiniClipConfig(), tokenizer.vocab_size, seed=0), tokenizer, MiniClipConfig(), {"a": 1}
    )
    back = load_mini_clip(save_mini_clip(mini, tmp_path / "mini.safetensors"))
    assert back.tokenizer.vocabulary == list(WORDS)
    assert back.config == mini.config
    assert back.about == {"a": 1}
    ours, theirs = mini.clip.state_dict(), back.clip.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no"):
        alt.create_model("alt-mini", pretrained=tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="no file of a small CLIP"):
        load_mini_clip(tmp_path / "text")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"width": 60}, "width"),
        ({"image_size": 25}, "image_size"),
        ({"layers": 0}, "layers"),
        ({"context_length": 2}, "context"),
    ],
)
def test_bad_sizes(change: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MiniClipConfig(**change)


def test_shipped_weights_name_what_they_see() -> None:
    """Not that the file is there: that it knows the world."""
    encoder = create_text_encoder("mini", pretrained="entity-world")
    names = ("a ball", "ball at the top", "a cup")
    ball, high_ball, cup = encoder.embed(names)
    assert ball @ high_ball > ball @ cup
