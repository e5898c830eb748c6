"""Pictures: what a clip looks like depends on the clip alone, motions are exact reversals, boxes hold the object."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alt.entityworld.world import EntityWorldDataset, World, WorldConfig, normalise, sheet
from alt.entityworld.world import render as rendering
from alt.entityworld.world.counter import philox, pixel_noise, uniforms
from alt.entityworld.world.paths import lay_out, phases
from alt.entityworld.world.vocabulary import MOTIONS, OBJECTS

PLAIN = {"distractors": (0, 0), "noise": 0.0, "occluder_rate": 0.0}


@pytest.fixture(scope="module")
def world() -> World:
    return World("cpu")


# --- random numbers ---


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the authors' Random123 library
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert philox(np.array(counter, np.uint64), np.array(key, np.uint64)).tolist() == expected


def test_uniforms_are_uniform_and_keyed() -> None:
    draws = uniforms(np.arange(20_000), 5, "test")
    assert abs(draws.mean() - 0.5) < 3 / math.sqrt(12 * draws.size)
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert ((counts - draws.size / 20) ** 2 / (draws.size / 20)).sum() < 43.8  # chi-square, 19 degrees, 0.1 %
    assert np.array_equal(uniforms(np.array([7, 3]), 9, "test")[:, :5], draws[[7, 3]])
    assert not np.array_equal(uniforms(np.array([7]), 5, "other"), draws[[7]])


def test_noise_is_triangular_and_differs_in_every_place() -> None:
    keys = torch.tensor([3, 2**40 + 3, 4])
    noise = pixel_noise(keys, torch.tensor([[0, 1], [0, 1], [0, 1]]), 3000)
    assert abs(float(noise.mean())) < 3 * math.sqrt(1 / 6 / noise.numel())
    assert abs(float(noise.var()) * 6 - 1) < 0.05
    flat = noise.flatten(0, 1)
    correlations = torch.corrcoef(flat) - torch.eye(6)
    assert float(correlations.abs().max()) < 4 / math.sqrt(3000)
    assert abs(float(torch.corrcoef(torch.stack([flat[0, 1:], flat[0, :-1]]))[0, 1])) < 4 / math.sqrt(3000)


# --- determinism ---


def test_a_clip_looks_the_same_whatever_is_beside_it(world: World) -> None:
    specs = world.split("seen-train")[:150] + world.split("transfer-b-1")[:50]
    together = world.render(specs)
    again = World("cpu").render(specs[::-1])
    assert torch.equal(together.frames, again.frames.flip(0))
    assert torch.equal(together.boxes, again.boxes.flip(0))
    for i in (0, 77, 199):
        alone = world.render([specs[i]])
        assert torch.equal(alone.frames[0], together.frames[i])
        assert torch.equal(alone.boxes[0], together.boxes[i])
    table = world.table(specs)
    phase = phases(table.motion, 4)
    odd = rendering.render_table(world.config, table, phase / 3, phase, chunk=7)
    assert torch.equal(odd.frames, together.frames)


def test_no_clips_and_one_frame(world: World) -> None:
    assert world.render([]).frames.shape == (0, 4, 3, 24, 24)
    assert world.render(world.split("seen-test")[:3], frames=1).frames.shape == (3, 1, 3, 24, 24)
    assert world.render(world.split("seen-test")[:3], frames=7).frames.shape == (3, 7, 3, 24, 24)


def test_seeds_and_styles_give_other_pictures(world: World) -> None:
    spec = world.split("transfer-a-1")[0]
    here = world.render([spec]).frames
    assert not torch.equal(here, world.render([spec._replace(style="seen")]).frames)
    assert not torch.equal(here, world.render([spec._replace(key=spec.key + 1)]).frames)


# --- motions ---


@pytest.mark.parametrize("frames", [4, 5])
def test_the_paired_motion_gives_the_frames_in_reverse(world: World, frames: int) -> None:
    """Exactly, noise and distractors included: a bag of frames cannot tell the two apart."""
    specs = [s for s in world.split("seen-train")[:200] if s.motion < 8]
    paired = [s._replace(motion=s.motion ^ 1) for s in specs]
    first, second = world.render(specs, frames=frames), world.render(paired, frames=frames)
    assert torch.equal(first.frames, second.frames.flip(1))
    assert torch.equal(first.boxes, second.boxes.flip(1))
    moving = (first.frames.float() - second.frames.float()).abs().flatten(1).amax(1)
    assert bool((moving > 60).all())  # and the two are far from equal


def test_motions_are_large(world: World) -> None:
    """Lifting and lowering move the box's centre by half the picture and more, pushing and pulling likewise."""
    specs = world.split("ssv2-train")
    rendered = world.render(specs)
    size = world.config.size
    centre = (rendered.boxes[..., :2] + rendered.boxes[..., 2:]) / (2 * size)
    moved = centre[:, -1] - centre[:, 0]
    width = (rendered.boxes[..., 2] - rendered.boxes[..., 0]) / size
    for spec, (dx, dy) in zip(specs, moved.tolist(), strict=True):
        name = MOTIONS[spec.motion].name
        if name in ("lifting", "lowering"):
            assert (dy < -0.45) if name == "lifting" else (dy > 0.45)
            assert abs(dx) < 0.1
        elif name in ("pushing", "pulling", "spinning", "unspinning"):
            assert (dx > 0.4) if name in ("pushing", "spinning") else (dx < -0.4)
    opened = [(w[-1] - w[0]) for s, w in zip(specs, width.tolist(), strict=True) if MOTIONS[s.motion].name == "opening"]
    closed = [(w[-1] - w[0]) for s, w in zip(specs, width.tolist(), strict=True) if MOTIONS[s.motion].name == "closing"]
    assert min(opened) > 0.2
    assert max(closed) < -0.2


def test_every_motion_of_the_large_world_has_its_own_frames() -> None:
    world = World(WorldConfig.preset("gpu", **PLAIN))
    spec = world.split("seen-train")[0]
    clips = world.render([spec._replace(motion=m) for m in range(16)]).frames.float()
    for i in range(16):
        for j in range(i):
            assert float((clips[i] - clips[j]).abs().amax()) > 30, (MOTIONS[i].name, MOTIONS[j].name)


# --- objects, boxes, parts ---


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_boxes_hold_exactly_the_objects_pixels(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object's pixels are those that change when its colour does, on a picture without anything in front."""
    world = World(WorldConfig.preset(preset, **PLAIN))
    specs = world.split("seen-train")[:60] + world.split("transfer-b-2")[:20]
    first = world.render(specs)
    monkeypatch.setattr(rendering, "OBJECT_COLOURS", 1.0 - rendering.OBJECT_COLOURS)
    changed = (first.frames.float() - world.render(specs).frames.float()).abs().amax(2)
    x = torch.arange(world.config.size)
    x0, y0, x1, y1 = (first.boxes[..., i, None] for i in range(4))
    inside = ((x >= y0) & (x < y1))[..., :, None] & ((x >= x0) & (x < x1))[..., None, :]
    assert float(changed[~inside].max()) < 30  # at most a tenth of the pixel, of 255
    assert float(changed.flatten(2).amax(2).min()) > 60
    edges = torch.stack(
        [
            torch.where((x == place)[..., None, :] if i % 2 == 0 else (x == place)[..., :, None], changed, 0).flatten(2)
            for i, place in enumerate((x0, y0, x1 - 1, y1 - 1))
        ]
    )
    assert float(edges.amax(-1).min()) > 5  # every side of the box touches the object


def test_objects_cover_more_than_a_patch_and_are_told_apart() -> None:
    """At 24 pixels and patches of 4: at least 20 pixels of every object; shapes of one colour differ."""
    world = World(WorldConfig.preset("cpu", objects=32, **PLAIN))
    radius = world.config.object_radius * world.config.size
    steps = (torch.arange(24) + 0.5 - 12) / radius
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    masks = {o.name: rendering.SHAPES[o.shape](x, y) < 0 for o in OBJECTS}
    for mask in masks.values():
        assert int(mask.sum()) >= 20
    for i, first in enumerate(OBJECTS):
        for second in OBJECTS[:i]:
            if first.colour == second.colour:
                a, b = masks[first.name], masks[second.name]
                overlap = int((a & b).sum()) / int((a | b).sum())
                assert overlap < 0.76, (first.name, second.name, overlap)


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_part_touches_the_object_and_both_are_on_the_picture(preset: str) -> None:
    world = World(preset)
    specs = [*world.split("seen-train")[:300], *world.split("transfer-b-1")[:100], *world.split("ssv2-test")]
    table = world.table(specs)
    u = phases(table.motion, 4) / 3
    scenery = lay_out(world.config, table.key, table.object, table.motion, table.scale, table.hue, u)
    apart = np.linalg.norm(scenery.target - scenery.part, axis=-1)
    reach = scenery.target_radius + scenery.part_radius[:, None]
    assert (apart < reach).all()
    assert (apart > 0.6 * reach).all()  # beside it, not under it
    assert (scenery.target > 0.1).all()
    assert (scenery.target < 0.9).all()
    assert (scenery.part > 0.0).all()
    assert (scenery.part < 1.0).all()


def test_distractors_are_other_objects_and_as_many_as_configured(world: World) -> None:
    table = world.table(world.split("seen-train"))
    u = phases(table.motion, 4) / 3
    scenery = lay_out(world.config, table.key, table.object, table.motion, table.scale, table.hue, u)
    there = scenery.distractor_alpha > 0
    assert not (scenery.distractor_object == table.object[:, None])[there].any()
    number = there.sum(1)
    assert set(number.tolist()) == {2, 3, 4}
    n = len(number)
    assert all(abs((number == k).sum() - n / 3) < 3 * math.sqrt(n * 2 / 9) for k in (2, 3, 4))
    assert abs((scenery.occluder[:, 1] > 0).sum() - n / 4) < 3 * math.sqrt(n * 3 / 16)
    assert float(scenery.distractor_alpha.max()) < 0.6  # dimmer than the target


def test_noise_has_the_configured_deviation() -> None:
    world = World(WorldConfig.preset("cpu", noise=0.05, seen_classes=60))
    quiet = World(WorldConfig.preset("cpu", noise=0.0))
    specs = world.split("seen-train")[:50]
    clean = quiet.render(specs).frames.float()
    middle = (clean > 60) & (clean < 195)  # where nothing is cut off
    difference = (world.render(specs).frames.float() - clean)[middle] / 255
    assert abs(float(difference.std()) - 0.05) < 0.001
    assert abs(float(difference.mean())) < 0.0005


# --- data set ---


def test_dataset(world: World) -> None:
    split = world.split("seen-test")
    data = EntityWorldDataset(world, split.subset(range(10)))
    clip, label = data[3]
    assert clip.shape == (4, 3, 24, 24)
    assert clip.dtype == torch.float32
    assert label == split[3].label
    assert data.class_names == split.class_names
    assert torch.equal(clip, normalise(world.render([split[3]]).frames[0]))


def test_normalise() -> None:
    frames = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    expected = torch.tensor(
        [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    )
    torch.testing.assert_close(normalise(frames).flatten(), expected)
    torch.testing.assert_close(normalise(frames / 255.0), normalise(frames))
    with pytest.raises(ValueError, match=r"^frames: "):
        normalise(torch.zeros(4, 4))


# --- what shipped weights depend on ---


def test_pictures_are_those_that_the_small_clip_was_trained_on(world: World) -> None:
    """Mean grey level of seven clips. Where this changes, weights trained on the world have to be made anew."""
    specs = [*world.split("seen-train")[:400:80], world.split("transfer-a-1")[7], world.split("transfer-b-3")[11]]
    atoms = [(4, 2, 5, 0), (8, 3, 5, 2), (2, 1, 3, 4), (4, 2, 1, 0), (8, 3, 4, 2), (9, 0, 2, 5), (0, 0, 4, 6)]
    assert [tuple(spec[2:6]) for spec in specs] == atoms
    means = world.render(specs).frames.double().mean((1, 2, 3, 4))
    expected = [80.07, 63.08, 76.40, 107.74, 67.16, 68.89, 67.31]
    assert float((means - torch.tensor(expected)).abs().max()) < 0.02


def test_sheet(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = sheet.contact_sheet(world, enlarge=1)
    assert picture.shape == (3, 4 * 28, 2 * 4 * 28 + 8)
    first = next(s for s in world.split("ssv2-test") if s.motion == 0)
    assert torch.equal(picture[:, 2:26, 2:26], world.render([first]).frames[0, 0])
    monkeypatch.setattr("sys.argv", ["sheet", "tiny", str(tmp_path / "world.png")])
    sheet.main()
    assert (tmp_path / "world.png").stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_another_device_gives_the_same_pictures_to_a_grey_level(preset: str) -> None:
    world = World(preset)
    specs = world.split("seen-test")[:64]
    here, there = world.render(specs), world.render(specs, "cuda")
    assert int((here.frames.int() - there.frames.cpu().int()).abs().max()) <= 1
    assert float((here.boxes - there.boxes.cpu()).abs().max()) <= 1
    images = world.images(64, device="cuda")
    assert images.local_captions == world.images(64).local_captions
