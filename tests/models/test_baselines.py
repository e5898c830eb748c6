"""CLIP-Mean, CLIP-One and CLIP-Joint: what they compute, what they cost, and where they are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import alt
from alt.cost import count_macs
from alt.models.baselines import ClipJoint, ClipMean, ClipOne
from alt.models.config import BaselineConfig
from alt.models.frame_integration import FrameIntegrationModel

from .tiny_models import CLASSES, FRAMES, IMAGE, PATCH, TOKENS, WIDTH, clips, draw, tiny_visual

ALL = (ClipMean, ClipOne, ClipJoint, FrameIntegrationModel)


def build(kind: Any, visual: Any = None, **options: Any) -> Any:
    config = kind.config_class(**{"backbone": "tiny", "frames": FRAMES, **options})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = kind(config, tiny_visual() if visual is None else visual, 10.0).double().eval()
    model.set_classes([f"class {i}" for i in range(CLASSES)], F.normalize(draw(CLASSES, WIDTH, seed=6), dim=1))
    return model


def frame_embeddings(x: torch.Tensor) -> torch.Tensor:
    """``[B, T, d]`` by the tower alone, unpatched."""
    return tiny_visual()(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_mean_is_the_mean_of_clips_frame_embeddings() -> None:
    output = build(ClipMean)(clips())
    z = frame_embeddings(clips()).mean(1)
    same(output.embedding, z)
    texts = F.normalize(draw(CLASSES, WIDTH, seed=6), dim=1)
    same(output.logits, 10 * F.normalize(z, dim=1) @ texts.T)
    assert output.index is None


def test_mean_and_joint_do_not_know_the_order_of_frames() -> None:
    for kind in (ClipMean, ClipJoint):
        model = build(kind)
        same(model(clips()).embedding, model(clips().flip(1)).embedding)


def test_one_sees_the_middle_frame_in_evaluation() -> None:
    model = build(ClipOne)
    same(model(clips()).embedding, frame_embeddings(clips())[:, FRAMES // 2])
    assert model.encode(clips()).x.shape == (2, 1, 1, WIDTH)
    four = build(ClipOne, frames=4)
    same(four(clips(frames=4)).embedding, frame_embeddings(clips(frames=4))[:, 2])


def test_one_draws_a_frame_in_training() -> None:
    model = build(ClipOne).train()
    every = frame_embeddings(clips(batch=2))
    drawn = []
    for seed in range(60):
        z = model(clips(), seed=torch.tensor(seed)).embedding
        same(z, model(clips(), seed=torch.tensor(seed)).embedding)
        distance = (every - z[:, None]).abs().amax(-1)
        assert (distance.amin(1) < 1e-10).all()
        drawn.append(distance.argmin(1))
    drawn_frames = torch.stack(drawn)
    assert set(drawn_frames.flatten().tolist()) == set(range(FRAMES))
    assert (drawn_frames[:, 0] != drawn_frames[:, 1]).any()  # every clip draws its own
    without_seed = [model(clips()).embedding for _ in range(20)]
    assert any(not torch.equal(z, without_seed[0]) for z in without_seed)


def test_one_picks_from_tokens_of_all_frames_too() -> None:
    model = build(ClipOne)
    same(model.forward_tokens(model.backbone(clips())).embedding, model(clips()).embedding)
    with pytest.raises(ValueError, match="expected 3 frames per clip"):
        model.forward_tokens(draw(2, 2, 1, WIDTH))


def test_one_frame_is_the_same_for_all() -> None:
    """T = 1: One = Mean, and Joint = plain CLIP."""
    one = clips(frames=1)
    expected = frame_embeddings(one)[:, 0]
    for kind in (ClipMean, ClipOne, ClipJoint):
        for training in (False, True):
            same(build(kind, frames=1).train(training)(one).embedding, expected)


def joint_by_hand(x: torch.Tensor) -> torch.Tensor:
    """One class token and all patches, each with its own frame's position, through the tower's own modules."""
    visual = tiny_visual()
    batch, frames = x.shape[:2]
    patches = visual.conv1(x.flatten(0, 1)).flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    start = (visual.class_embedding + visual.positional_embedding[0]).expand(batch, 1, -1)
    tokens = torch.cat([start, patches.reshape(batch, frames * patches.shape[1], -1)], 1)
    tokens = visual.transformer(visual.ln_pre(tokens))
    return visual.ln_post(tokens[:, 0]) @ visual.proj


def test_joint_is_one_sequence_of_all_frames() -> None:
    model = build(ClipJoint)
    z = model(clips()).embedding
    same(z, joint_by_hand(clips()))
    assert not torch.allclose(z, build(ClipMean)(clips()).embedding, atol=1e-3)
    # a patch of one frame moves z through attention to it: the frames are not apart
    other = clips()
    other[:, 2, :, :PATCH, :PATCH] += 1
    assert not torch.allclose(model(other).embedding, z, atol=1e-6)


@pytest.mark.parametrize("r", [2, 0.25, (1, 3)])
def test_joint_with_merging(r: Any) -> None:
    """r is per frame: a sequence of T frames loses T r tokens a block, wherever the most similar ones are."""
    model = build(ClipJoint, r=r)
    tokens = model.encode(clips(), trace=True)
    n = 1 + FRAMES * (TOKENS - 1)
    removed = {2: 2 * FRAMES * 2, (1, 3): 4 * FRAMES, 0.25: 12 + 9}[r]
    assert tokens.x.shape == (2, 1, n - removed, WIDTH)
    assert tokens.source.shape == (2, 1, n)
    same(tokens.size.sum(-1), torch.full((2, 1), float(n)))
    counts = torch.stack([row.bincount(minlength=n - removed) for row in tokens.source[:, 0].long()])
    assert torch.equal(counts, tokens.size[:, 0].long())
    frame_of_patch = (torch.arange(n - 1) // (TOKENS - 1)).expand(2, -1)
    regions = tokens.source[:, 0, 1:]
    across = [len(set(frame_of_patch[0][regions[0] == row].tolist())) for row in range(1, n - removed)]
    assert max(across) > 1  # patches of different frames merged
    same(tokens.x[:, 0, 0], model(clips()).embedding)


def test_all_of_them_merge_tokens() -> None:
    for kind in ALL:
        model = build(kind, r=3)
        assert model.r == 3
        assert not torch.equal(model(clips()).embedding, build(kind)(clips()).embedding)
        model.r = 0
        same(model(clips()).embedding, build(kind)(clips()).embedding)


def test_without_text() -> None:
    """The row "w/o text": a learned linear head, which needs no class embeddings."""
    model = build(ClipMean, head="linear")
    assert model(clips()).logits.shape == (2, CLASSES)
    assert {name for name, _ in model.named_parameters() if not name.startswith("backbone.")} == {
        "head.weight",
        "head.bias",
    }


def test_no_added_parameters() -> None:
    count = sum(p.numel() for p in tiny_visual().parameters())
    for kind in (ClipMean, ClipOne, ClipJoint):
        assert sum(p.numel() for p in build(kind).parameters()) == count


@pytest.mark.parametrize(
    ("name", "macs"),
    [("clip-one-b16", 17.56), ("clip-mean-b16", 140.5), ("clip-joint-b16", 179.6), ("mit-b16", 140.53)],
)
def test_multiply_accumulates_of_the_literature(name: str, macs: float) -> None:
    with torch.device("meta"):
        model = alt.create_model(name)
    assert count_macs(model).native_g == pytest.approx(macs, abs=0.05 if macs > 100 else 0.005)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 86_192_640 + (12 * 512**2 + 13 * 512 + 8 * 512 if name == "mit-b16" else 0)


def test_merging_makes_joint_cheaper() -> None:
    costs = []
    for r in (0, 2, 4):
        model = build(ClipJoint, r=r)
        costs.append(count_macs(model).native)
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize("kind", ALL)
def test_wrong_clips(kind: Any) -> None:
    model = build(kind)
    with pytest.raises(ValueError, match="clips: expected 3 frames per clip, as the model was made for, got 4"):
        model(clips(frames=4))
    with pytest.raises(ValueError, match=r"clips: expected \[B, T, 3, 16, 16\]"):
        model(torch.zeros(2, FRAMES, 3, IMAGE + 4, IMAGE, dtype=torch.float64))
    with pytest.raises(TypeError, match="clips: expected"):
        model(torch.zeros(2, FRAMES, 3, IMAGE, IMAGE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tokens: expected"):
        model.forward_tokens(draw(2, FRAMES, 1, WIDTH + 1))


def test_joint_takes_no_tokens_of_single_frames() -> None:
    with pytest.raises(ValueError, match="expected tokens of whole clips"):
        build(ClipJoint).forward_tokens(draw(2, FRAMES, 1, WIDTH))


def test_configuration_is_checked_like_alts() -> None:
    assert BaselineConfig(r=[1, 2]).r == (1, 2)
    assert BaselineConfig(**BaselineConfig(r=(1, 2)).to_dict()) == BaselineConfig(r=(1, 2))
    for wrong, match in (
        ({"frames": 0}, "frames must be 1 or more, got 0"),
        ({"head": "dot"}, "head must be one of cosine, literal, linear, got 'dot'"),
        ({"strategy": "half"}, "strategy must be one of full, frozen, s, sm, stm, stm-shared, got 'half'"),
        ({"prop_attn": 1}, "prop_attn must be true or false, got 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            BaselineConfig(**wrong)
    with (
        torch.device("meta"),
        pytest.raises(TypeError, match="layers is not a setting; known are"),
    ):
        alt.create_model("clip-mean-b32", layers=2)
