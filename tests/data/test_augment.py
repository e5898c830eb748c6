"""Augmentation: the same for all frames of a clip, at the rates it claims, and a function of (seed, epoch, index)."""

from __future__ import annotations

import math

import pytest
import torch

from alt.data.augment import ClipAugment, Mix, MixDraw, smooth_labels
from alt.data.seeds import make_generator


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_frames_of_a_clip_get_the_same_transform() -> None:
    """A clip of one frame repeated stays so; and what is done to a clip of two frames is done to each alone."""
    picture = torch.randint(0, 256, (1, 3, 30, 40), generator=generator(3), dtype=torch.uint8)
    augment = ClipAugment(24)
    seen = set()
    for seed in range(40):
        out = augment(picture.expand(5, -1, -1, -1), generator(seed))
        assert out.shape == (5, 3, 24, 24)
        assert out.dtype == torch.uint8
        assert bool((out == out[:1]).all())
        seen.add(out[0].numpy().tobytes())
    assert len(seen) == 40


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_that_differ_are_not_mixed(dtype: torch.dtype) -> None:
    clip = torch.randint(0, 256, (2, 3, 24, 24), generator=generator(3), dtype=torch.uint8)
    clip[1] = clip[1].flip(-1)
    clip = clip if dtype == torch.uint8 else clip.to(dtype) / 255
    augment = ClipAugment(24, jitter=0.0)  # the contrast's grey is the whole clip's
    for seed in range(10):
        draws = augment.draw(24, 24, generator(seed))
        both = augment.apply(clip, draws)
        alone = torch.cat([augment.apply(clip[i : i + 1], draws) for i in range(2)])
        assert torch.equal(both, alone)


def test_contrast_does_not_make_a_clip_flicker() -> None:
    """A dark and a bright frame: their grey pixels of equal value stay of equal value."""
    clip = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    clip[1] = 200
    clip[:, :, :2] = 90
    augment = ClipAugment(8, scales=(1.0,), flip=0, jitter=1.0, brightness=0, saturation=0, hue=0, contrast=0.8, gray=0)
    outs = [augment(clip, generator(seed)) for seed in range(8)]
    assert any(not torch.equal(out, clip) for out in outs)
    assert all(torch.equal(out[0, :, :2], out[1, :, :2]) for out in outs)


def sample_generator(seed: int, epoch: int, clip: int) -> torch.Generator:
    return make_generator("augmentation", seed=seed, epoch=epoch, clip=clip)


def test_rates_within_three_sigma() -> None:
    augment, rounds = ClipAugment(24), 4000
    draws = [augment.draw(32, 40, sample_generator(0, 0, i)) for i in range(rounds)]

    def near(count: int, rate: float) -> None:
        assert abs(count - rounds * rate) < 3 * math.sqrt(rounds * rate * (1 - rate)), (count, rate)

    near(sum(d.flip for d in draws), 0.5)
    near(sum(d.jitter is not None for d in draws), 0.8)
    near(sum(d.gray for d in draws), 0.2)
    near(sum(d.flip and d.gray for d in draws), 0.1)  # independent
    sides = [int(32 * s) for s in augment.scales]
    pairs = {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1}
    assert {d.crop[2:] for d in draws} == pairs
    for pair in pairs:
        near(sum(d.crop[2:] == pair for d in draws), 1 / len(pairs))
    places = [d.crop[:2] for d in draws if d.crop[2:] == (32, 32)]
    assert {left for _, left in places} == {0, 2, 4, 6, 8}
    orders = [d.jitter[0] for d in draws if d.jitter is not None]
    assert len(set(orders)) == 24
    brightness = torch.tensor([d.jitter[1][0] for d in draws if d.jitter is not None])
    assert brightness.min() >= 0.6
    assert brightness.max() <= 1.4
    assert abs(float(brightness.mean()) - 1.0) < 3 * 0.8 / math.sqrt(12 * len(brightness))


def test_crops_stay_inside() -> None:
    for seed in range(200):
        for height, width in ((24, 24), (31, 50), (50, 31)):
            top, left, h, w = ClipAugment(24).draw(height, width, generator(seed)).crop
            assert top >= 0
            assert left >= 0
            assert top + h <= height
            assert left + w <= width


def test_flip_is_exact_and_can_be_switched_off() -> None:
    clip = torch.randint(0, 256, (3, 3, 16, 16), generator=generator(), dtype=torch.uint8)
    only = ClipAugment(16, scales=(1.0,), flip=1.0, jitter=0.0, gray=0.0)
    assert torch.equal(only(clip, generator()), clip.flip(-1))
    embedded = ClipAugment.embedded(16)
    assert not any(embedded.draw(16, 16, generator(seed)).flip for seed in range(200))


def test_grayscale_has_equal_channels() -> None:
    clip = torch.randint(0, 256, (3, 3, 16, 16), generator=generator(), dtype=torch.uint8)
    out = ClipAugment(16, flip=0.0, jitter=0.0, gray=1.0)(clip, generator())
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])


def test_draws_are_a_function_of_seed_epoch_and_index() -> None:
    augment = ClipAugment(16)
    clip = torch.randint(0, 256, (3, 3, 20, 20), generator=generator(), dtype=torch.uint8)
    state = torch.get_rng_state()
    whole = {i: augment(clip, sample_generator(7, 2, i)) for i in range(6)}
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    torch.rand(13)
    for i in (5, 0, 3):  # another order, another global state
        assert torch.equal(augment(clip, sample_generator(7, 2, i)), whole[i])


def test_smooth_labels() -> None:
    targets = smooth_labels(torch.tensor([2, 0]), 4, 0.1)
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(targets, expected)
    with pytest.raises(ValueError, match=r"^labels: "):
        smooth_labels(torch.tensor([4]), 4)


def test_mixed_targets_sum_to_one_and_rates_hold() -> None:
    mix, labels = Mix(5), torch.tensor([0, 1, 2, 3])
    clips = torch.rand(4, 2, 3, 12, 16, generator=generator())
    kinds, rounds = [], 1000
    for i in range(rounds):
        draw = mix.draw(12, 16, make_generator("mix", seed=1, clip=i))
        kinds.append(draw.kind)
        if i < 100:
            mixed, targets = mix.apply(clips, labels, draw)
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
            assert bool((targets >= 0).all())
            assert mixed.shape == clips.shape
    assert set(kinds) == {"mixup", "cutmix"}
    assert abs(kinds.count("cutmix") - rounds / 2) < 3 * math.sqrt(rounds / 4)


def test_mixup_weight_follows_its_beta_law() -> None:
    """Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); the fourth moment bounds the estimate of the variance."""
    weights = torch.tensor([Mix(2, cutmix=0.0).draw(8, 8, sample_generator(1, 0, i)).weight for i in range(4000)])
    variance = 1 / (4 * (2 * 0.8 + 1))
    assert abs(float(weights.mean()) - 0.5) < 3 * math.sqrt(variance / 4000)
    assert abs(float(weights.var()) - variance) < 3 * math.sqrt((0.5**4) / 4000)


def test_cutmix_pastes_a_box_of_the_other_clip_and_counts_its_area() -> None:
    mix, labels = Mix(4, mixup=0.0, smoothing=0.0), torch.tensor([0, 3])
    clips = torch.stack([torch.zeros(2, 3, 10, 8), torch.ones(2, 3, 10, 8)])
    for seed in range(30):
        draw = mix.draw(10, 8, generator(seed))
        assert draw.kind == "cutmix"
        mixed, targets = mix.apply(clips, labels, draw)
        share = mixed[0].mean()  # of ones in the clip of zeros
        torch.testing.assert_close(targets[0], torch.tensor([1 - share, 0.0, 0.0, share]))
        assert bool((mixed[0] == mixed[0, :1, :1]).all())  # the same box in every frame and channel
        torch.testing.assert_close(mixed[0] + mixed[1], torch.ones(2, 3, 10, 8))
    assert bool((clips[0] == 0).all())


def test_mixup_is_the_weighted_sum() -> None:
    mix = Mix(3, smoothing=0.0)
    clips, labels = torch.rand(2, 1, 3, 4, 4, generator=generator()), torch.tensor([0, 2])
    mixed, targets = mix.apply(clips, labels, MixDraw("mixup", 0.7, (0, 0, 0, 0)))
    torch.testing.assert_close(mixed[0], 0.7 * clips[0] + 0.3 * clips[1])
    torch.testing.assert_close(targets, torch.tensor([[0.7, 0.0, 0.3], [0.3, 0.0, 0.7]]))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ClipAugment(0), "size"),
        (lambda: ClipAugment(8, scales=(1.5,)), "scales"),
        (lambda: ClipAugment(8, flip=1.5), "flip"),
        (lambda: Mix(3, mixup=-1.0), "mixup"),
        (lambda: Mix(3, switch=2.0), "switch"),
        (lambda: ClipAugment(8)(torch.zeros(3, 8, 8), generator()), "clip"),
        (lambda: Mix(3)(torch.zeros(2, 1, 3, 8, 8), torch.tensor([1]), generator()), "labels"),
    ],
)
def test_bad_arguments_are_named(make, word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}: "):
        make()


def test_mixing_wants_floats() -> None:
    with pytest.raises(TypeError, match=r"^clips: "):
        Mix(3)(torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), torch.tensor([1]), generator())
