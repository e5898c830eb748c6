"""Templates verbatim, their ensemble, the draw of one, and learned context vectors."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F

from alt.models.prompts import ALT16, KINETICS28, LearnedPrompts, draw, ensemble, fill, templates_of

from .clips import text_clip, tokenizer


def test_the_16_templates_verbatim() -> None:
    assert "\n".join(ALT16) == (
        "a photo of action {}\na picture of action {}\nHuman action of {}\n{}, an action\n{}, this is an action\n"
        "{}, a video of action\nPlaying action of {}\n{}\nPlaying a kind of action, {}\nDoing a kind of action, {}\n"
        "Look, the human is {}\nCan you recognize the action of {}\nVideo classification of {}\nA video of {}\n"
        "The man is {}\nThe woman is {}"
    )


def test_the_28_templates_verbatim() -> None:
    assert len(KINETICS28) == len(set(KINETICS28)) == 28
    assert KINETICS28[:7] == (
        "a photo of {}.",
        "a photo of a person {}.",
        "a photo of a person using {}.",
        "a photo of a person doing {}.",
        "a photo of a person during {}.",
        "a photo of a person performing {}.",
        "a photo of a person practicing {}.",
    )
    for i, medium in enumerate(("a photo", "a video", "a example", "a demonstration")):
        assert KINETICS28[7 * i : 7 * i + 7] == tuple(t.replace("a photo", medium) for t in KINETICS28[:7])


def test_sets_by_name_and_own_templates() -> None:
    assert templates_of("alt16") is ALT16
    assert templates_of("kinetics28") is KINETICS28
    assert templates_of("none") == ("{}",)
    assert templates_of(["see {}"]) == ("see {}",)
    assert fill("{}, an action", ["a {b}", "c"]) == ["a {b}, an action", "c, an action"]
    for wrong, match in (("alt15", "must be one of alt16"), ([], "at least one"), (["see it"], "has one {}")):
        with pytest.raises(ValueError, match=match):
            templates_of(wrong)


def test_ensemble_is_the_normalised_mean() -> None:
    stack = F.normalize(torch.randn(16, 3, 8), dim=-1)
    found = ensemble(stack)
    for c in range(3):
        mean = sum(stack[p, c] for p in range(16)) / 16
        torch.testing.assert_close(found[c], mean / mean.norm())


def test_draw_is_reproducible_by_seed_and_fair() -> None:
    stack = torch.arange(16.0)[:, None, None].expand(-1, 2, 4)
    picks = [int(draw(stack, seed)[0, 0]) for seed in range(1600)]
    assert picks == [int(draw(stack, seed)[1, 3]) for seed in range(1600)]
    counts = torch.tensor(picks).bincount(minlength=16)
    assert (counts - 100).abs().max() < 4 * (1600 * 15 / 256) ** 0.5
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw(stack, 5)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers change


@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_learned_vectors_stand_where_tokens_would(custom: bool) -> None:
    """Vectors equal to the embeddings of words give the embedding of the text with those words."""
    clip = text_clip(custom)
    prompts = LearnedPrompts(clip, tokenizer, ["cup red", "ball"], length=2)
    table = (clip.text if custom else clip).token_embedding.weight
    words = tokenizer(["see the"])[0, 1:3]
    with torch.no_grad():
        prompts.vectors.copy_(table[words])
        expected = F.normalize(clip.encode_text(tokenizer(["see the cup red", "see the ball"])), dim=-1)
    torch.testing.assert_close(prompts(), expected)


def test_learned_vectors_alone_are_trained() -> None:
    clip = text_clip()
    prompts = LearnedPrompts(clip, tokenizer, ["cup red", "ball"], length=3)
    assert [name for name, _ in prompts.named_parameters()] == ["vectors"]
    assert list(prompts.state_dict()) == ["vectors"]
    first = prompts()
    (first @ torch.randn(first.shape[1])).sum().backward()
    assert (prompts.vectors.grad.norm(dim=1) > 0).all()
    assert all(p.grad is None and p.requires_grad for p in clip.parameters())
    with torch.no_grad():
        prompts.vectors.add_(1.0)
    assert not torch.allclose(prompts(), first)
    ids = tokenizer(["ball"])
    torch.testing.assert_close(clip.encode_text(ids), text_clip().encode_text(ids))  # no hook is left behind


def test_learned_vectors_refuse_what_does_not_fit() -> None:
    clip = text_clip()
    with pytest.raises(ValueError, match="'cup red' does not fit behind 5 context vectors in 8 tokens"):
        LearnedPrompts(clip, tokenizer, ["ball", "cup red"], length=5)
    assert LearnedPrompts(clip, tokenizer, ["ball", "cup red"], length=4)().shape == (2, 16)
    with pytest.raises(ValueError, match="length must be at least 1"):
        LearnedPrompts(clip, tokenizer, ["ball"], length=0)
    with pytest.raises(ValueError, match="at least one class name"):
        LearnedPrompts(clip, tokenizer, [])


def test_with_the_real_tokenizer() -> None:
    clip = text_clip(vocab_size=49408, context_length=77)
    prompts = LearnedPrompts(clip, open_clip.get_tokenizer("ViT-B-16"), ["riding a bike", "archery"])
    assert prompts.vectors.shape == (16, 16)
    assert prompts().shape == (2, 16)
