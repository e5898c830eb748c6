"""A foreign tower with other names, two special tokens, separate projections and mean pooling goes through everything.

Nothing outside ``toy_host.py`` knows it: it is patched, counted, trained and saved through ALT, and shown.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import alt
from alt.hosts import Embedded, find_host, find_tower, get_host, register
from alt.models.adapters import insert_adapters
from alt.models.alt import AltModel
from alt.models.config import AltConfig
from alt.models.region_encoder import RegionEncoder
from alt.visualize import explain, gradient_heat_map, heat_rows, text_heat_map, write_page
from alt_kernels import bipartite_soft_matching, weighted_merge

from .toy_host import HOST, ToyHost
from .toy_model import Layer, ToyTower, turn

FRAMES, DOWN, ACROSS, PROTECTED, JOINT = 3, 4, 6, 2, 16
TOKENS = PROTECTED + DOWN * ACROSS

VARIANTS = [{}, {"turns": True}, {"letters": True}]
each_variant = pytest.mark.parametrize("options", VARIANTS, ids=["plain", "turns", "letters"])


@pytest.fixture(autouse=True)
def toy_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy host is registered here and nowhere else."""
    monkeypatch.setattr("alt.hosts._REGISTERED", [])
    register(HOST)


def tower(dtype: torch.dtype = torch.float64, **options: Any) -> ToyTower:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = ToyTower(**options)
        for parameter in module.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module.to(dtype)


def images(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 3, 16, 24, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def by_hand(module: ToyTower, batch: Tensor, removed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Tokens and sizes after the last layer, from the equations and the reference operations."""
    x, angle = module.begin(batch), module.angles(len(batch))
    size = x.new_ones(x.shape[:2], dtype=torch.float32)
    for layer, r in zip(module.layers, removed, strict=True):
        mixer, count = layer.mix, x.shape[1]
        joined = x if layer.letter is None else torch.cat([x, layer.letter(x[:, :1])], 1)
        normed = layer.pre(joined)
        q, k, v = (mixer.split(part(normed)) for part in (mixer.ask, mixer.name, mixer.tell))
        keys = k[:, :, :count].mean(1)
        if angle is not None:
            q, k = turn(q, angle), turn(k, angle)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        logits = logits + F.pad(size, (0, joined.shape[1] - count), value=1.0).double().log()[:, None, None]
        y = mixer.back((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))[:, :count]
        plan = bipartite_soft_matching(keys, r, num_protected=PROTECTED, impl="reference")
        x, merged = weighted_merge(x + layer.gain * y, plan, size, impl="reference")
        if angle is not None:
            angle = weighted_merge(angle[..., None], plan, size, impl="reference").x[..., 0]
        x, size = x + layer.wide(layer.mid(x)), merged
    return x, size


@each_variant
def test_at_r_0_it_is_the_tower_itself(options: dict[str, Any]) -> None:
    plain, patched = tower(**options), tower(**options)
    alt.patch_clip(patched, 0)
    expected, found = plain(images()), patched(images())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours, theirs = gradients(patched, (found**3).sum()), gradients(plain, (expected**3).sum())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-10)


@each_variant
@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "own call"])
def test_merged_tokens_are_those_of_the_equations(options: dict[str, Any], hooked: bool) -> None:
    module = tower(**options)
    handle = alt.patch_clip(module, (5, 4))
    if hooked:
        for layer in module.layers:
            layer.mix.register_forward_hook(lambda *_: None)
    x, size = by_hand(module, images(), (5, 4))
    found, call = handle.encode(images())
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(call.size, size)
    weight = (size[:, PROTECTED:] / size[:, PROTECTED:].sum(1, keepdim=True)).double()
    pooled = (module.last(x)[:, PROTECTED:] * weight[..., None]).sum(1) @ module.to_joint.weight.T
    torch.testing.assert_close(module(images()), pooled, rtol=0, atol=1e-7)  # sizes are float32


def test_special_tokens_never_merge_and_the_schedule_knows_them() -> None:
    module = tower()
    with pytest.warns(UserWarning, match="block 1 can lose"):
        handle = alt.patch_clip(module, (10, 9), trace_source=True)
    assert handle.schedule().tokens == (16, 9)  # 24 patches: 10, then 7 of the 14 that are left
    module(images())
    assert handle.source.shape == (2, TOKENS)
    assert handle.source[:, :PROTECTED].tolist() == [[0, 1], [0, 1]]
    assert bool((handle.source[:, PROTECTED:] >= PROTECTED).all())
    assert bool((handle.sizes[:, :PROTECTED] == 1).all())


@each_variant
def test_removal_copies_and_checkpointing(options: dict[str, Any]) -> None:
    module = tower(**options)
    expected, keys = module(images()), list(module.state_dict())
    handle = alt.patch_clip(module, 4)
    merged = module(images())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(images()), merged)
        assert alt.get_handle(twin).r == 4
    plain = gradients(module, (module(images()) ** 3).sum())
    HOST.set_checkpointing(module, True)
    for name, gradient in gradients(module, (module(images()) ** 3).sum()).items():
        assert torch.equal(plain[name], gradient), name
    assert list(module.state_dict()) == keys
    handle.remove()
    assert type(module) is ToyTower
    assert torch.equal(module(images()), expected)


class PaddedHost(ToyHost):
    """The last four patches of every image are padding."""

    def embed(self, tower: Any, images: Tensor) -> Embedded:
        x = super().embed(tower, images).x
        size = x.new_ones(x.shape[:2], dtype=torch.float32)
        size[:, -4:] = 0
        return Embedded(x, size)


@pytest.mark.parametrize("r", [0, 4])
def test_padding_of_size_0_changes_nothing(r: int) -> None:
    """What lies in the padding is neither attended to nor pooled, merged or not."""
    other = images()
    other[:, :, 12:, 8:] = 7.0  # the pixels of the last four patches, and only those
    register(PaddedHost())
    module = tower()
    alt.patch_clip(module, r)
    blind = tower()
    alt.patch_clip(blind, 2, prop_attn=False)
    with pytest.raises(ValueError, match="prop_attn: expected True for a tower that pads"):
        blind(images())
    if r == 0:
        assert torch.equal(module(images()), module(other))
        x = module.begin(images())[:, :-4]
        for layer in module.layers:
            x = Layer.forward(layer, x)
        expected = module.to_joint(module.last(x)[:, PROTECTED:].mean(1))
        torch.testing.assert_close(module(images()), expected, rtol=0, atol=1e-6)
    handle = alt.get_handle(module)
    _, call = handle.encode(images())
    assert call.size.sum(1).tolist() == [TOKENS - 4.0] * 2


def test_costs_are_counted_by_part() -> None:
    width, cell, patches = 32, 4, DOWN * ACROSS
    for r in (0, 4):
        module = tower(torch.float32)
        alt.patch_clip(module, r)
        report = alt.count_macs(module, frames=2)
        counts = [TOKENS, TOKENS - r]
        assert report.by_component == {
            **dict.fromkeys(report.by_component, 0),
            "patch_embedding": 2 * patches * 3 * cell * cell * width,
            "attention_projections": 2 * sum(4 * n * width * width for n in counts),
            "attention": 2 * sum(2 * n * n * width for n in counts),
            "matching": 2 * sum(((n - 2 + 1) // 2) * ((n - 2) // 2) * 16 for n in counts) if r else 0,
            "mlp": 2 * sum(4 * (n - r) * width * width for n in counts),
            "pooling": 2 * width * JOINT,
        }
    assert alt.count_macs(tower(torch.float32), frames=2).native > report.native  # not patched: counted too


def clips(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(batch, FRAMES, 3, 16, 24, generator=generator, dtype=torch.float64).to(dtype)


def test_the_frame_is_what_the_tower_returns_and_the_rest_are_regions() -> None:
    module = tower()
    alt.patch_clip(module, 4)
    expected = module(clips().flatten(0, 1)).unflatten(0, (2, FRAMES))
    x, _ = alt.get_handle(module).encode(clips().flatten(0, 1))
    regions = (module.last(x)[:, PROTECTED:] @ module.to_joint.weight.T).unflatten(0, (2, FRAMES))
    encoder = RegionEncoder(tower(), 4)
    tokens = encoder(clips(), trace=True)
    torch.testing.assert_close(tokens.frame, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(tokens.regions, regions, rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder(clips(), rows="class").frame, expected, rtol=0, atol=1e-12)
    assert encoder.num_tokens == tokens.x.shape[2] == 1 + DOWN * ACROSS - 8
    assert tokens.source.shape == (2, FRAMES, 1 + DOWN * ACROSS)
    for source, size in zip(tokens.source.flatten(0, 1), tokens.size.flatten(0, 1), strict=True):
        assert torch.equal(torch.bincount(source, minlength=encoder.num_tokens).float(), size)
        assert source[0] == 0
        assert size[0] == 1
    joint = encoder(clips(), trace=True, joint=True)
    assert joint.x.shape[:3] == (2, 1, 1 + FRAMES * (DOWN * ACROSS - 8))
    assert joint.source.shape == (2, 1, 1 + FRAMES * DOWN * ACROSS)


def alt_model(dtype: torch.dtype = torch.float32, **options: Any) -> AltModel:
    config = AltConfig(backbone="toy", frames=FRAMES, r=4, layers=1, **options)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        model = AltModel(config, tower(dtype), 10.0).to(dtype)
        texts = torch.randn(5, JOINT).to(dtype)
    from alt import Corpus

    model.set_corpus(
        Corpus(
            ("cup", "ball", "dog", "hand", "road"),
            ("",) * 5,
            ("object", "object", "object", "body_part", "scene"),
            ("",) * 5,
            F.normalize(texts, dim=-1),
        )
    )
    model.set_classes(["drop", "lift"], F.normalize(texts[:2] + 0.3, dim=-1))
    return model


@pytest.mark.parametrize("strategy", ["full", "stm"])
def test_it_is_trained_through_alt(strategy: str) -> None:
    model = alt_model(strategy=strategy).train()
    batch, labels = clips(4, torch.float32), torch.tensor([0, 1, 1, 0])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=6e-3)
    losses = []
    for step in range(20):
        loss = F.cross_entropy(model(batch, seed=torch.tensor(step)).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad is not None for name, p in model.backbone.named_parameters() if p.requires_grad), strategy
    assert alt.count_macs(model).by_component["adapter"] > 0


def test_a_run_of_alt_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run of ``alt train``, on a toy model: data, optimiser groups, checkpoints, and the file it exports."""
    config = alt.load_config(
        "entity-world-cpu",
        ["data.preset=tiny", "data.batch_size=4", "data.limit=8", "schedule.steps=3", "schedule.warmup_steps=1"],
    )

    def build(config: Any, classes: Any, world: Any, say: Any) -> tuple[AltModel, None]:
        options = AltConfig(backbone="toy", frames=world.config.frames, r=3, layers=1, strategy="full")
        model = AltModel(options, tower(torch.float32, side=(world.config.size,) * 2), 10.0)
        model.set_corpus(F.normalize(torch.randn(5, JOINT), dim=-1))
        model.set_classes(list(classes), F.normalize(torch.randn(len(classes), JOINT), dim=-1))
        return model, None

    monkeypatch.setattr("alt.train.run.build_with_encoder", build)
    lines: list[str] = []
    result = alt.fit(config, tmp_path, say=lines.append)
    assert result.steps == 3
    assert any("backbone/decay" in line for line in lines)
    model = alt.load_model(result.weights).eval()
    assert find_host(model.backbone.tower) is HOST
    assert model.r == 3


def test_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    module, batch = tower(torch.float32, turns=True).eval(), images(dtype=torch.float32)
    alt.patch_clip(module, 4)
    found = torch.compile(module, backend="aot_eager", fullgraph=True)(batch)
    torch.testing.assert_close(found, module(batch), rtol=1e-4, atol=1e-5)


def test_the_models_file_remembers_the_host(tmp_path: Path) -> None:
    model = alt_model().eval()
    alt.save_model(model, tmp_path / "toy.safetensors")
    loaded = alt.load_model(tmp_path / "toy.safetensors").eval()
    assert isinstance(loaded.backbone.tower, ToyTower)
    batch = clips(dtype=torch.float32)
    assert torch.equal(loaded(batch).logits, model(batch).logits)


def test_it_is_shown(tmp_path: Path) -> None:
    model = alt_model().eval()
    clip = clips(1, torch.float32)[0]
    found = explain(model, clip)
    assert found.grid == (DOWN, ACROSS)
    assert sum(entity.share for entity in found.entities) == pytest.approx(1.0)
    for t in range(FRAMES):
        regions = found.regions(t)
        assert regions.shape == (DOWN, ACROSS)
        assert regions.min() >= 1  # row 0 is the frame
        assert len(set(regions.flatten().tolist())) == DOWN * ACROSS - 8
    text = model.alignment.entities[0]
    heat, gradient = text_heat_map(found, text), gradient_heat_map(model, clip, text)
    assert heat.shape == gradient.shape == (FRAMES, DOWN, ACROSS)
    assert gradient.max() == 1.0
    for t in range(FRAMES):
        for region in set(found.regions(t).flatten().tolist()):
            assert len(set(heat[t][found.regions(t) == region].tolist())) == 1
    write_page(tmp_path / "page.html", found, heat_rows(model, clip, found, ["cup"]))
    assert "cup" in (tmp_path / "page.html").read_text()


def test_a_fresh_block_is_passed_to_adapters_as_its_parts() -> None:
    module = tower()
    alt.patch_clip(module, 3)
    insert_adapters(module, "stm", FRAMES)
    assert module(clips().flatten(0, 1)).shape == (2 * FRAMES, JOINT)


def test_registering() -> None:
    assert find_host(tower()) is get_host("toy") is HOST
    assert find_tower(tower())[0] is HOST
    again = ToyHost()
    assert register(again) is again is find_host(tower())
    register(HOST)
    with pytest.raises(TypeError, match=r"host: expected an instance of a subclass of alt\.hosts\.Host, got <class"):
        register(ToyHost)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"host: expected one of toy.*open_clip, got 'toys'"):
        get_host("toys")
    with pytest.raises(TypeError, match=r"supports the tests' ToyTower.* as the image tower.* got .*Linear"):
        alt.patch_clip(nn.Linear(2, 2))
