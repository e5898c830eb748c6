"""A model in one file and back, another model's weights into one that is there, and CLIP's weights into a tower."""

from __future__ import annotations

import errno
import json
import os
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import alt
from alt.corpus import Corpus
from alt.errors import UserError
from alt.models.clip_weights import load_backbone
from alt.models.strategy import split_parameters
from alt.models.weights import load_model, load_weights, read_header, save_model
from alt.train.build import load_start

from .test_baselines import ALL, build
from .tiny_models import CLASSES, IMAGE, PATCH, WIDTH, clips, draw, randomised, tiny_alt, tiny_visual

CORPUS = Corpus.from_entities(
    [("cup", "a small container", "object"), ("hand", "", "body_part"), ("lifting", "going up", "motion")]
)


def with_corpus(**options: Any) -> Any:
    model = tiny_alt(**options)
    rows = F.normalize(draw(3, WIDTH, seed=8), dim=1).float()
    model.set_corpus(Corpus(CORPUS.units, CORPUS.descriptions, CORPUS.categories, (), rows))
    return model


def same_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keys": "mlp_tokens", "reduction": "attn", "temporal_pos": True, "r": (3, 1)},
        {"strategy": "stm", "head": "linear", "inflection": 0.5},
        {"queries": "random", "align_tokens": "cls", "init": "literal", "convolution": False},
        {"quick_gelu": True},
    ],
    ids=["default", "options", "adapters", "random", "quick_gelu"],
)
def test_save_and_load_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("quick_gelu"):
        model: Any = build(ALL[0], tiny_visual(act_layer=open_clip.transformer.QuickGELU), **options)
    else:
        model = tiny_alt(corpus=False, **options) if options.get("queries") == "random" else with_corpus(**options)
    path = save_model(model, tmp_path / "inner" / "model.safetensors")
    loaded = load_model(path).eval()
    assert same_state(model, loaded)
    assert loaded.config == model.config
    assert loaded.classes == model.classes
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    found, expected = loaded(clips()), model(clips())
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.embedding, expected.embedding)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


@pytest.mark.parametrize("kind", ALL)
def test_baselines_too(tmp_path: Path, kind: Any) -> None:
    model = build(kind, r=2)
    loaded = load_model(save_model(model, tmp_path / "model.safetensors")).eval()
    assert type(loaded) is kind
    assert torch.equal(loaded(clips()).logits, model(clips()).logits)


def test_the_corpus_survives_and_stays_frozen(tmp_path: Path) -> None:
    model = with_corpus()
    loaded = load_model(save_model(model, tmp_path / "model.safetensors"))
    assert list(loaded.corpus) == list(model.corpus)
    assert torch.equal(loaded.alignment.entities, model.alignment.entities)
    assert not loaded.alignment.entities.requires_grad
    assert not any("entities" in name for name, _ in loaded.named_parameters())
    told = split_parameters(loaded)
    assert not any("entities" in name for name in (*told.new, *told.backbone))
    objects = loaded.corpus.subset("object")
    before = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
    loaded.set_corpus(objects)
    changed = {name for name, tensor in loaded.state_dict().items() if tensor.shape != before[name]}
    assert changed == {"alignment.entities"}
    assert loaded.alignment.entities.shape == (1, WIDTH)


def test_the_file_tells_what_it_is_without_its_weights(tmp_path: Path) -> None:
    header = read_header(save_model(with_corpus(), tmp_path / "model.safetensors"))
    assert header["family"] == "alt"
    assert header["config"]["layers"] == 2
    assert header["classes"] == [f"class {i}" for i in range(CLASSES)]
    assert header["corpus"][0] == ["cup", "a small container", "object", [], ""]
    assert header["tower"]["width"] == 32


def test_a_model_made_by_name(tmp_path: Path) -> None:
    model = alt.create_model("alt-mini", corpus=CORPUS.embed(MiniText()), classes=(["a"], draw(1, 48).float())).eval()
    loaded = load_model(save_model(model, tmp_path / "model.safetensors")).eval()
    x = draw(1, 4, 3, 24, 24).float()
    assert torch.equal(loaded(x).logits, model(x).logits)


class MiniText:
    def embed(self, texts: Any) -> torch.Tensor:
        return draw(len(texts), 48).float()


def test_the_folder_of_a_run_stands_for_its_file(tmp_path: Path) -> None:
    model = with_corpus()
    save_model(model, tmp_path / "model.safetensors")
    assert same_state(model, load_model(tmp_path))
    other = with_corpus()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_weights(other, tmp_path)
    assert same_state(model, other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no model at .*empty.model\.safetensors"):
        load_model(tmp_path / "empty")


def test_half_precision_and_compiled_models(tmp_path: Path) -> None:
    model = with_corpus(dtype=torch.float32).to(torch.bfloat16)
    assert same_state(model, load_model(save_model(model, tmp_path / "half.safetensors")))
    compiled = torch.compile(with_corpus())
    assert same_state(with_corpus(), load_model(save_model(compiled, tmp_path / "compiled.safetensors")))


def test_weights_of_another_run(tmp_path: Path) -> None:
    """The same configuration but for what no weight depends on; classes and corpus come along, or stay."""
    path = save_model(with_corpus(), tmp_path / "model.safetensors")
    other = tiny_alt(r=1, sim_scale=7.0, tau=0.5, gumbel="off", prop_attn=False)
    load_weights(other, path)
    assert same_state(other, with_corpus())
    assert other.config.r == 1
    assert list(other.corpus) == list(with_corpus().corpus)
    kept = tiny_alt()
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.zero_()
    kept.set_classes(["x", "y"], draw(2, WIDTH))
    classes, corpus = kept.head.embeddings.clone(), kept.alignment.entities.clone()
    load_weights(kept, path, keep_classes=True, keep_corpus=True)
    assert kept.classes == ["x", "y"]
    assert torch.equal(kept.head.embeddings, classes)
    assert torch.equal(kept.alignment.entities, corpus)
    reference = with_corpus().state_dict()
    assert all(torch.equal(p, reference[name]) for name, p in kept.named_parameters())


def test_another_configuration_names_the_fields(tmp_path: Path) -> None:
    path = save_model(with_corpus(), tmp_path / "model.safetensors")
    other = tiny_alt(layers=1, keys="mlp_tokens", r=0)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(other, path)
    assert str(caught.value) == (
        f"{path} has another configuration than the model: layers is 2 there and 1 here, "
        "keys is 'cls' there and 'mlp_tokens' here"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="another configuration than the model: strategy is 'full' there and 's' here"):
        load_weights(tiny_alt(strategy="s"), path)
    with pytest.raises(ValueError, match="a model of the family 'alt', and this one is of 'clip-mean'"):
        load_weights(build(ALL[0]), path)
    positions = save_model(tiny_alt(temporal_pos=True), tmp_path / "positions.safetensors")
    with pytest.raises(ValueError, match="than the model: frames is 3 there and 4 here"):
        load_weights(tiny_alt(temporal_pos=True, frames=4), positions)
    load_weights(tiny_alt(frames=4), path)  # no weight depends on the number of frames here
    quick = save_model(build(ALL[0], tiny_visual(), quick_gelu=True), tmp_path / "quick.safetensors")
    with pytest.raises(ValueError, match="quick_gelu is True there and None here"):
        load_weights(build(ALL[0]), quick)


def test_a_run_that_starts_from_another_has_its_own_head(tmp_path: Path) -> None:
    """A linear probe starts from a model with texts; the strict reader leaves its head and names what else differs."""
    path = save_model(with_corpus(), tmp_path / "model.safetensors")
    probe = tiny_alt(head="linear", classes=False)
    probe.set_classes(["x", "y"])
    weight = probe.head.weight.clone()
    line = load_start(probe, path)
    assert "tensors" in line
    assert torch.equal(probe.head.weight, weight)
    reference = dict(with_corpus().named_parameters())
    assert all(torch.equal(p, reference[name]) for name, p in probe.named_parameters() if not name.startswith("head."))
    with pytest.raises(UserError, match=r"model\.init_from: .* conv_kernel is 3 there and 5 here\."):
        load_start(tiny_alt(conv_kernel=5), path)
    quick = save_model(tiny_alt(quick_gelu=True), tmp_path / "quick.safetensors")
    with pytest.raises(UserError, match=r"model\.init_from: .* quick_gelu is True there and None here"):
        load_start(tiny_alt(), quick)  # the same names and shapes, and another activation
    with pytest.raises(UserError, match=r"model\.init_from: there is no file"):
        load_start(probe, tmp_path / "none.safetensors")


def test_a_corpus_of_another_width() -> None:
    model = tiny_alt()
    before = model.alignment.entities.clone()
    wide = CORPUS.embed(MiniText())
    with pytest.raises(ValueError, match=rf"corpus: expected embeddings \[K, {WIDTH}\].*got \[3, 48\]"):
        model.set_corpus(wide)
    assert torch.equal(model.alignment.entities, before)


def test_not_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        load_model(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"12345678" * 9)
    with pytest.raises(ValueError, match="is not a model file of this package"):
        load_model(broken)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match="load_backbone reads CLIP's own weights"):
        load_model(foreign)
    path = save_model(tiny_alt(), tmp_path / "model.safetensors")
    header = read_header(path)
    state = safetensors.torch.load_file(path)
    for change, match in (
        ({"format": 99}, "is a model file of format 99, and this version reads 1 to 2"),
        ({"config": {**header["config"], "colour": "red"}}, "newer version: it has the unknown option 'colour'"),
    ):
        safetensors.torch.save_file(state, foreign, {"alt_model": json.dumps({**header, **change})})
        with pytest.raises(ValueError, match=match):
            load_model(foreign)
    with pytest.raises(ValueError, match=r"expected a \.safetensors file, got 'model.pt'"):
        save_model(tiny_alt(), tmp_path / "model.pt")
    with pytest.raises(TypeError, match="expected a video model of this package, got Linear"):
        save_model(nn.Linear(2, 2), tmp_path / "model.safetensors")


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses to write more than 16 KiB into a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = save_model(tiny_alt(), tmp_path / "model.safetensors")
    before = path.read_bytes()
    request.getfixturevalue("small_files")
    with pytest.raises(OSError, match=r"could not save the model to .*, the previous file is unchanged") as caught:
        save_model(with_corpus(), path)
    assert caught.value.errno == errno.EFBIG
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="could not save the model to "):
        save_model(tiny_alt(), tmp_path / "file" / "model.safetensors")


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tiny_alt(), tmp_path / "model.safetensors")
    before = path.read_bytes()

    def interrupt(_number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(with_corpus(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def clip(**vision: Any) -> Any:
    """A whole CLIP whose tower is of the shape of ``tiny_visual``."""
    sizes = {"image_size": IMAGE, "patch_size": PATCH, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return randomised(open_clip.CLIP(embed_dim=WIDTH, vision_cfg={**sizes, **vision}, text_cfg=text))


class Archive(nn.Module):
    """Parameters under the names of a state dict, for a TorchScript archive as OpenAI published them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(state: dict[str, torch.Tensor], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        write_archive(state, path)


def write_archive(state: dict[str, torch.Tensor], path: Path) -> None:
    root = Archive()
    for name, tensor in state.items():
        owner: Any = root
        *parts, leaf = name.split(".")
        for part in parts:
            if part not in owner._modules:
                owner.add_module(part, Archive())
            owner = owner._modules[part]
        owner.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
    torch.jit.script(root).save(str(path))


@pytest.mark.parametrize("kind", ["pt", "training", "safetensors", "tower", "archive"])
def test_clips_weights_into_the_tower(tmp_path: Path, kind: str) -> None:
    source = clip()
    state, quick = source.state_dict(), kind == "archive"
    path = tmp_path / ("clip.safetensors" if kind == "safetensors" else "clip.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "archive":
        archive(state, path)
    elif kind == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        torch.save(source.visual.state_dict() if kind == "tower" else state, path)
    model = tiny_alt(dtype=torch.float32, quick_gelu=quick)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = load_backbone(model, path)
    new = {name for name, _ in model.named_parameters() if not model.is_backbone_parameter(name)}
    assert set(report.missing) == new
    assert set(report.loaded) - {"logit_scale"} == before.keys() - new
    for name, value in source.visual.state_dict().items():
        assert torch.equal(model.backbone.visual.state_dict()[name], value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in new)
    if kind == "tower":
        assert report.unused == ()
    else:
        torch.testing.assert_close(model.logit_scale, source.logit_scale.exp().detach())
        assert "token_embedding.weight" in report.unused
        assert not any(name.startswith("visual.") for name in report.unused)
    model.r = 0
    x = clips(dtype=torch.float32)
    if not quick:
        expected = source.encode_image(x.flatten(0, 1))
        torch.testing.assert_close(model.encode(x).x[:, :, 0].flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_the_tower_of_a_saved_model(tmp_path: Path) -> None:
    source = build(ALL[0], clip().double().visual, strategy="sm")
    path = save_model(source, tmp_path / "model.safetensors")
    model = tiny_alt()
    report = load_backbone(model, path)
    assert torch.equal(model.backbone.visual.conv1.weight, source.backbone.visual.conv1.weight)
    assert any(".adapter." in name for name in report.unused)  # this model has none
    assert torch.equal(model.logit_scale, source.logit_scale)


def test_adapters_are_missing_too(tmp_path: Path) -> None:
    torch.save(clip().state_dict(), tmp_path / "clip.pt")
    model = tiny_alt(dtype=torch.float32, strategy="s")
    missing = set(load_backbone(model, tmp_path / "clip.pt").missing)
    assert missing == {name for name, _ in model.named_parameters() if not model.is_backbone_parameter(name)}
    assert any(".adapter." in name for name in missing)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.save(clip(width=48).state_dict(), path)
    model = tiny_alt(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"is of another tower: class_embedding is \[48\] there and \[32\]"):
        load_backbone(model, path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no weights of a CLIP image tower"):
        load_backbone(model, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"pretrained: .*: not a file of tensors \(it is damaged"):
        load_backbone(model, path)
    archive(clip().state_dict(), path)
    with pytest.raises(ValueError, match="was trained with QuickGELU; create the model with quick_gelu=True"):
        load_backbone(model, path)
    with pytest.raises(ValueError, match="open_clip has no model 'tiny'"):
        load_backbone(model, "openai")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_shipped_small_clip() -> None:
    model = alt.create_model("clip-mean-mini")
    expected = alt.create_model("clip-mean-mini", pretrained="entity-world")
    assert not torch.equal(model.backbone.visual.proj, expected.backbone.visual.proj)
    report = load_backbone(model, "entity-world")
    assert report.missing == ()
    assert same_state(model, expected)
