"""The cache of features: the bits of an evaluation without it, and nothing that belongs to another tower or clip."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchmetrics")

import alt
from alt.data import clip_identity
from alt.data.clip_views import ClipViews
from alt.data.clips import ClipFiles, write_clips
from alt.errors import UserError
from alt.evaluate.checkpoint import at_r
from alt.evaluate.execute import Placement, execute
from alt.evaluate.feature_cache import FeatureCache
from alt.evaluate.linear_probe import extract_features
from alt.evaluate.run import collect_logits
from alt.models.region_encoder import RegionEncoder
from alt.models.weights import save_model
from alt.train.config import load_config
from tests.patch.compare import randomised

CLASSES = ["red", "blue", "green"]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that a test has just written are taken for old ones."""
    monkeypatch.setattr(clip_identity, "_SETTLED", -60.0)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    videos = torch.randint(0, 256, (5, 6, 3, 24, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return write_clips(tmp_path / "set", videos, [0, 1, 2, 1, 0], CLASSES, "npy")


def views(listed: Path, **options: Any) -> ClipViews:
    return ClipViews(ClipFiles(listed, listed.parent / "labels.csv"), 4, 24, **options)


def build(name: str = "alt-mini", **options: Any) -> Any:
    corpus = None if name != "alt-mini" else alt.Corpus.from_labels(CLASSES)
    return alt.create_model(name, pretrained="entity-world", classes=CLASSES, frames=4, corpus=corpus, **options).eval()


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The videos of every pass through a tower from now on."""
    passes: list[int] = []
    forward = RegionEncoder.forward

    def counted(self: Any, clips: Any, **options: Any) -> Any:
        passes.append(len(clips))
        return forward(self, clips, **options)

    monkeypatch.setattr(RegionEncoder, "forward", counted)
    return passes


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("alt-mini", "fp32"),
        ("xclip-mini", "bf16"),
        *(
            pytest.param(name, precision, marks=pytest.mark.slow)
            for name, precision in [
                *(("alt-mini", "bf16"), ("xclip-mini", "fp32"), ("clip-joint-mini", "fp32")),
                *(("clip-joint-mini", "bf16"), ("clip-one-mini", "fp32"), ("clip-one-mini", "bf16")),
            ]
        ),
    ],
)
def test_results_are_the_same_bits(
    clips: Path, tmp_path: Path, name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = build(name), views(clips, crops=3, clips=2)
    how: dict[str, Any] = {"batch_size": 2, "precision": precision}
    plain = collect_logits(model, dataset, **how)
    first = collect_logits(model, dataset, features=FeatureCache(tmp_path / "cache", 1), **how)
    passes = count_encoded(monkeypatch)
    again = collect_logits(model, dataset, features=(kept := FeatureCache(tmp_path / "cache", 1)), **how)
    assert passes == []
    for found in (first, again):
        assert torch.equal(found.logits, plain.logits)
        assert torch.equal(found.labels, plain.labels)
    (line,) = kept.describe()
    assert line.startswith("The tokens of 5 videos came from the cache, those of 0 were computed; ")


def change_file(folder: Path, model: Any) -> Any:
    path = folder / "set" / "clips" / "000003.npy"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return model


def change_weights(folder: Path, model: Any) -> Any:
    with torch.no_grad():
        next(reversed(list(model.backbone.parameters()))).view(-1)[0] += 1e-6
    return model


def change_patch(folder: Path, model: Any) -> Any:
    model.backbone.handle._settings.prop_attn = False
    return model


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        (lambda folder, model: model, 0),
        (change_file, 2),  # the batch of the clip
        (change_weights, 5),
        (lambda folder, model: at_r(model, 3), 5),
        (change_patch, 5),
        (lambda folder, model: torch.set_float32_matmul_precision("high") or model, 5),
    ],
    ids=["nothing", "file", "weights", "r", "patch", "numerics"],
)
def test_what_changed_is_encoded_anew(
    clips: Path, tmp_path: Path, change: Callable[[Path, Any], Any], passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, precision = build(r=2), torch.get_float32_matmul_precision()
    collect_logits(model, views(clips), batch_size=2, features=FeatureCache(tmp_path / "cache", 1))
    try:
        model = change(tmp_path, model)
        plain = collect_logits(model, views(clips), batch_size=2)
        passes = count_encoded(monkeypatch)
        kept = collect_logits(model, views(clips), batch_size=2, features=FeatureCache(tmp_path / "cache", 1))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert sum(passes) == passed
    assert torch.equal(kept.logits, plain.logits)


def test_other_texts_and_adapters_read_the_same_tokens(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tower, two text sets, another adapter, another seed of it, and a probe: it encodes once."""
    how: dict[str, Any] = {"batch_size": 2, "features": FeatureCache(tmp_path / "cache", 1)}
    model = build()
    collect_logits(model, views(clips), **how)
    passes = count_encoded(monkeypatch)
    model.set_classes(["a", "b"], torch.eye(2, model.width))
    kept = collect_logits(model, views(clips), **how)
    other = build(layers=1)
    for name, child in other.named_children():
        if name != "backbone":
            randomised(child)
    embedded = extract_features(other, views(clips), **how)
    assert passes == []
    assert torch.equal(kept.logits, collect_logits(model, views(clips), batch_size=2).logits)
    assert torch.equal(embedded.embedding, extract_features(other, views(clips), batch_size=2).embedding)
    collect_logits(model, views(clips), batch_size=3, features=how["features"])
    assert sum(passes) == 10 + 5  # another batch gives other last bits
    part = views(clips)
    assert isinstance(part.source, ClipFiles)
    part.source.entries[0] = part.source.entries[0]._replace(span=(1, 4))
    collect_logits(model, part, **how)
    assert sum(passes) == 15 + 2  # the list takes other frames of a clip


def test_damaged_entries_and_clips(clips: Path, tmp_path: Path) -> None:
    model = build()
    cache = FeatureCache(tmp_path / "cache", 1)
    plain = collect_logits(model, views(clips), batch_size=2)
    collect_logits(model, views(clips), batch_size=2, features=cache)
    files = sorted(path for path in (tmp_path / "cache").glob("*/*"))
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"\0\0")
    files[1].write_bytes(b"ALT")
    found = collect_logits(model, views(clips), batch_size=2, features=cache)
    assert torch.equal(found.logits, plain.logits)
    assert cache.describe()[1] == "2 damaged entries of the cache were computed again"

    (clips.parent / "clips" / "000000.npy").write_bytes(b"")
    for _ in range(2):
        replacing = ClipViews(ClipFiles(clips, clips.parent / "labels.csv", damaged="replace"), 4, 24)
        collect_logits(model, replacing, batch_size=2, features=cache)
        assert replacing.replaced == 1  # so it is counted in every evaluation


def test_what_cannot_be_kept_is_refused(clips: Path, tmp_path: Path) -> None:
    cache, model = FeatureCache(tmp_path / "cache", 1), build()
    with pytest.raises(TypeError, match="expected ClipViews of list files where features are kept, got list"):
        collect_logits(model, [(torch.zeros(4, 3, 24, 24), 0)], features=cache)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"features: a model of alt\.create_model is expected"):
        collect_logits(torch.nn.Linear(2, 2), views(clips), features=cache)
    model.backbone.visual.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"data\.feature_cache: expected a tower without hooks, and visual has one\."):
        collect_logits(model, views(clips), features=cache)


@pytest.mark.slow
def test_an_evaluation_of_a_configuration(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear probe and then a test on the same clips: the second reads what the first one encoded."""
    clips.rename(clips.with_name("test1.txt"))
    save_model(build(), tmp_path / "model.safetensors")
    lists = ["data.kind=frames", f"data.root={clips.parent}", "data.train_list=test1.txt", "data.val_list=test1.txt"]
    lists += ["data.size=24", "data.resize=24", "model.frames=4", "model.templates=none", "data.batch_size=4"]
    lists += ["evaluation.protocol=linear-probe", "schedule={epochs: 2, warmup_epochs: 1}"]

    def run(*more: str) -> tuple[Any, list[str]]:
        said: list[str] = []
        config = load_config("entity-world-cpu", [*lists, *more])
        found = execute(config, tmp_path / "model.safetensors", where=Placement(workers=1), say=said.append)
        return found.results, said

    plain, _ = run()
    first, _ = run(f"data.feature_cache={tmp_path / 'cache'}")
    passes = count_encoded(monkeypatch)
    again, said = run(f"data.feature_cache={tmp_path / 'cache'}")
    assert passes == [1]  # count_macs traces the model
    assert [result.to_dict() for result in again] == [result.to_dict() for result in first]
    assert again[0].confusion == plain[0].confusion
    assert said[-1].startswith("The tokens of 10 videos came from the cache, those of 0 were computed; ")
